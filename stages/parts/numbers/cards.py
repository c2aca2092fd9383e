"""What the model card and the data card say: metadata in Hugging Face's format, and how to serve the model."""

from collections.abc import Sequence

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

from stages.parts.numbers.arms import ArmRow
from stages.parts.numbers.metrics import Metrics
from stages.parts.run.params import Params, PretrainedStudentSettings, ServedTeacherSettings

# Source -> its name, its id on the hub or here, its licence. A team's own rows get the licence that it gives them.
SOURCES = {
    "sample": ("Sample corpus of support queries", "sample", "apache-2.0"),
    "url": ("Banking77", "mteb/banking77", "cc-by-4.0"),
}
OWN = ("Own rows", "own", None)
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}


def source_of(params: Params) -> tuple[str, str, str | None]:
    """Return name, id and licence of the rows. A data set of the hub keeps its name; its licence is on its own card."""
    if params.raw.source == "hub":
        return params.raw.hub.repository, params.raw.hub.repository, None
    return SOURCES.get(params.raw.source, OWN)


def model_metadata(params: Params, metrics: Metrics, student: ArmRow) -> str:
    """Return YAML: what the model is, and the decoder's results on test."""
    name, identifier, _ = source_of(params)
    figures = {"accuracy": student["accuracy"], "f1": student["macro_f1"]}
    results = [
        EvalResult(
            task_type="text-classification",
            task_name="Intent classification",
            dataset_type=identifier,
            dataset_name=name,
            dataset_split="test",
            metric_type=metric,
            metric_name={"accuracy": "Accuracy", "f1": "Macro-F1"}[metric],
            metric_value=round(value, 4),
        )
        for metric, value in figures.items()
        if value is not None
    ]
    base = params.student.weights if isinstance(params.student, PretrainedStudentSettings) else None
    data = ModelCardData(
        model_name=f"{metrics.profile}-student",
        base_model=base.model_id if base else None,
        license=base.license if base else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["intent-classification", "distillation", "dspy", "vllm"],
        eval_results=results,
    )
    return data.to_yaml()


def pretrained(params: Params) -> list[dict[str, str]]:
    """Return the pretrained weights that a run builds on: `part`, `name`, `revision`, `license`."""
    used = {
        "student": params.student.weights if isinstance(params.student, PretrainedStudentSettings) else None,
        "teacher": params.teacher.weights if isinstance(params.teacher, ServedTeacherSettings) else None,
        "encoder": params.encoder.weights if params.encoder else None,
    }
    return [
        {
            "part": part,
            "name": weights.model_id,
            "revision": weights.pinned_to,
            "license": weights.license or "licence: see the model's own card",
        }
        for part, weights in used.items()
        if weights
    ]


def data_metadata(params: Params, rows: int, labels: Sequence[str]) -> str:
    """Return YAML: what the data are; `rows` counts all parts."""
    name, _, licence = source_of(params)
    size = next((size for most, size in SIZES.items() if rows < most), "n>1M")
    data = DatasetCardData(
        pretty_name=f"{name}, {len(labels)} labels, labelled by a teacher",
        license=licence,
        annotations_creators=["machine-generated", "expert-generated"],
        task_categories=["text-classification"],
        task_ids=["intent-classification"],
        size_categories=[size],
    )
    return data.to_yaml()


def plain_vllm_options(params: Params) -> list[str]:
    """Return what to start a plain vLLM with, so that an exported student answers there as it does in the service.

    The precision is the service's: in another one, labels differ for some texts. Without a size for its cache vLLM
    claims nearly all memory of a machine without GPUs, and does not start beside anything else.
    """
    student = params.student
    length = student.max_model_len if isinstance(student, PretrainedStudentSettings) else None
    limit = ["--max-model-len", str(length)] if length else []
    if isinstance(student, PretrainedStudentSettings) and student.device == "gpu":
        return ["--dtype", "bfloat16", *limit]
    return ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", "1G", *limit]
