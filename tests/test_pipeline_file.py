"""dvc.yaml against the code: the same paths, and every part that a stage imports among its dependencies."""

import ast
from pathlib import Path

import yaml

from stages.parts import paths
from tests.conftest import ROOT

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Parts that change no result: a stage does not rerun for them.
PLUMBING = {"errors", "gpus", "hub", "launch", "params", "paths", "records", "stage", "students", "vllm_server"}


def names(entries) -> set[str]:
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries or []}


def outputs(stage) -> set[str]:
    return names(stage.get("outs")) | names(stage.get("metrics")) | names(stage.get("plots"))


def imported_parts(module: Path) -> set[str]:
    """The parts a module imports, and those that they import."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stages.parts"):
                direct = node.module.split(".")[2:] or [alias.name for alias in node.names]
                new = {name for name in direct if name not in found and (ROOT / f"stages/parts/{name}.py").exists()}
                found |= new
                waiting += [ROOT / f"stages/parts/{name}.py" for name in new]
    return found


def test_each_stage_is_one_file_that_dvc_runs():
    for name, stage in PIPELINE.items():
        assert stage["cmd"] == f"python -m stages.{name}"
        assert f"stages/{name}.py" in stage["deps"]
    assert {path.stem for path in (ROOT / "stages").glob("[a-z]*.py")} == set(PIPELINE)


def test_the_code_and_dvc_name_the_same_paths():
    declared = set().union(*(outputs(stage) for stage in PIPELINE.values()))
    for value in vars(paths).values():
        if isinstance(value, Path) and value not in (paths.SAMPLE, paths.REPORTS, paths.TIMES, paths.STYLES, paths.EXPORT):
            assert any(value == Path(out) or Path(out) in value.parents for out in declared), f"dvc.yaml declares nothing for {value}"


def test_a_stage_depends_on_the_parts_it_imports():
    for name, stage in PIPELINE.items():
        needed = {f"stages/parts/{part}.py" for part in imported_parts(ROOT / f"stages/{name}.py") - PLUMBING}
        missing = needed - set(stage["deps"])
        assert not missing, f"{name} imports {missing}"


def test_only_evaluate_may_read_the_sealed_labels():
    """And sft with the experiments' switch, which tests/test_sft.py holds to it."""
    for name, stage in PIPELINE.items():
        reads = {dep for dep in stage["deps"] if dep in ("data/splits", "data/splits/sealed.jsonl")}
        assert bool(reads) == (name in ("evaluate", "sft")), name
        mentions = "SEALED" in (ROOT / f"stages/{name}.py").read_text()
        assert mentions == (name in ("split", "evaluate", "sft")), name


def test_imports_point_one_way():
    for part in (ROOT / "stages/parts").glob("*.py"):
        for node in ast.walk(ast.parse(part.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.split(".")[0] != "serve" and (
                    not node.module.startswith("stages") or node.module.startswith("stages.parts")
                )
