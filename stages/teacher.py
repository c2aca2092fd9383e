"""Label the pool with the teacher through the DSPy program; the test rows too, to compare the student with it, and gold, to judge it.

python -m stages.teacher
"""

from stages.parts.data.rows import Query
from stages.parts.engines.dspy_lm import RETRIES
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, read_jsonl, write_json, write_jsonl
from stages.parts.run.params import load_params
from stages.parts.run.stage import run_stage
from stages.parts.task.dspy_context import keep_answers, using
from stages.parts.task.program import IntentClassifier
from stages.parts.teachers.labelling import answer_all, teacher_labels, tokens
from stages.parts.teachers.teacher import teacher_lm

MAX_UNANSWERED = 0.02  # share of the pool; more means that the engine is ill, not the queries


def main() -> None:
    params = load_params()
    labels: list[str] = read_json(paths.LABELS)
    gold, pool, test = (read_jsonl(path) for path in (paths.GOLD, paths.POOL, paths.TEST))
    rows: list[Query] = [*pool, *test, *gold]

    # The teacher always reasons: it is asked once, and its reasons let the student's style change without asking again.
    program = IntentClassifier(labels, params.program.instructions, "chain_of_thought")
    keep_answers()
    with teacher_lm(params, gold, pool, labels) as teacher, using(teacher):
        answers = answer_all(program, [row["text"] for row in rows], params.runtime.threads)

    unanswered = sum(answer is None for answer in answers)
    if unanswered > MAX_UNANSWERED * len(rows):
        raise UserError(
            f"{unanswered} of {len(rows)} queries got no answer after {RETRIES} retries each: check the engine and run `dvc repro` "
            "again; the answers so far are kept"
        )
    records = teacher_labels(rows, answers)
    of_pool = records[: len(pool)]
    write_jsonl(paths.TEACHER_LABELS, of_pool)
    write_jsonl(paths.TEACHER_TEST, records[len(pool) : len(pool) + len(test)])
    write_jsonl(paths.TEACHER_GOLD, records[len(pool) + len(test) :])
    prompt_tokens, completion_tokens = tokens(answers[: len(pool)])
    write_json(
        paths.TEACHER_REPORT,
        {
            "profile": params.profile,
            "rows": len(pool),
            "valid": sum(record["valid"] for record in of_pool),
            "unanswered": unanswered,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
        },
    )


if __name__ == "__main__":
    run_stage(main)
