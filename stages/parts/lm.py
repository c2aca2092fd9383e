"""DSPy language models for the parts of this pipeline, and DSPy's own settings."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
from dspy.clients.engines.lm15_engine import LM15Engine
from dspy.lm15 import Request, Response, RouterConfig
from tokenizers import Tokenizer

from stages.parts.errors import UserError
from stages.parts.label_probabilities import ALTERNATIVES
from stages.parts.params import EndpointTeacher, Style
from stages.parts.paths import cache
from stages.parts.task import StudentAdapter, adapter, answer_options
from stages.parts.vllm_server import ServedModel

RETRIES = 5  # with DSPy's exponential back-off, about a minute: enough for a rate limit or an engine's hiccup
REASONING_TOKENS = 256


@contextmanager
def using(lm: dspy.LM, prompt_adapter: dspy.Adapter | None = None) -> Iterator[None]:
    """Run programs on `lm`, by default with the task's plain adapter, counting tokens."""
    with dspy.context(lm=lm, adapter=prompt_adapter or adapter(), track_usage=True, disable_history=True):
        yield


def keep_answers() -> None:
    """Cache answers on disk in .cache, so that a killed run asks nothing twice. Model names must tell models apart: DSPy's keys ignore
    everything else about an engine."""
    dspy.configure_cache(enable_disk_cache=True, enable_memory_cache=False, disk_cache_dir=str(cache() / "dspy"))


class VllmEngine:
    """DSPy's own engine with request keys that only vLLM knows. Given to dspy.LM directly they would reroute each call through litellm,
    at four times the processor time (FACTS: 6.8 ms against 1.5 ms a call)."""

    def __init__(self, api_base: str, options: Mapping[str, Any], key: str) -> None:
        self.options = dict(options)
        self.engine = LM15Engine(RouterConfig(api_keys={"vllm": key}, base_urls={"vllm": api_base}))

    def complete(self, request: Request) -> Response:
        extensions = {**(request.config.extensions or {}), **self.options}
        response = self.engine.complete(replace(request, config=replace(request.config, extensions=extensions)))
        if "choice" in self.options["structured_outputs"]:
            response = replace(response, finish_reason="stop")  # a label that fills its last token is whole: DSPy would warn of each
        return response

    def __deepcopy__(self, memo: dict[int, object]) -> "VllmEngine":
        return self  # DSPy copies LMs freely; connections are shared


def max_tokens(style: Style, labels: Sequence[str], base: Path) -> int:
    """How many tokens an answer may have: the longest label's in the student's own tokens, and room for the reasoning before it."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    longest = max(len(tokenizer.encode(label, add_special_tokens=False).ids) for label in labels)
    return longest if style == "direct" else longest + REASONING_TOKENS


@contextmanager
def using_student(served: ServedModel, name: str, style: Style, labels: Sequence[str], most_tokens: int) -> Iterator[None]:
    """Run programs on a student in a running vLLM. Not cached: asking again is cheap, and times are measured on it."""
    engine = VllmEngine(served.api_base, answer_options(labels, style), served.key)
    student = served_lm(served.names[name], most_tokens, cache=False, top_logprobs=ALTERNATIVES, engine=engine)
    with using(student, StudentAdapter()):
        yield


def served_lm(name: str, most_tokens: int, **options: Any) -> dspy.LM:
    """A model behind a local vLLM, at temperature 0 and with the chosen tokens' log-probabilities."""
    return dspy.LM(f"hosted_vllm/{name}", temperature=0.0, max_tokens=most_tokens, logprobs=True, num_retries=RETRIES, **options)


def endpoint_lm(teacher: EndpointTeacher) -> dspy.LM:
    """A hosted model; raises UserError without a key."""
    key = os.environ.get("TEACHER_API_KEY")
    if not key:
        raise UserError("the api profile needs its teacher's key: set TEACHER_API_KEY")
    place = {"api_base": teacher.api_base} if teacher.api_base else {}
    return dspy.LM(teacher.model, api_key=key, temperature=0.0, max_tokens=teacher.max_tokens, num_retries=RETRIES, **place)
