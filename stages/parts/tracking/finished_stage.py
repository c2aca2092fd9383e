"""What a finished stage has to tell: dvc.yaml says what it depends on and what it wrote, the files say the rest."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stages.parts.run import paths
from stages.parts.run.files import read_json
from stages.parts.run.provenance import commit

UNTRACKED = ("runtime", "serve", "tracking")  # blocks of params.yaml that change no result


@dataclass(frozen=True)
class Finished:
    """A stage's parameters and numbers under dotted names, its pictures, its other small files, and a sample of its
    DSPy calls.
    """

    stage: str
    params: dict[str, str]
    metrics: dict[str, float]
    curve: list[dict[str, float]] = field(default_factory=list)  # `step` and numbers at it
    figures: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    # of calls as stages/parts/run/traces.py writes them
    traces: list[list[dict[str, Any]]] = field(default_factory=list)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What a nested mapping holds, under dotted names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def numbers(value: Any) -> dict[str, float]:
    return {
        name: float(number)
        for name, number in leaves(value)
        if isinstance(number, int | float) and not isinstance(number, bool)
    }


def finished(stage: str) -> Finished:
    """What the stage that has just run tells."""
    declared = yaml.safe_load(Path("dvc.yaml").read_text())["stages"][stage]
    params = yaml.safe_load(Path("params.yaml").read_text())
    names = [name.replace("${profile}", params["profile"]) for name in declared.get("params", ())]
    in_force = {
        name: shown
        for name, value in leaves(params)
        if (shown := str(value)) and any(under(name, wanted) for wanted in names)
    }

    def written(kind: str) -> list[Path]:
        entries = (next(iter(entry)) if isinstance(entry, dict) else entry for entry in declared.get(kind, ()))
        return [path for path in map(Path, entries) if path.is_file()]

    metrics: dict[str, float] = {}
    for path in [*written("metrics"), paths.TIMES / f"{stage}.json"]:
        if path.is_file():
            metrics |= {f"{path.stem}.{name}": number for name, number in numbers(read_json(path)).items()}
    curve = [numbers(point) for point in read_json(paths.LEARNING_CURVE)] if stage == "lora" else []
    pictures = [path for path in written("plots") if path.suffix == ".png"]
    others = [path for path in [*written("outs"), *written("metrics"), *written("plots")] if path not in pictures]
    calls = paths.TRACES / f"{stage}.json"
    return Finished(stage, in_force, metrics, curve, pictures, others, read_json(calls) if calls.is_file() else [])


def under(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted}.")


def run_name() -> tuple[str, str]:
    """A key that all stages of one pipeline run share, and a name to show: DVC's experiment, or the commit and the
    parameters in force.
    """
    params = {
        name: value for name, value in yaml.safe_load(Path("params.yaml").read_text()).items() if name not in UNTRACKED
    }
    shaped_by = hashlib.sha256(yaml.safe_dump(params, sort_keys=True).encode()).hexdigest()[:8]
    name = os.environ.get("DVC_EXP_NAME") or commit()
    return f"{name} {shaped_by}", f"{name} ({shaped_by})"
