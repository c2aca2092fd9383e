"""What a finished stage has to log: dvc.yaml names its parameters and its files, the files hold the rest."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stages.parts.numbers.metrics import flat, flat_numbers
from stages.parts.run import paths
from stages.parts.run.files import read_json
from stages.parts.run.provenance import commit

UNTRACKED = ("runtime", "serve", "tracking")  # blocks of params.yaml that change no result


@dataclass(frozen=True)
class StageRecord:
    """A stage's parameters and metrics under dotted names, its pictures, its other small files, and a sample of its
    DSPy calls as stages/parts/run/traces.py writes them.
    """

    stage: str
    params: dict[str, str]
    metrics: dict[str, float]
    curve: list[dict[str, float]] = field(default_factory=list)  # `step`, and metrics at that step
    figures: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    traces: list[list[dict[str, Any]]] = field(default_factory=list)


def read_stage(stage: str) -> StageRecord:
    """Return the record of the stage that has just run."""
    declared = yaml.safe_load(Path("dvc.yaml").read_text())["stages"][stage]
    params = yaml.safe_load(Path("params.yaml").read_text())
    blocks = [name.replace("${profile}", params["profile"]) for name in declared.get("params", ())]
    read_by_stage = {
        name: shown
        for name, value in flat(params).items()
        if (shown := str(value)) and any(name == block or name.startswith(f"{block}.") for block in blocks)
    }

    def written(kind: str) -> list[Path]:
        entries = (next(iter(entry)) if isinstance(entry, dict) else entry for entry in declared.get(kind, ()))
        return [path for path in map(Path, entries) if path.is_file()]

    metrics: dict[str, float] = {}
    for path in [*written("metrics"), paths.TIMES / f"{stage}.json"]:
        if path.is_file():
            metrics |= {f"{path.stem}.{name}": number for name, number in flat_numbers(read_json(path)).items()}
    curve = [flat_numbers(point) for point in read_json(paths.LEARNING_CURVE)] if stage == "lora" else []
    figures = [path for path in written("plots") if path.suffix == ".png"]
    files = [path for path in [*written("outs"), *written("metrics"), *written("plots")] if path not in figures]
    calls = paths.TRACES / f"{stage}.json"
    traces = read_json(calls) if calls.is_file() else []
    return StageRecord(stage, read_by_stage, metrics, curve, figures, files, traces)


def pipeline_run() -> tuple[str, str]:
    """Return a key that all stages of one pipeline run share, and a name to show: DVC's experiment or the commit, with
    a hash of the parameters.
    """
    params = {
        name: value for name, value in yaml.safe_load(Path("params.yaml").read_text()).items() if name not in UNTRACKED
    }
    digest = hashlib.sha256(yaml.safe_dump(params, sort_keys=True).encode()).hexdigest()[:8]
    name = os.environ.get("DVC_EXP_NAME") or commit()
    return f"{name} {digest}", f"{name} ({digest})"
