"""SFT of the student on the teacher's labels, with LoRA adapters or whole; keeps every epoch's weights.

python -m stages.lora
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, set_seed

from stages.parts import training
from stages.parts.run import paths
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.files import file_sha256, fingerprint, folder_sha256, read_jsonl, write_json
from stages.parts.run.params import Params, PretrainedStudentSettings, load_params
from stages.parts.run.stage import run_stage
from stages.parts.students.weights import keep_weights, layers_below, load_student, lora_config
from stages.parts.training.launch import launch
from stages.parts.training.rows import EncodedRow, encode
from stages.parts.training.shared_prefix import first_learned
from stages.parts.training.trainer import TrainingPlan, fine_tune, naming_what_to_lower
from stages.parts.training.watch import complete_checkpoints, learning_curve, training_log

# LoRA's best learning rate is about ten times that of training all weights (Schulman et al. 2025, LoRA Without Regret).
FULL_RATE = 0.1


def checkpoint_folder(params: Params) -> Path:
    """Where a training's checkpoints are: outside DVC's outputs, so that a killed run goes on, under a name of all that
    shapes them.
    """
    inputs = [
        file_sha256(paths.SFT_TRAIN),
        folder_sha256(paths.BASE),
        *(file_sha256(code) for code in sorted(Path(training.__path__[0]).glob("*.py"))),
        params.runtime.parallel,  # another one has other steps, and checkpoints of another form
        params.train.model_dump_json(),
        params.lora.model_dump_json(),
        params.seed,
    ]
    return paths.cache() / "lora" / fingerprint("\n".join(map(str, inputs)))


def add_shares(rows: list[EncodedRow], lessons: list[dict[str, Any]]) -> tuple[tuple[int, ...], ...]:
    """Return the labels' answers as token ids, and give each row its `shares` of them, in parts of 10,000: the
    teacher's distribution, or all to the row's label if the teacher reports none.

    Empty, and no shares, if a label's answers differ from row to row: reasons belong to one label and can't be drawn.
    """
    answers: dict[str, tuple[int, ...]] = {}
    for row, lesson in zip(rows, lessons, strict=True):
        answer = tuple(row["labels"][first_learned(row) :])
        if answers.setdefault(lesson["label"], answer) != answer:
            print("answers with reasons: each row's own label is learned (as with train.targets hard)")
            return ()
    for row, lesson in zip(rows, lessons, strict=True):
        of_label = lesson["probabilities"] or {lesson["label"]: 1.0}
        row["shares"] = [round(10_000 * of_label.get(label, 0.0)) for label in answers]
    return tuple(answers.values())


def train(params: Params) -> None:
    """Train until every epoch has its checkpoint; in each process of a parallel run."""
    set_seed(params.seed)
    settings = params.train
    if settings.method == "full":
        settings = settings.model_copy(update={"learning_rate": settings.learning_rate * FULL_RATE})
    tokenizer = AutoTokenizer.from_pretrained(paths.BASE)
    with naming_what_to_lower():
        model = load_student(paths.BASE, settings.method)
    lessons = read_jsonl(paths.SFT_TRAIN)
    rows = [encode(tokenizer, lesson["messages"]) for lesson in lessons]
    plan = TrainingPlan(
        settings,
        params.seed,
        answers=add_shares(rows, lessons) if settings.targets == "drawn" else (),
        at_once=params.runtime.rows_at_once,
        lora=None
        if settings.method == "full"
        else lora_config(params.lora, embeddings=settings.embeddings, without=layers_below(model, settings.top_layers)),
    )
    fine_tune(model, tokenizer, rows, plan, checkpoint_folder(params), keep_epochs=True)


def main() -> None:
    params = load_params()
    student = params.student
    if isinstance(student, PretrainedStudentSettings) and student.device == "gpu" and not torch.cuda.is_available():
        raise UserError(
            f"the student of profile {params.profile} trains on a GPU, and PyTorch {torch.__version__} sees none: "
            f"install the CUDA set (HARDWARE=gpu make setup), or set profiles.{params.profile}.student.device to cpu"
        )
    if params.train.method == "qlora" and params.runtime.parallel in ("fsdp", "zero3"):
        raise UserError(
            f"4-bit weights can't be spread with {params.runtime.parallel}: use runtime.parallel ddp or none"
        )
    if params.runtime.parallel == "none":
        train(params)
    else:
        launch(params.runtime.parallel, "stages.lora")
    checkpoints = checkpoint_folder(params)
    epochs = complete_checkpoints(checkpoints)
    if len(epochs) != params.train.epochs:
        raise UserError(
            f"{checkpoints} holds {len(epochs)} checkpoints for {params.train.epochs} epochs: remove it and run again"
        )
    curve = learning_curve(training_log(epochs[-1]))
    for number, step in enumerate(epochs, start=1):
        keep_weights(step, paths.LORA / f"epoch-{number}")
    write_json(paths.LEARNING_CURVE, curve)
    shutil.rmtree(checkpoints)


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:  # one of a parallel run's processes
        with command("lora"):
            train(load_params())
    else:
        run_stage(main)
