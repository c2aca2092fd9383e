"""Optimise the program for the base and for the last checkpoints, score all on dev, and keep the best pair of
checkpoint and program.

python -m stages.optimize
"""

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import dspy

from stages.parts.engines.dspy_bridge import using_student
from stages.parts.engines.engine import ServedModel
from stages.parts.engines.requests import ProgramRequests
from stages.parts.run import paths
from stages.parts.run.files import file_sha256, folder_sha256, read_json, read_jsonl, write_json, write_jsonl
from stages.parts.run.params import load_params
from stages.parts.run.stage import run_stage
from stages.parts.run.traces import recorded_calls
from stages.parts.students.scoring import Scores, check_tokens, max_tokens, score, trial_tokens
from stages.parts.students.search import search
from stages.parts.students.serving import students
from stages.parts.task.program import IntentClassifier
from stages.parts.task.program_file import Sidecar, program_state, save_program, save_sidecar, token_fingerprint
from stages.parts.task.prompt import StudentFormat


@dataclass
class Candidate:
    """A model's two programs' answers on dev."""

    plain: Scores
    optimized: Scores
    program: IntentClassifier

    @property
    def wins(self) -> Literal["plain", "optimized"]:
        """The better program's name; plain where they are equal, since its prompts are shorter."""
        return "optimized" if self.optimized.accuracy > self.plain.accuracy else "plain"

    @property
    def best(self) -> Scores:
        return self.optimized if self.wins == "optimized" else self.plain


def main() -> None:
    params = load_params()
    labels: list[str] = read_json(paths.LABELS)
    gold = read_jsonl(paths.GOLD)
    dev, val, train = (read_jsonl(path) for path in (paths.SFT_DEV, paths.OPTIMIZER_VAL, paths.OPTIMIZER_TRAIN))
    last = sorted(paths.LORA.glob("epoch-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))[
        -params.optimize.checkpoints :
    ]
    checkpoints = {folder.name: folder for folder in last}

    plain = IntentClassifier(labels, params.program.instructions, params.program.style)
    tokens, at_once = max_tokens(params.program.style, labels, paths.BASE), params.runtime.max_in_flight

    def scored(served: ServedModel, name: str, program: IntentClassifier, rows: list[Any]) -> Scores:
        return score(served, ProgramRequests(program, served.kind, served.names[name], tokens), rows, at_once)

    def on_val(served: ServedModel, name: str, program: IntentClassifier) -> float:
        return scored(served, name, program, val).accuracy

    candidates: dict[str, Candidate] = {}
    by_hand: dict[str, Scores] = {}
    with closing(students(paths.BASE, checkpoints, params)) as engines, recorded_calls("optimize", params):
        for name, served in engines:
            check_tokens(served, ProgramRequests(plain, served.kind, served.names[name], tokens), paths.BASE)
            with using_student(served, name, plain, tokens):
                program = search(plain, train, params.optimize, partial(on_val, served, name))
            before = scored(served, name, plain, dev)
            after = before if program_state(program) == program_state(plain) else scored(served, name, program, dev)
            candidates[name] = Candidate(before, after, program)
            by_hand[name] = scored(served, name, program if candidates[name].wins == "optimized" else plain, gold)
            print(f"{name}: plain {before.accuracy:.1%}, optimised {after.accuracy:.1%} on dev", flush=True)

    base = candidates.pop("base")
    best = max(candidates, key=lambda name: candidates[name].best.accuracy)
    tuned = candidates[best]
    save_program(base.program, paths.PROGRAMS / "base.json")
    save_program(tuned.program, paths.PROGRAMS / "tuned.json")
    chosen = tuned.program if tuned.wins == "optimized" else plain
    save_program(chosen, paths.PROGRAM)
    write_jsonl(
        paths.HELD_OUT,
        [
            {
                "id": row["id"],
                "label": row["label"],
                "by": by,
                "confidence": row.get("confidence"),
                "probabilities": probabilities,
            }
            for by, rows, scores in (("teacher", dev, tuned.best), ("hand", gold, by_hand[best]))
            for row, probabilities in zip(rows, scores.probabilities, strict=True)
        ],
    )
    save_sidecar(
        Sidecar(
            profile=params.profile,
            labels=labels,
            instructions=params.program.instructions,
            style=params.program.style,
            program=tuned.wins,
            program_sha256=file_sha256(paths.PROGRAM),
            prompt_format=StudentFormat.version,
            max_tokens=tokens,
            trial_tokens=token_fingerprint(trial_tokens(chosen, paths.BASE)),
            base=str(paths.BASE),
            base_sha256=folder_sha256(paths.BASE),
            checkpoint=str(checkpoints[best]),
            checkpoint_sha256=folder_sha256(checkpoints[best]),
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
                name: {"plain": each.plain.accuracy, "optimized": each.optimized.accuracy}
                for name, each in candidates.items()
            },
        },
    )


if __name__ == "__main__":
    run_stage(main)
