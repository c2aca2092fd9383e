"""Stands for a stage where only DVC is tested: writes what dvc.yaml declares, made up from its inputs, and tells that
it ran.

Put in place of every stages/NAME.py, it imports nothing of the project. $STAGES_RUN is the file that gets a line for
each run.
"""

import hashlib
import json
import os
from pathlib import Path

import yaml

name = Path(__file__).stem
stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
params = yaml.safe_load(Path("params.yaml").read_text())


def names(entries: list) -> list[str]:
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries or []]


if __name__ == "__main__":
    with Path(os.environ["STAGES_RUN"]).open("a") as log:
        log.write(name + "\n")
    seen = hashlib.sha256(json.dumps(params[name] if name in ("raw", "lora") else 0).encode())
    for dep in sorted(names(stages[name]["deps"])):
        for file in sorted(Path(dep).rglob("*") if Path(dep).is_dir() else [Path(dep)]):
            if dep.startswith(("data/", "models/")) and file.is_file():
                seen.update(file.read_bytes())
    needed = {dep for stage in stages.values() for dep in names(stage["deps"]) if Path(dep).suffix}
    for out in (out for kind in ("outs", "metrics", "plots") for out in names(stages[name].get(kind))):
        inside = [Path(dep) for dep in needed if Path(out) in Path(dep).parents]
        for file in [Path(out)] if Path(out).suffix else [*inside, Path(out) / "made_up"]:
            file.parent.mkdir(parents=True, exist_ok=True)
            found = int(seen.hexdigest()[:4], 16) / 65535
            file.write_text(
                json.dumps({"made_up": found}) if file.suffix == ".json" else f"{file} {seen.hexdigest()}\n"
            )
