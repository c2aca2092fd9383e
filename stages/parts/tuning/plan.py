"""Estimate what labelling takes before it runs: requests, tokens, dollars and time, from a sample of the rows.

python -m stages.parts.tuning.plan      (`make plan`)

The sample's answers are kept, so the run that follows does not pay for them again.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any

from stages.parts.engines.budget import DISCOUNT, characters
from stages.parts.engines.caching_client import content_key, still_answers
from stages.parts.run.answer_store import answer_store
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.params import Runtime, load_params
from stages.parts.teachers.inputs import JoinedRows, RowSource, TeacherInputs, read_inputs, rows_at
from stages.parts.teachers.labelling import LabellingRun, request_bodies
from stages.parts.teachers.teacher import Teacher, open_teacher

SAMPLE = 20  # rows

Body = Mapping[str, Any]


@dataclass(frozen=True)
class AnswerRates:
    """What the sample's answers took: prompt tokens a character, completion tokens and seconds an answer."""

    prompt: float
    completion: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What some rows take. `requests` are those without a stored answer; `dollars` is None without a price."""

    rows: int
    requests: int
    prompt_tokens: float
    completion_tokens: float
    dollars: float | None
    seconds: float

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(
            self.rows + other.rows,
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            None if self.dollars is None or other.dollars is None else self.dollars + other.dollars,
            self.seconds + other.seconds,
        )


def estimate(rows: int, bodies: Iterable[Body], rates: AnswerRates, teacher: Teacher, runtime: Runtime) -> Estimate:
    """Estimate what `bodies`, the open requests of `rows` rows, take.

    Seconds assume `runtime.max_in_flight` requests in flight, or the endpoint's limits a minute if those are lower.
    """
    requests = length = 0
    for body in bodies:
        requests += 1
        length += characters(body)
    prompt, completion = rates.prompt * length, rates.completion * requests
    seconds = rates.seconds * requests / teacher.max_in_flight(runtime)
    if runtime.requests_per_minute:
        seconds = max(seconds, 60 * requests / runtime.requests_per_minute)
    if runtime.tokens_per_minute:
        seconds = max(seconds, 60 * (prompt + completion) / runtime.tokens_per_minute)
    dollars = None
    if teacher.price:
        full = (prompt * teacher.price.prompt + completion * teacher.price.completion) / 1e6
        dollars = full * DISCOUNT if teacher.batch else full
    return Estimate(rows, requests, prompt, completion, dollars, seconds)


def plan(teacher: Teacher, inputs: TeacherInputs, runtime: Runtime, seed: int) -> dict[str, Estimate]:
    """Estimate the pool, test with gold, and both together; raises UserError as labelling does."""
    assert teacher.store
    count = len(inputs.rows)
    sample = rows_at(inputs.rows, set(random.Random(seed).sample(range(count), min(SAMPLE, count))))
    LabellingRun(replace(teacher, batch=False), inputs.program, sample, runtime).label(lambda row, outcome: None)
    requests = teacher.requests(inputs.program)
    with answer_store(teacher.store, teacher.busy) as store:
        sent = (body for row in sample for body in request_bodies(row["text"], requests, teacher.votes))
        answered = [(body, record) for body in sent if (record := store.get(content_key(body)))]
        if not answered:
            raise UserError(f"none of {len(sample)} rows was answered: there is nothing to estimate from")
        usages = [record["completion"]["usage"] for _, record in answered]
        rates = AnswerRates(
            prompt=sum(usage["prompt_tokens"] for usage in usages) / sum(characters(body) for body, _ in answered),
            completion=mean(usage["completion_tokens"] for usage in usages),
            seconds=median(record["seconds"] for _, record in answered),
        )

        def open_requests(rows: RowSource) -> Iterator[Body]:
            """Yield the requests of different texts that have no stored answer."""
            for text in dict.fromkeys(row["text"] for row in rows):
                for body in request_bodies(text, requests, teacher.votes):
                    if not still_answers(store.get(content_key(body)), body):
                        yield body

        pool, others = (
            estimate(len(rows), open_requests(rows), rates, teacher, runtime)
            for rows in (inputs.pool, JoinedRows(inputs.test, inputs.gold))
        )
    return {"pool": pool, "test and gold": others, "together": pool + others}


def duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def table(teacher: Teacher, estimates: Mapping[str, Estimate], runtime: Runtime) -> str:
    """Return the plan as a table, with what it rests on."""
    lines = [f"{'':15}{'rows':>10}{'requests':>10}{'prompt':>15}{'completion':>13}{'price':>12}{'time':>10}"]
    for name, part in estimates.items():
        price = "unknown" if part.dollars is None else f"${part.dollars:,.2f}"
        time = "1 day" if teacher.batch else duration(part.seconds)
        tokens = f"{part.prompt_tokens:>15,.0f}{part.completion_tokens:>13,.0f}"
        lines.append(f"{name:15}{part.rows:>10,}{part.requests:>10,}{tokens}{price:>12}{time:>10}")
    at_once = teacher.max_in_flight(runtime)
    lines.append(
        f"estimated from {SAMPLE} rows, whose answers are kept; time: with {at_once} requests in flight, if "
        f"{teacher.name} allows them"
    )
    if not teacher.price:
        lines.append(f"no price is known for {teacher.name}: {teacher.without_price}")
    return "\n".join(lines)


def main() -> None:
    with command("plan"):
        params = load_params()
        inputs = read_inputs(params)
        with open_teacher(params, inputs) as teacher:
            if teacher.store:
                print(table(teacher, plan(teacher, inputs, params.runtime, params.seed), params.runtime))
            else:
                print(f"the {teacher.name} teacher runs in this process: {len(inputs.rows):,} rows cost only a minute")


if __name__ == "__main__":
    main()
