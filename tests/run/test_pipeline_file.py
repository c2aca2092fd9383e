"""dvc.yaml against the code: the same paths, every part that a stage imports among its dependencies, and what reruns
after which edit.
"""

from pathlib import Path

import pytest
import yaml
from dvc.dependency import ParamsDependency
from dvc.repo import Repo

from stages.parts.run import paths
from tests.conftest import ROOT, make_clone
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
    paths.TRAFFIC,
    paths.PROMOTED,
)
# What these change is when a result comes, or whether a run goes on, never what it is.
ENGINES = Path("stages/parts/engines")
NO_RESULT = {
    Path("stages/parts/preflight"),
    Path("stages/parts/run"),
    *(ENGINES / f"{name}.py" for name in ("budget", "layout", "process", "rate_limit")),
}


def names(entries) -> set[str]:
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries or []}


def outputs(stage) -> set[str]:
    return names(stage.get("outs")) | names(stage.get("metrics")) | names(stage.get("plots"))


def imported_parts(file: Path) -> set[Path]:
    """The files under stages/parts that a file imports, and those that they import, without those of NO_RESULT."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        for module in imported_modules(waiting.pop()):
            part = Path(*module.split(".")).with_suffix(".py")
            if (ROOT / part).exists() and part not in found and not {part, *part.parents} & NO_RESULT:
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
            assert any(
                value == Path(out) or Path(out) in value.parents or value in Path(out).parents for out in declared
            ), f"dvc.yaml declares nothing for {value}"


def test_no_dependency_is_inside_a_directory_output():
    """DVC would load the directory that dvc.lock names, and a clone without its cache has none (test_teams.py)."""
    declared = set().union(*(outputs(stage) for stage in PIPELINE.values()))
    for name, stage in PIPELINE.items():
        inside = [dep for dep in names(stage["deps"]) if {str(above) for above in Path(dep).parents} & declared]
        assert not inside, f"{name} depends on {inside}"
        missing = [
            dep
            for dep in names(stage["deps"])
            if dep.startswith(("data/", "models/", "reports/")) and dep not in declared
        ]
        assert set(missing) <= {"data/sample", "data/prompts", "data/review/decisions.csv"}, name


@pytest.mark.parametrize("name", PIPELINE)
def test_a_stage_depends_on_the_parts_it_imports(name):
    deps = {Path(dep) for dep in PIPELINE[name]["deps"]}
    missing = [part for part in imported_parts(ROOT / f"stages/{name}.py") if not deps & {part, *part.parents}]
    assert not missing, f"{name} imports {[str(part) for part in missing]}"


def test_who_may_read_the_sealed_labels():
    """evaluate; and sft with the experiments' switch, which tests/stages/test_sft.py holds to it."""
    for name, stage in PIPELINE.items():
        assert ("data/splits/sealed.jsonl" in stage["deps"]) == (name in ("evaluate", "sft")), name
        mentions = "SEALED" in (ROOT / f"stages/{name}.py").read_text()
        assert mentions == (name in ("split", "evaluate", "sft")), name


MADE_UP = {"data/prompts/api.json"}
# An edit -> the stages that run for it; those behind them run only where an output changed.
RERUNS = {
    "stages/parts/run/stage.py": "",
    "stages/parts/run/files.py": "",
    "stages/parts/training/README.md": "",
    "serve/service.py": "",
    "stages/parts/data/benchmarks.py": "raw filter split",
    "stages/parts/data/rows.py": "raw filter split teacher sft evaluate",
    "stages/parts/task/text.py": "raw filter split embed teacher sft base linear encoder optimize calibrate evaluate "
    "report",
    "stages/parts/task/prompt.py": "teacher sft base optimize calibrate evaluate report",
    "stages/parts/teachers/self_trained.py": "teacher",
    "stages/parts/numbers/baselines.py": "sft linear evaluate",
    "stages/parts/numbers/choice.py": "calibrate evaluate",
    "stages/parts/numbers/contenders.py": "evaluate",
    "stages/parts/students/footprint.py": "evaluate",
    "stages/parts/numbers/statistics.py": "calibrate evaluate",
    "stages/parts/numbers/held_out.py": "linear encoder evaluate",
    "stages/parts/students/prediction.py": "evaluate",
    "stages/parts/students/linear.py": "linear evaluate",
    "stages/parts/numbers/calibration.py": "calibrate evaluate",
    "stages/parts/data/leaks.py": "raw filter split sft",
    "stages/parts/numbers/arms.py": "report",
    "stages/parts/numbers/advice.py": "report",
    "stages/parts/numbers/break_even.py": "report",
    "stages/parts/numbers/label_errors.py": "sft",
    "stages/parts/numbers/metrics.py": "calibrate evaluate report",
    "stages/parts/numbers/promise.py": "calibrate",
    "stages/parts/numbers/plots.py": "report",
    "stages/parts/engines/vllm.py": "teacher optimize evaluate",
    "stages/parts/engines/requests.py": "teacher optimize evaluate",
    "stages/parts/engines/batch_api.py": "teacher",
    "stages/parts/weights/package.py": "embed teacher base encoder",
    "stages/parts/encoder/export.py": "embed teacher encoder",
    "stages/parts/encoder/whole.py": "embed teacher encoder",
    "stages/parts/encoder/vectors.py": "embed teacher base encoder",
    "stages/parts/training/meanings.py": "base lora",
    "stages/parts/encoder/student.py": "embed teacher encoder evaluate",
    "stages/parts/encoder/familiarity.py": "embed teacher encoder",
    "stages/parts/teachers/repeats.py": "teacher",
    "stages/parts/task/readings.py": "teacher sft base linear encoder optimize calibrate evaluate report",
    "encoder=none": "embed encoder",
    "profiles.embedded.encoder.precision=float32": "embed encoder",
    "profiles.embedded.encoder.train=whole": "embed encoder",
    "stages/parts/engines/process.py": "",
    "stages/parts/engines/budget.py": "",
    "stages/parts/engines/sglang_server.py": "",
    "stages/parts/students/tiny.py": "base",
    "stages/parts/students/chat_template.py": "base optimize evaluate",
    "stages/parts/students/search.py": "optimize",
    "stages/parts/training/shared_prefix.py": "base lora",
    "stages/parts/training/rows.py": "base lora",
    "stages/lora.py": "lora",
    "seed=1": "split teacher sft base lora linear encoder evaluate",
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
    "stages/parts/task/student_file.py": "teacher sft base linear encoder optimize calibrate evaluate report",
    "calibrate.precision=0.8": "calibrate",
    "report.color='#112233'": "report",
    "report.cpu_price_per_hour=2.5": "report",
    "report.gpu_price_per_hour=3.5": "report",
    "report.prices_date='2026-12-01'": "report",
    "stages/parts/preflight/checks.py": "",
    "runtime.max_in_flight=8": "",
    "engine.kind=sglang": "optimize evaluate",
    "engine.api_base=http://gpu:8001/v1": "",
    "tune.examples=4": "",
    "stages/parts/tuning/recipes.py": "",
    "stages/parts/tuning/plan.py": "",
    "data/prompts/README.md": "",
    "data/prompts/api.json": "teacher",
    "serve.queue=8": "",
    "profiles.llama.student.max_model_len=4096": "",
    "profiles.tutorial.top_n=7": "",
    "profiles.embedded.top_n=20": "filter",
    "profiles.embedded.student.layers=3": "base optimize evaluate",
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    return make_clone(tmp_path_factory.mktemp("pipeline") / "repository")


@pytest.fixture(scope="module")
def repo(repository) -> Repo:
    return Repo(str(repository))


def set_param(values: dict, change: str) -> None:
    path, _, value = change.partition("=")
    *blocks, key = path.split(".")
    for block in blocks:
        values = values[block]
    values[key] = yaml.safe_load(value)


def parameters_by_stage(repo: Repo) -> dict[str, dict]:
    """The parameters that each stage depends on, with their values, as DVC resolves them."""
    return {
        stage.name: {str(dep): dep.read_params() for dep in stage.deps if isinstance(dep, ParamsDependency)}
        for stage in repo.index.stages
    }


@pytest.fixture(scope="module")
def parameters(repo) -> dict[str, dict]:
    return parameters_by_stage(repo)


@pytest.mark.parametrize("edit", [edit for edit in RERUNS if "=" not in edit])
def test_an_edited_file_reruns_what_it_can_change_and_nothing_else(repository, repo, edit):
    file = repository / edit
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    stale = (
        set()
        if repo.dvcignore.is_ignored_file(str(file))
        else {
            stage.name
            for stage in repo.index.stages
            for dep in stage.deps
            if not isinstance(dep, ParamsDependency) and Path(dep.fs_path) in (file, *file.parents)
        }
    )
    assert stale == set(RERUNS[edit].split())


@pytest.mark.slow
@pytest.mark.parametrize("edit", [edit for edit in RERUNS if "=" in edit])
def test_an_edited_parameter_reruns_what_reads_it_and_nothing_else(repository, parameters, edit):
    file = repository / "params.yaml"
    as_it_was = file.read_text()
    values = yaml.safe_load(as_it_was)
    set_param(values, edit)
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    try:
        after = parameters_by_stage(Repo(str(repository)))
    finally:
        file.write_text(as_it_was)
    assert {name for name in after if after[name] != parameters[name]} == set(RERUNS[edit].split())


def test_every_file_in_the_table_of_edits_is_there():
    assert not [edit for edit in RERUNS if "=" not in edit and edit not in MADE_UP and not (ROOT / edit).exists()]
