"""Label the pool with the teacher through the DSPy program; the test rows too, to compare the student with it, and
gold, to judge it.

python -m stages.teacher
"""

from collections import Counter
from contextlib import ExitStack
from itertools import chain, repeat

from stages.parts.data.rows import Row, TeacherLabel
from stages.parts.engines.requests import Outcome
from stages.parts.run import paths
from stages.parts.run.files import jsonl_writer, write_json
from stages.parts.run.params import load_params
from stages.parts.run.stage import run_stage
from stages.parts.teachers.confusions import confusions
from stages.parts.teachers.labelling import label_all, teacher_label
from stages.parts.teachers.prompt_file import OPTIMISED
from stages.parts.teachers.questions import read_questions
from stages.parts.teachers.teacher import teacher_of


def on_gold(gold: list[Row], judged: list[TeacherLabel]) -> dict[str, float | None]:
    """How often the teacher is right on gold rows whose labels it was not told, and what its confidence is worth:
    Brier's score, low where it is good, None without any."""
    right = [row["label"] == answer["label"] for row, answer in zip(gold, judged, strict=True)]
    known = [
        (hit, answer["confidence"])
        for hit, answer in zip(right, judged, strict=True)
        if answer["confidence"] is not None
    ]
    brier = sum((sure - hit) ** 2 for hit, sure in known) / len(known) if known else None
    return {"gold_accuracy": sum(right) / len(right), "gold_brier": brier}


def main() -> None:
    params = load_params()
    questions = read_questions(params)
    pool, test, gold = questions.pool, questions.test, questions.gold
    failures: Counter[str] = Counter()
    done = valid = 0
    judged: list[TeacherLabel] = []
    with ExitStack() as files, teacher_of(params, questions) as teacher:
        outputs = (paths.TEACHER_LABELS, paths.TEACHER_TEST, paths.TEACHER_GOLD)
        to_pool, to_test, to_gold = (files.enter_context(jsonl_writer(path)) for path in outputs)
        to_failed = files.enter_context(jsonl_writer(paths.TEACHER_FAILED))
        ends = chain(repeat(to_pool, len(pool)), repeat(to_test, len(test)), repeat(to_gold))

        def take(row: Row, outcome: Outcome) -> None:
            nonlocal done, valid
            record = teacher_label(row, outcome.prediction)
            next(ends)(record)
            if done >= len(pool) + len(test):
                judged.append(record)
            done += 1
            valid += record["valid"] and done <= len(pool)
            if outcome.failure:
                failures[outcome.failure.reason] += 1
                to_failed(
                    {
                        "id": row["id"],
                        "text": row["text"],
                        "reason": outcome.failure.reason,
                        "said": outcome.failure.message,
                    }
                )

        spent = label_all(teacher, questions.program, questions.rows, params.runtime, take)
    learned_from_gold = questions.recipe in OPTIMISED
    confused = confusions([row["label"] for row in gold], [row["label"] for row in judged], questions.labels)
    write_json(
        paths.TEACHER_REPORT,
        {
            "profile": params.profile,
            "rows": len(pool),
            "valid": valid,
            "failed": dict(failures.most_common()),
            "prompt": questions.recipe,
            **({} if learned_from_gold else on_gold(gold, judged)),
            "answers": spent.answers,
            "prompt_tokens": spent.prompt_tokens,
            "completion_tokens": spent.completion_tokens,
            # None for a prompt that was optimised on the gold rows: they show nothing of its errors.
            "confused": None if learned_from_gold else confused,
            "cost": None if spent.dollars is None else round(spent.dollars, 6),
        },
    )


if __name__ == "__main__":
    run_stage(main)
