"""Estimate what labelling takes before it runs: requests, tokens, dollars and time, from a sample of the rows.

python -m stages.parts.tuning.plan      (`make plan`)

The sample's answers are kept, so the run that follows does not pay for them again.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from stages.parts.engines.budget import DISCOUNT, characters
from stages.parts.engines.caching_client import ChatClient, content_key, still_answers
from stages.parts.run.answer_store import AnswerStore, answer_store
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.params import Params, Runtime, ServedTeacherSettings, load_params
from stages.parts.task.program import IntentClassifier
from stages.parts.teachers.inputs import JoinedRows, RowSource, TeacherInputs, read_inputs, rows_at
from stages.parts.teachers.labelling import LabellingRun, request_bodies
from stages.parts.teachers.teacher import Teacher, open_teacher, served_teacher
from stages.parts.tuning.gpu_plan import duration, gpu_plan

SAMPLE = 20  # rows

Body = Mapping[str, Any]


@dataclass(frozen=True)
class AnswerRates:
    """What the sample's answers took: prompt tokens a character, completion tokens and seconds an answer.

    `estimated` tokens: the endpoint reports none.
    """

    prompt: float
    completion: float
    seconds: float
    estimated: bool


@dataclass(frozen=True)
class Estimate:
    """What some rows take. `requests` are those without a stored answer; `dollars` is None without a price.

    `estimated` says that the endpoint reports no tokens, and that these are estimated from the texts' length.
    """

    rows: int
    requests: int
    prompt_tokens: float
    completion_tokens: float
    dollars: float | None
    seconds: float
    estimated: bool

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(
            self.rows + other.rows,
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            None if self.dollars is None or other.dollars is None else self.dollars + other.dollars,
            self.seconds + other.seconds,
            self.estimated or other.estimated,
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
    return Estimate(rows, requests, prompt, completion, dollars, seconds, rates.estimated)


def plan(teacher: Teacher, inputs: TeacherInputs, runtime: Runtime, seed: int) -> dict[str, Estimate]:
    """Estimate the pool, test with gold, and both together; raises UserError as labelling does."""
    assert teacher.store
    count = len(inputs.rows)
    sample = rows_at(inputs.rows, set(random.Random(seed).sample(range(count), min(SAMPLE, count))))
    run = LabellingRun(replace(teacher, batch=False), inputs.program, sample, runtime)
    spending = run.label(lambda row, outcome: None)
    requests = teacher.requests(inputs.program)
    with answer_store(teacher.store, teacher.busy) as store:
        sent = (body for row in sample for body in request_bodies(row["text"], requests, teacher.votes))
        seconds = [record["seconds"] for body in sent if (record := store.get(content_key(body)))]
        if not seconds:
            raise UserError(f"none of {len(sample)} rows was answered: there is nothing to estimate from")
        rates = AnswerRates(
            prompt=spending.prompt_tokens / run.budget.characters,
            completion=spending.completion_tokens / spending.answers,
            seconds=median(seconds),
            estimated=bool(spending.estimated),
        )
        pool, others = (
            estimate(len(rows), open_requests(rows, inputs.program, teacher, store), rates, teacher, runtime)
            for rows in parts(inputs).values()
        )
    return {"pool": pool, "test and gold": others, "together": pool + others}


def parts(inputs: TeacherInputs) -> dict[str, RowSource]:
    return {"pool": inputs.pool, "test and gold": JoinedRows(inputs.test, inputs.gold)}


def open_requests(rows: RowSource, program: IntentClassifier, teacher: Teacher, store: AnswerStore) -> Iterator[Body]:
    """Yield the requests of different texts that have no stored answer."""
    requests = teacher.requests(program)
    for text in dict.fromkeys(row["text"] for row in rows):
        for body in request_bodies(text, requests, teacher.votes):
            if not still_answers(store.get(content_key(body)), body):
                yield body


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
    if any(part.estimated for part in estimates.values()):
        lines.append(f"{teacher.name} reports no usage: tokens and price are estimated from the length of texts")
    if not teacher.price:
        lines.append(f"no price is known for {teacher.name}: {teacher.without_price}")
    return "\n".join(lines)


def open_answers(inputs: TeacherInputs, teacher: Teacher) -> dict[str, int]:
    """Return how many answers the teacher's store lacks, by the part of the rows."""
    assert teacher.store
    with answer_store(teacher.store, teacher.busy) as store:
        return {
            name: sum(1 for _ in open_requests(rows, inputs.program, teacher, store))
            for name, rows in parts(inputs).items()
        }


def not_connected() -> AbstractAsyncContextManager[ChatClient]:
    raise NotImplementedError("a plan for a model on GPUs sends no request")


def plan_for(params: Params) -> str:
    """Return the plan of the profile; raises UserError if it can't be made."""
    inputs = read_inputs(params)
    if isinstance(params.teacher, ServedTeacherSettings):
        # An engine that holds 70B would have to be downloaded and started to answer a sample.
        teacher = served_teacher(params.teacher, connect=not_connected, copies=1)
        return "\n".join(gpu_plan(params, open_answers(inputs, teacher)))
    with open_teacher(params, inputs) as teacher:
        if not teacher.store:
            return f"the {teacher.name} teacher runs in this process: {len(inputs.rows):,} rows cost only a minute"
        labelling = table(teacher, plan(teacher, inputs, params.runtime, params.seed), params.runtime)
    if not params.needs_gpus:
        return labelling
    try:
        return "\n".join([labelling, "", *gpu_plan(params, {})])
    except UserError as error:  # what was paid for is shown
        return f"{labelling}\n\nthe student can't be planned: {error}"


def main() -> None:
    with command("plan"):
        print(plan_for(load_params()))


if __name__ == "__main__":
    main()
