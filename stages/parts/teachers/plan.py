"""What labelling will cost, before it does: a few rows are asked, and the rest is reckoned from them. `make plan`

python -m stages.parts.teachers.plan

The rows that it asks are in the teacher's log: the run that follows does not ask them again.
"""

import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any

from stages.parts.engines.budget import DISCOUNT, characters
from stages.parts.engines.caching_client import content_key, still_answers
from stages.parts.engines.requests import ProgramRequests
from stages.parts.run.append_log import append_log
from stages.parts.run.errors import UserError
from stages.parts.run.params import Runtime, load_params
from stages.parts.task.prompt import TeacherFormat
from stages.parts.teachers.labelling import BUSY, bodies_of, label_all
from stages.parts.teachers.questions import Questions, read_questions
from stages.parts.teachers.rows import JoinedRows, RowSource, at_places
from stages.parts.teachers.teacher import Teacher, teacher_of

ASKED = 20  # rows

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Rates:
    """What rows that were asked say of the others: prompt tokens a character, completion tokens and seconds an
    answer.
    """

    prompt: float
    completion: float
    seconds: float


@dataclass(frozen=True)
class Part:
    """What a part of the rows will take. Requests are those whose answers are not there yet; `dollars` None where no
    price is known.
    """

    rows: int
    requests: int
    prompt_tokens: float
    completion_tokens: float
    dollars: float | None
    seconds: float

    def __add__(self, other: "Part") -> "Part":
        return Part(
            self.rows + other.rows,
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            None if self.dollars is None or other.dollars is None else self.dollars + other.dollars,
            self.seconds + other.seconds,
        )


def part(rows: int, bodies: Iterable[Body], rates: Rates, teacher: Teacher, runtime: Runtime) -> Part:
    """Of `rows` rows, `bodies` are to be asked. Seconds: with `runtime.max_in_flight` in flight, or by what the
    endpoint allows a minute.
    """
    requests = length = 0
    for body in bodies:
        requests += 1
        length += characters(body)
    prompt, completion = rates.prompt * length, rates.completion * requests
    seconds = rates.seconds * requests / runtime.max_in_flight
    if runtime.requests_per_minute:
        seconds = max(seconds, 60 * requests / runtime.requests_per_minute)
    if runtime.tokens_per_minute:
        seconds = max(seconds, 60 * (prompt + completion) / runtime.tokens_per_minute)
    dollars = None
    if teacher.price:
        dollars = (
            (prompt * teacher.price.prompt + completion * teacher.price.completion)
            / 1e6
            * (DISCOUNT if teacher.batch else 1)
        )
    return Part(rows, requests, prompt, completion, dollars, seconds)


def plan(teacher: Teacher, questions: Questions, runtime: Runtime, seed: int) -> dict[str, Part]:
    """The pool, test with gold, and both together; raises UserError as labelling does."""
    assert teacher.log
    count = len(questions.rows)
    few = at_places(questions.rows, set(random.Random(seed).sample(range(count), min(ASKED, count))))
    label_all(replace(teacher, batch=False), questions.program, few, runtime, lambda row, answer: None)
    requests = ProgramRequests(
        questions.program, teacher.kind, teacher.name, teacher.max_tokens, TeacherFormat(), teacher.options
    )
    with append_log(teacher.log, BUSY.format(teacher.name)) as log:
        asked = [
            (body, log.get(content_key(body)))
            for row in few
            for body in bodies_of(row["text"], requests, teacher.votes)
        ]
        answered = [(body, record) for body, record in asked if record]
        if not answered:
            raise UserError(f"none of {len(few)} rows was answered: nothing can be reckoned from them")
        usages = [record["completion"]["usage"] for _, record in answered]
        rates = Rates(
            prompt=sum(usage["prompt_tokens"] for usage in usages) / sum(characters(body) for body, _ in answered),
            completion=mean(usage["completion_tokens"] for usage in usages),
            seconds=median(record["seconds"] for _, record in answered),
        )

        def open_requests(rows: RowSource) -> Iterator[Body]:
            """Of different texts, those that the log does not answer."""
            for text in dict.fromkeys(row["text"] for row in rows):
                for body in bodies_of(text, requests, teacher.votes):
                    if not still_answers(log.get(content_key(body)), body):
                        yield body

        others = JoinedRows(questions.test, questions.gold)
        of_pool, of_others = (
            part(len(rows), open_requests(rows), rates, teacher, runtime) for rows in (questions.pool, others)
        )
    return {"pool": of_pool, "test and gold": of_others, "together": of_pool + of_others}


def duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def told(teacher: Teacher, parts: Mapping[str, Part], runtime: Runtime) -> str:
    """The plan as a table."""
    lines = [f"{'':15}{'rows':>10}{'requests':>10}{'prompt':>15}{'completion':>13}{'price':>12}{'time':>10}"]
    for name, takes in parts.items():
        price = "unknown" if takes.dollars is None else f"${takes.dollars:,.2f}"
        time = "1 day" if teacher.batch else duration(takes.seconds)
        tokens = f"{takes.prompt_tokens:>15,.0f}{takes.completion_tokens:>13,.0f}"
        lines.append(f"{name:15}{takes.rows:>10,}{takes.requests:>10,}{tokens}{price:>12}{time:>10}")
    lines.append(
        f"reckoned from {ASKED} rows, which are asked and kept; time: {runtime.max_in_flight} requests in flight, "
        f"if {teacher.name} bears them"
    )
    if not teacher.price:
        lines.append(f"no price is known for {teacher.name}: {teacher.without_price}")
    return "\n".join(lines)


def main() -> None:
    params = load_params()
    try:
        questions = read_questions(params)
        with teacher_of(params, questions) as teacher:
            if not teacher.log:
                print(
                    f"the {teacher.name} teacher runs in this process: {len(questions.rows):,} rows cost nothing "
                    f"but a minute"
                )
            else:
                print(told(teacher, plan(teacher, questions, params.runtime, params.seed), params.runtime))
    except UserError as error:
        sys.exit(f"plan: {error}")


if __name__ == "__main__":
    main()
