"""Optimise the program for the base and for the last checkpoints, score all on dev, and keep the best pair of adapter and program.

python -m stages.optimize
"""

import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.teleprompt import BootstrapFewShotWithRandomSearch

from stages.parts import lm, paths
from stages.parts.classify import Scores, score
from stages.parts.params import Params, load_params
from stages.parts.program_file import Sidecar, program_state, save_program, save_sidecar
from stages.parts.records import file_sha256, folder_sha256, read_json, read_jsonl, write_json, write_jsonl
from stages.parts.stage import run_stage
from stages.parts.students import students
from stages.parts.task import IntentClassifier, StudentAdapter, example, metric


@dataclass
class Candidate:
    """A model's two programs' answers on dev."""

    plain: Scores
    optimized: Scores
    program: IntentClassifier

    @property
    def wins(self) -> str:
        """The better program's name; plain where they are equal, since its prompts are shorter."""
        return "optimized" if self.optimized.accuracy > self.plain.accuracy else "plain"

    @property
    def best(self) -> Scores:
        return self.optimized if self.wins == "optimized" else self.plain


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


def held_out(rows: list[Any], scores: Scores) -> list[dict[str, Any]]:
    """The chosen pair's probabilities for rows it has not learned from: what `calibrate` reads.

    `certainty` is the probability that the label is true: the teacher's own, where it reports one, and 1 for labels by hand.
    """
    return [
        {"id": row["id"], "label": row["label"], "certainty": row.get("confidence") or 1.0, "probabilities": found}
        for row, found in zip(rows, scores.probabilities, strict=True)
    ]


def main() -> None:
    params = load_params()
    labels: list[str] = read_json(paths.LABELS)
    gold = read_jsonl(paths.GOLD)
    dev, val, train = (read_jsonl(path) for path in (paths.SFT_DEV, paths.OPTIMIZER_VAL, paths.OPTIMIZER_TRAIN))
    epochs = range(params.lora.epochs, 0, -1)[: params.optimize.checkpoints]
    adapters = {f"epoch-{epoch}": paths.LORA / f"epoch-{epoch}" for epoch in epochs}

    plain = IntentClassifier(labels, params.program.instructions, params.style)
    most_tokens = lm.max_tokens(params.style, labels, paths.BASE)
    candidates: dict[str, Candidate] = {}
    by_hand: dict[str, Scores] = {}
    with closing(students(paths.BASE, adapters, params)) as engines:
        for name, served in engines:
            started = time.monotonic()
            with lm.using_student(served, name, params.style, labels, most_tokens):
                program = search(params, plain, train, val)
                before = score(plain, dev, params.runtime.threads)
                unchanged = program_state(program) == program_state(plain)
                after = before if unchanged else score(program, dev, params.runtime.threads)
                candidates[name] = found = Candidate(before, after, program)
                by_hand[name] = score(program if found.wins == "optimized" else plain, gold, params.runtime.threads)
            seconds = time.monotonic() - started
            print(f"{name}: plain {before.accuracy:.1%}, optimised {after.accuracy:.1%} on dev ({seconds:.0f} s)")

    base = candidates.pop("base")
    best = max(candidates, key=lambda name: candidates[name].best.accuracy)
    tuned = candidates[best]
    chosen = tuned.program if tuned.wins == "optimized" else plain
    save_program(base.program, paths.PROGRAMS / "base.json")
    save_program(tuned.program, paths.PROGRAMS / "tuned.json")
    save_program(chosen, paths.PROGRAM)
    write_jsonl(paths.HELD_OUT, [*held_out(dev, tuned.best), *held_out(gold, by_hand[best])])
    save_sidecar(
        Sidecar(
            profile=params.profile,
            labels=labels,
            instructions=params.program.instructions,
            style=params.style,
            program_sha256=file_sha256(paths.PROGRAM),
            prompt_adapter=StudentAdapter.__name__,
            max_tokens=most_tokens,
            base=str(paths.BASE),
            base_sha256=folder_sha256(paths.BASE),
            adapter=str(adapters[best]),
            adapter_sha256=folder_sha256(adapters[best]),
            dspy_version=dspy.__version__,
            dev_accuracy=tuned.best.accuracy,
        ),
        paths.SIDECAR,
    )
    write_json(
        paths.DEV_REPORT,
        {
            "profile": params.profile,
            "dev": {
                "n": len(dev),
                "base": {"plain": base.plain.accuracy, "optimized": base.optimized.accuracy},
                "tuned": {"plain": tuned.plain.accuracy, "optimized": tuned.optimized.accuracy},
            },
            "checkpoints": {
                name: {"plain": found.plain.accuracy, "optimized": found.optimized.accuracy} for name, found in candidates.items()
            },
            "adapter": best,
            "program": tuned.wins,
        },
    )


if __name__ == "__main__":
    run_stage(main)
