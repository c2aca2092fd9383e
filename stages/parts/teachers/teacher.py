"""The profile's teacher, ready for requests: on an engine of our own, behind an endpoint, or the linear one in this
process.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from stages.parts.engines.budget import Budget, Price
from stages.parts.engines.caching_client import ChatClient
from stages.parts.engines.endpoint import HostedEndpoint
from stages.parts.engines.engine import EndpointKind, Precision
from stages.parts.engines.http_client import engine_client
from stages.parts.engines.process import KINDS, ModelToServe, prepare, running
from stages.parts.engines.rate_limit import RateLimit
from stages.parts.engines.requests import ProgramRequests
from stages.parts.run.errors import UserError
from stages.parts.run.files import fingerprint
from stages.parts.run.machine import visible_gpus
from stages.parts.run.params import HostedTeacherSettings, LinearTeacherSettings, Params, Runtime, ServedTeacherSettings
from stages.parts.run.paths import cache
from stages.parts.task.program import IntentClassifier
from stages.parts.task.prompt import TeacherFormat
from stages.parts.teachers.hosted import KEY_NAME, check_votes, hosted_model, known_price
from stages.parts.teachers.inputs import TeacherInputs
from stages.parts.weights.fetch import fetch, revision


@dataclass(frozen=True)
class Teacher:
    """A model that labels. `connect` opens a client, `name` is the model's in requests, `votes` the answers per row,
    `repeat` the pool rows that are answered a second time.

    `store` is the file of its answers, None if they cost nothing; `price` is None if it is not known;
    `batch` says whether to use the vendor's batch API; `copies` of the model share the requests.
    """

    name: str
    kind: EndpointKind
    connect: Callable[[], AbstractAsyncContextManager[ChatClient]]
    max_tokens: int
    store: Path | None = None
    price: Price | None = None
    options: dict[str, Any] = field(default_factory=dict)
    batch: bool = False
    votes: int = 1
    repeat: int = 0
    copies: int = 1

    @property
    def without_price(self) -> str:
        """What a user can do about an unknown price: engines of one's own have none."""
        set_it = "set teacher.price in its profile, or " if isinstance(self.kind, HostedEndpoint) else ""
        return f"{set_it}use runtime.budget_tokens"

    @property
    def busy(self) -> str:
        """The error for a second run with the same teacher."""
        return f"another run is querying {self.name}: wait for it, its answers are shared"

    def requests(self, program: IntentClassifier) -> ProgramRequests:
        """Return what builds a program's requests to this teacher and parses its completions."""
        return ProgramRequests(program, self.kind, self.name, self.max_tokens, TeacherFormat(), self.options)

    def max_in_flight(self, runtime: Runtime) -> int:
        """Return how many requests may be in flight: as many as allowed to one model, for each copy of it."""
        return runtime.max_in_flight * self.copies

    def rate_limit(self, runtime: Runtime) -> RateLimit:
        return RateLimit(self.max_in_flight(runtime), runtime.requests_per_minute, runtime.tokens_per_minute)

    def budget(self, runtime: Runtime) -> Budget:
        """Return the run's token budget; raises UserError for a budget in dollars if the price is not known."""
        if runtime.budget_usd and not self.price:
            raise UserError(f"runtime.budget_usd needs a price, and {self.name}'s is not known: {self.without_price}")
        return Budget(self.price, runtime.budget_usd, runtime.budget_tokens)


@contextmanager
def open_teacher(params: Params, inputs: TeacherInputs) -> Iterator[Teacher]:
    """Yield the profile's teacher; raises UserError if it can't be reached or started."""
    settings, timeout_s = params.teacher, params.runtime.timeout_s
    if isinstance(settings, ServedTeacherSettings):
        precision = Precision(settings.quantization, settings.kv_cache_dtype)
        precision.check(visible_gpus())  # before anything large is downloaded
        weights = fetch(settings.weights)
        model = ModelToServe(
            weights,
            served_teacher_name(settings),
            on_gpus=True,
            max_model_len=settings.max_model_len,
            precision=precision,
        )
        with running(prepare(KINDS[settings.kind], model, params.runtime)) as served:
            yield served_teacher(settings, partial(engine_client, served, timeout_s), served.copies)
    elif isinstance(settings, HostedTeacherSettings):
        check_votes(settings)
        served = hosted_model(settings)
        name = served.names["base"]
        yield Teacher(
            name=name,
            kind=served.kind,
            connect=partial(engine_client, served, timeout_s),
            max_tokens=settings.max_tokens,
            store=answer_file(name),
            price=known_price(settings),
            options=settings.options,
            batch=settings.batch,
            votes=settings.votes,
            repeat=settings.repeat,
        )
    elif isinstance(settings, LinearTeacherSettings):
        from stages.parts.encoder.vectors import read_embeddings
        from stages.parts.teachers.linear_client import linear_client  # takes four seconds to import

        client = linear_client(inputs, params.seed, read_embeddings())

        @asynccontextmanager
        async def in_process() -> AsyncIterator[ChatClient]:
            yield client

        yield Teacher("linear", HostedEndpoint(KEY_NAME), in_process, max_tokens=400, price=Price(0, 0))
    else:
        assert_never(settings)


def served_teacher(
    settings: ServedTeacherSettings, connect: Callable[[], AbstractAsyncContextManager[ChatClient]], copies: int
) -> Teacher:
    """Return the teacher that `copies` of a model on an engine of our own are."""
    name = served_teacher_name(settings)
    return Teacher(
        name=name,
        kind=KINDS[settings.kind],
        connect=connect,
        max_tokens=settings.max_tokens,
        store=answer_file(name),
        votes=settings.votes,
        repeat=settings.repeat,
        copies=copies,
    )


def served_teacher_name(settings: ServedTeacherSettings) -> str:
    """Return the model's name in requests, by which answers are kept: it stands for the weights and their precision."""
    return "@".join(filter(None, (settings.model, revision(settings.weights), settings.quantization)))


def answer_file(model: str) -> Path:
    """Return the path of a model's answers: a file a model, so that runs with others are not locked out."""
    readable = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in model)[-60:]
    return cache() / "answers" / f"{readable}-{fingerprint(model)[:8]}.sqlite"
