"""dvc.yaml against the code: the same paths, every part that a stage imports among its dependencies, and what reruns
after which edit.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from stages.parts.run import paths
from tests.conftest import ROOT, make_clone, run
from tests.test_rooms import imported_modules

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Not made by a stage, or not tracked.
NO_STAGES = (
    paths.SAMPLE,
    paths.DECISIONS,
    paths.REPORTS,
    paths.TIMES,
    paths.EXPORT,
    paths.COMPARE,
    paths.SEEDS,
    paths.PROMPTS,
    paths.TUNING_REPORT,
    paths.TRACES,
)


def names(entries) -> set[str]:
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries or []}


def outputs(stage) -> set[str]:
    return names(stage.get("outs")) | names(stage.get("metrics")) | names(stage.get("plots"))


def imported_parts(file: Path) -> set[Path]:
    """The files under stages/parts that a file imports, and those that they import, but for `run`, which changes no
    result.
    """
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        for module in imported_modules(waiting.pop()):
            part = Path(*module.split(".")).with_suffix(".py")
            if (ROOT / part).exists() and part not in found and part.parts[2] != "run":
                found.add(part)
                waiting.append(ROOT / part)
    return found


def test_each_stage_is_one_file_that_dvc_runs():
    for name, stage in PIPELINE.items():
        assert stage["cmd"] == f"python -m stages.{name}"
        assert f"stages/{name}.py" in stage["deps"]
    assert {path.stem for path in (ROOT / "stages").glob("[a-z]*.py")} == set(PIPELINE)


def test_the_code_and_dvc_name_the_same_paths():
    declared = set().union(*(outputs(stage) for stage in PIPELINE.values()))
    for value in vars(paths).values():
        if isinstance(value, Path) and value not in NO_STAGES:
            assert any(value == Path(out) or Path(out) in value.parents for out in declared), (
                f"dvc.yaml declares nothing for {value}"
            )


@pytest.mark.parametrize("name", PIPELINE)
def test_a_stage_depends_on_the_parts_it_imports(name):
    deps = {Path(dep) for dep in PIPELINE[name]["deps"]}
    missing = [part for part in imported_parts(ROOT / f"stages/{name}.py") if not deps & {part, *part.parents}]
    assert not missing, f"{name} imports {[str(part) for part in missing]}"


def test_who_may_read_the_sealed_labels():
    """evaluate; and sft with the experiments' switch, which tests/stages/test_sft.py holds to it."""
    for name, stage in PIPELINE.items():
        reads = {dep for dep in stage["deps"] if dep in ("data/splits", "data/splits/sealed.jsonl")}
        assert bool(reads) == (name in ("evaluate", "sft")), name
        mentions = "SEALED" in (ROOT / f"stages/{name}.py").read_text()
        assert mentions == (name in ("split", "evaluate", "sft")), name


# An edit -> the stages that run for it; those behind them run only where an output changed.
RERUNS = {
    "stages/parts/run/stage.py": "",
    "stages/parts/run/files.py": "",
    "stages/parts/training/README.md": "",
    "serve/service.py": "",
    "stages/parts/data/benchmarks.py": "raw filter split",
    "stages/parts/data/rows.py": "raw filter split teacher sft evaluate",
    "stages/parts/task/prompt.py": "teacher sft base optimize calibrate evaluate report",
    "stages/parts/teachers/self_trained.py": "teacher",
    "stages/parts/numbers/baselines.py": "sft evaluate",
    "stages/parts/numbers/calibration.py": "calibrate evaluate",
    "stages/parts/data/leaks.py": "raw filter split sft",
    "stages/parts/numbers/arms.py": "report",
    "stages/parts/numbers/label_errors.py": "sft",
    "stages/parts/numbers/metrics.py": "evaluate report",
    "stages/parts/numbers/plots.py": "report",
    "stages/parts/engines/vllm.py": "teacher optimize evaluate",
    "stages/parts/students/tiny.py": "base",
    "stages/parts/students/chat_template.py": "base",
    "stages/parts/students/search.py": "optimize",
    "stages/parts/training/shared_prefix.py": "base lora",
    "stages/parts/training/each_epoch.py": "base lora",
    "stages/lora.py": "lora",
    "seed=1": "split teacher sft base lora evaluate",
    "top_n=20": "filter",
    "other_labels=none_of_these": "filter",
    "stages/parts/numbers/out_of_scope.py": "evaluate",
    "raw.folder=data/sample": "raw",
    "data/review/decisions.csv": "split",
    "split.gold=90": "split sft",
    "split.test_share=0.4": "split sft",
    "split.dev=200": "split sft",
    "train.learning_rate=0.001": "lora",
    "train.epochs=2": "lora",
    "train.targets=hard": "sft lora",
    "train.query_dropout=0.1": "lora",
    "lora.r=16": "lora",
    "optimize.train_rows=50": "sft optimize",
    "optimize.candidate_programs=0": "optimize",
    "program.style=chain_of_thought": "sft base optimize",
    "program.instructions=Choose.": "teacher sft base optimize",
    "calibrate.precision=0.8": "calibrate",
    "report.color='#112233'": "report",
    "report.price_per_hour=2.5": "report",
    "runtime.max_in_flight=8": "",
    "engine.kind=sglang": "optimize evaluate",
    "engine.api_base=http://gpu:8001/v1": "",
    "tune.examples=4": "",
    "stages/parts/tuning/recipes.py": "",
    "data/prompts/README.md": "",
    "data/prompts/api.json": "teacher",
    "serve.queue=8": "",
    "profiles.llama.student.max_model_len=4096": "",
    "profiles.tutorial.top_n=7": "",
    "profiles.embedded.top_n=20": "filter",
    "profiles.embedded.student.layers=3": "base optimize evaluate",
}


@pytest.fixture(scope="module")
def settled(tmp_path_factory) -> Iterator[Path]:
    """A clone whose outputs are there, made up, and in step with dvc.lock."""
    folder = make_clone(tmp_path_factory.mktemp("settled") / "repository")
    for stage in PIPELINE.values():
        for out in outputs(stage):
            file = folder / out if Path(out).suffix else folder / out / "made_up"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
    for dep in ("labels.jsonl", "test.jsonl", "gold.jsonl"):
        (folder / "data/teacher" / dep).write_text("{}")
    for dep in ("gold", "pool", "reviewed", "test", "sealed"):
        (folder / f"data/splits/{dep}.jsonl").write_text("{}")
    for dep in ("train", "dev", "optimizer_val", "optimizer_train"):
        (folder / f"data/sft/{dep}.jsonl").write_text("{}")
    for dep in ("labels.json", "descriptions.json", "rows.parquet"):
        (folder / "data/filtered" / dep).write_text("{}")
    (folder / "stages/parts/training/README.md").write_text("Why.")
    (folder / "data/prompts/api.json").write_text("{}")
    run(folder, "dvc", "commit", "--force")
    yield folder


def set_param(values: dict, change: str) -> None:
    path, _, value = change.partition("=")
    *blocks, key = path.split(".")
    for block in blocks:
        values = values[block]
    values[key] = yaml.safe_load(value)


def changed_stages(folder: Path) -> set[str]:
    return {
        stage.rpartition(":")[2]
        for stage, why in Repo(str(folder)).status().items()
        if any("changed deps" in entry for entry in why)
    }


@pytest.mark.slow
def test_an_edit_reruns_what_it_can_change_and_nothing_else(settled):
    assert not changed_stages(settled)
    wrong = {}
    for change, expected in RERUNS.items():
        file = settled / ("params.yaml" if "=" in change else change)
        before = file.read_text()
        if "=" in change:
            values = yaml.safe_load(before)
            set_param(values, change)
            file.write_text(yaml.safe_dump(values, sort_keys=False))
        else:
            file.write_text(before + "\n# another line\n")
        found = changed_stages(settled)
        file.write_text(before)
        if found != set(expected.split()):
            wrong[change] = " ".join(sorted(found, key=list(PIPELINE).index))
    assert not wrong
