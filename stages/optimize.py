"""Optimise the program for the base and for the last checkpoints, score all on dev, and keep the best pair of adapter and program.

python -m stages.optimize
"""

import time
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.teleprompt import BootstrapFewShotWithRandomSearch

from stages.parts import lm, paths
from stages.parts.classify import score
from stages.parts.params import Params, load_params
from stages.parts.program_file import Sidecar, program_state, save_program, save_sidecar
from stages.parts.records import folder_sha256, read_json, read_jsonl, write_json
from stages.parts.stage import run_stage
from stages.parts.task import IntentClassifier, adapter, example, metric
from stages.parts.vllm_server import serve_student


@dataclass
class Candidate:
    """A model's two programs and their accuracies on dev."""

    plain: float
    optimized: float
    program: IntentClassifier


def search(params: Params, plain: IntentClassifier, train: list[Any], val: list[Any]) -> IntentClassifier:
    """DSPy's bootstrap with random search, scored on `val`; demonstrations come from `train` and the model's own right answers."""
    optimizer = BootstrapFewShotWithRandomSearch(
        metric=metric,
        teacher_settings={"lm": dspy.settings.lm},
        max_bootstrapped_demos=params.optimize.bootstrapped_demos,
        max_labeled_demos=params.optimize.labeled_demos,
        num_candidate_programs=params.optimize.candidate_programs,
        num_threads=params.runtime.threads,
        max_errors=len(val) * 100,
    )
    found: IntentClassifier = optimizer.compile(plain, trainset=[example(row) for row in train], valset=[example(row) for row in val])
    return found


def main() -> None:
    params = load_params()
    labels: list[str] = read_json(paths.LABELS)
    dev, val, train = (read_jsonl(path) for path in (paths.SFT_DEV, paths.OPTIMIZER_VAL, paths.OPTIMIZER_TRAIN))
    epochs = range(params.lora.epochs, 0, -1)[: params.optimize.checkpoints]
    adapters = {f"epoch-{epoch}": paths.LORA / f"epoch-{epoch}" for epoch in epochs}

    plain = IntentClassifier(labels, params.program.instructions, params.style)
    candidates: dict[str, Candidate] = {}
    with serve_student(paths.BASE, adapters, params, params.own.student) as served:
        for name, model in served.names.items():
            started = time.monotonic()
            with lm.using(lm.student_lm(model, served.api_base, params.style)):
                program = search(params, plain, train, val)
                before = score(plain, dev, params.runtime.threads).accuracy
                unchanged = program_state(program) == program_state(plain)
                after = before if unchanged else score(program, dev, params.runtime.threads).accuracy
            candidates[name] = Candidate(before, after, program)
            print(f"{name}: plain {before:.1%}, optimised {after:.1%} on dev ({time.monotonic() - started:.0f} s)")

    base = candidates.pop("base")
    best = max(candidates, key=lambda name: max(candidates[name].plain, candidates[name].optimized))
    tuned = candidates[best]
    save_program(base.program, paths.PROGRAMS / "base.json")
    save_program(tuned.program, paths.PROGRAMS / "tuned.json")
    save_program(tuned.program if tuned.optimized > tuned.plain else plain, paths.PROGRAM)
    save_sidecar(
        Sidecar(
            profile=params.profile,
            labels=labels,
            instructions=params.program.instructions,
            style=params.style,
            prompt_adapter=type(adapter()).__name__,
            max_tokens=lm.STUDENT_MAX_TOKENS[params.style],
            base=str(paths.BASE),
            base_sha256=folder_sha256(paths.BASE),
            adapter=str(adapters[best]),
            adapter_sha256=folder_sha256(adapters[best]),
            dspy_version=dspy.__version__,
            dev_accuracy=max(tuned.plain, tuned.optimized),
        ),
        paths.SIDECAR,
    )
    write_json(
        paths.DEV_REPORT,
        {
            "profile": params.profile,
            "dev": {
                "n": len(dev),
                "base": {"plain": base.plain, "optimized": base.optimized},
                "tuned": {"plain": tuned.plain, "optimized": tuned.optimized},
            },
            "checkpoints": {name: {"plain": found.plain, "optimized": found.optimized} for name, found in candidates.items()},
            "adapter": best,
            "program": "optimized" if tuned.optimized > tuned.plain else "plain",
        },
    )


if __name__ == "__main__":
    run_stage(main)
