"""What an engine is to the code that uses it: stages and the service know these names and no others.

A new kind of engine is a class with `EngineKind`'s members, beside vllm.py and sglang.py, and an entry in KINDS of
process.py. A kind that others run has the members of `EndpointKind`, as endpoint.py has.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stages.parts.engines.layout import Layout
from stages.parts.run.errors import UserError
from stages.parts.run.files import folder_sha256
from stages.parts.run.machine import Gpu
from stages.parts.task.answer import AnswerForm

NATIVE_FP8 = (8, 9)  # compute capability; weights of 8 bits are unpacked on older GPUs, caches are not


@dataclass(frozen=True)
class Precision:
    """In how many bits a model is held on GPUs: `weights` as they are on disk or fp8, the KV cache as the weights' type
    (auto) or fp8.
    """

    weights: str | None = None
    kv_cache: str = "auto"

    def check(self, gpus: Sequence[Gpu]) -> None:
        """Raise UserError for a precision that these GPUs lack, before anything is downloaded for them."""
        for gpu in gpus:
            if self.kv_cache == "fp8" and gpu.capability < NATIVE_FP8:
                raise UserError(
                    f"kv_cache_dtype fp8 needs compute capability {NATIVE_FP8[0]}.{NATIVE_FP8[1]} (Ada, Hopper and "
                    f"later), and {gpu.name} has {gpu.capability[0]}.{gpu.capability[1]}: set teacher.kv_cache_dtype "
                    f"to auto"
                )


@dataclass(frozen=True)
class AdapterSlots:
    """Slots for adapters loaded while an engine runs, all of which one batch may use, and their maximum rank."""

    count: int
    max_rank: int


@dataclass(frozen=True)
class Launch:
    """What an engine is started with. `adapters` are folders by the names they are served under, `slots` for others
    that are loaded while it runs; `layout` None means a CPU. On GPUs, it takes `memory_share` of each of `devices`, as
    CUDA_VISIBLE_DEVICES names them; `free_share` is free there before it starts."""

    model: Path
    name: str
    adapters: Mapping[str, Path]
    port: int
    key: str
    layout: Layout | None
    max_model_len: int | None
    kv_cache_gib: int
    precision: Precision = Precision()
    slots: AdapterSlots | None = None
    devices: str = ""
    memory_share: float = 0.9
    free_share: float = 1.0


class EndpointKind(Protocol):
    """What a client knows of an engine's kind. It serves OpenAI's protocol under an address that ends in /v1, and wants
    a key.
    """

    name: str
    max_alternatives: int
    """Of how many tokens it reports log-probabilities at each position, at most."""

    def models(self, cards: Sequence[Mapping[str, Any]]) -> list[str]:
        """What requests may name as their model, from the entries of /v1/models; raises KeyError where they are
        none.
        """
        ...

    def answer_options(self, form: AnswerForm | None) -> dict[str, Any]:
        """Return request keys beyond OpenAI's protocol: continue the prompt's last message, and keep to the form, if
        any.
        """
        ...

    def says_too_long(self, message: str) -> bool:
        """Whether the error message of a 400 says that the prompt has too many tokens."""
        ...

    def refuses_all(self, status: int, message: str) -> str | None:
        """Return why it will refuse every request (the key, the model, no credit), in one line; None if the status
        does not mean that.
        """
        ...

    def complaint(self, status: int, message: str) -> str:
        """Return any other error status in one line."""
        ...


class EngineKind(EndpointKind, Protocol):
    """All that is peculiar to one kind of engine of our own."""

    health: str
    """The path that answers 200 once it serves."""

    def command(self, launch: Launch) -> list[str]:
        """The command line that starts it."""
        ...

    def adapter_model(self, base: str, adapter: str) -> str:
        """What a request names as its model to reach an adapter of a base, both by the names they are served under."""
        ...

    def environment(self, launch: Launch) -> dict[str, str]:
        """Variables beside this process's own. The key goes here, where other users can't read it."""
        ...


class OwnEngineErrors:
    """The error statuses of an engine that this project starts, for its kinds to inherit: only the key concerns every
    request, and the engine's log has the rest.
    """

    def refuses_all(self, status: int, message: str) -> str | None:
        return "the engine wants another key than ENGINE_API_KEY holds" if status == 401 else None

    def complaint(self, status: int, message: str) -> str:
        return f"the engine answered {status}; its log says why"


@dataclass(frozen=True)
class ServedModel:
    """Where an engine answers: `api_base` ends in /v1; `names` maps "base" and each adapter to its name there; it wants
    `key`. `copies` of the model share the requests.
    """

    api_base: str
    names: Mapping[str, str]
    key: str
    kind: EndpointKind
    copies: int = 1


class Engine(Protocol):
    """An engine that answers, or will: one of our own (process.py), or one that runs already (`RunningEngine`)."""

    @property
    def served(self) -> ServedModel: ...


@dataclass(frozen=True)
class RunningEngine:
    """An engine that somebody else started and ends."""

    served: ServedModel


def served_name(kind: str, folder: Path) -> str:
    """A name that changes with the weights: caches go by the name alone."""
    return f"{kind}-{folder_sha256(folder)[:12]}"


def refuse_trained_modules(adapters: Iterable[Path], engine: str) -> None:
    """Raise UserError for an adapter with whole modules, such as trained embeddings: no engine serves these."""
    for folder in adapters:
        if json.loads((folder / "adapter_config.json").read_text()).get("modules_to_save"):
            raise UserError(
                f"{folder} brings trained embeddings, which {engine} can't serve beside a base: set "
                f"runtime.weights to merged, or train it "
                "with train.embeddings false"
            )
