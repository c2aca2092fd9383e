"""Label the pool with the teacher through the DSPy program, and the test rows too, to compare the student with it.

python -m stages.teacher
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import dspy

from stages.parts import lm, paths
from stages.parts.classify import answer_all, tokens
from stages.parts.errors import UserError
from stages.parts.gpus import gpu_memory
from stages.parts.hub import snapshot
from stages.parts.labels import UNKNOWN
from stages.parts.linear import LinearTeacher
from stages.parts.linear_engine import LinearEngine
from stages.parts.params import EndpointTeacher, Params, VllmTeacher, load_params
from stages.parts.records import Query, TeacherLabel, read_json, read_jsonl, row_id, write_json, write_jsonl
from stages.parts.stage import run_stage
from stages.parts.task import IntentClassifier
from stages.parts.vllm_server import prepare, running

MAX_UNANSWERED = 0.02  # share of the pool; more means that the engine is ill, not the queries


@contextmanager
def teacher_lm(params: Params, gold: list[Query], pool: list[Query], labels: list[str]) -> Iterator[dspy.LM]:
    """The teacher of the profile as a DSPy LM."""
    settings = params.own.teacher
    if isinstance(settings, VllmTeacher):
        gpu_memory()
        weights = paths.cache() / "hub" / settings.revision
        snapshot(settings.model, settings.revision, weights)
        with running(prepare(weights, {}, params.runtime, on_gpus=True, max_model_len=settings.max_model_len)) as served:
            yield lm.served_lm(served.names["base"], settings.max_tokens, api_base=served.api_base, api_key=served.key)
    elif isinstance(settings, EndpointTeacher):
        yield lm.endpoint_lm(settings)
    else:
        pool_texts, gold_texts = [row["text"] for row in pool], [row["text"] for row in gold]
        gold_labels = [row["label"] for row in gold]
        linear = LinearTeacher.fit(pool_texts, gold_texts, gold_labels, labels, params.seed)
        name = "linear-" + row_id("\n".join([*pool_texts, *gold_texts, *gold_labels, *labels, str(params.seed)]))
        yield dspy.LM(name, engine=LinearEngine(name, linear, pool_texts), logprobs=True)


def teacher_labels(rows: list[Query], answers: list[dspy.Prediction | None]) -> list[TeacherLabel]:
    """One record for each row; an unanswered query is an invalid one."""
    return [
        TeacherLabel(
            id=row["id"],
            text=row["text"],
            label=answer.label if answer else UNKNOWN,
            reasoning=answer.reasoning if answer else "",
            valid=bool(answer and answer.valid),
            confidence=answer.confidence if answer else None,
        )
        for row, answer in zip(rows, answers, strict=True)
    ]


def main() -> None:
    params = load_params()
    labels: list[str] = read_json(paths.LABELS)
    gold, pool, test = (read_jsonl(path) for path in (paths.GOLD, paths.POOL, paths.TEST))
    texts = [row["text"] for row in [*pool, *test]]

    # The teacher always reasons: it is asked once, and its reasons let the student's style change without asking again.
    program = IntentClassifier(labels, params.program.instructions, "chain_of_thought")
    lm.keep_answers()
    started = time.monotonic()
    with teacher_lm(params, gold, pool, labels) as teacher, lm.using(teacher):
        answers = answer_all(program, texts, params.runtime.threads)
    seconds = time.monotonic() - started

    unanswered = sum(answer is None for answer in answers)
    if unanswered > MAX_UNANSWERED * len(texts):
        raise UserError(
            f"{unanswered} of {len(texts)} queries got no answer after {lm.RETRIES} retries each: check the engine and run `dvc repro` "
            "again; the answers so far are kept"
        )
    records = teacher_labels([*pool, *test], answers)
    of_pool, of_test = records[: len(pool)], records[len(pool) :]
    write_jsonl(paths.TEACHER_LABELS, of_pool)
    write_jsonl(paths.TEACHER_TEST, of_test)
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
            "seconds": round(seconds, 1),
        },
    )


if __name__ == "__main__":
    run_stage(main)
