"""DSPy language models for the parts of this pipeline, and DSPy's own settings."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dspy

from stages.parts.errors import UserError
from stages.parts.params import EndpointTeacher, Style
from stages.parts.paths import cache
from stages.parts.task import adapter

RETRIES = 5  # with DSPy's exponential back-off, about a minute: enough for a rate limit or an engine's hiccup
STUDENT_MAX_TOKENS: dict[Style, int] = {"direct": 48, "chain_of_thought": 256}


@contextmanager
def using(lm: dspy.LM) -> Iterator[None]:
    """Run programs on `lm` with the task's adapter, counting tokens."""
    with dspy.context(lm=lm, adapter=adapter(), track_usage=True, disable_history=True):
        yield


def keep_answers() -> None:
    """Cache answers on disk in .cache, so that a killed run asks nothing twice. Model names must tell models apart: DSPy's keys ignore
    everything else about an engine."""
    dspy.configure_cache(enable_disk_cache=True, enable_memory_cache=False, disk_cache_dir=str(cache() / "dspy"))


def student_lm(name: str, api_base: str, style: Style) -> dspy.LM:
    """The student behind a local vLLM. Not cached: asking again is cheap, and times are measured on it."""
    return served_lm(name, api_base, STUDENT_MAX_TOKENS[style], cache=False)


def served_lm(name: str, api_base: str, max_tokens: int, **options: Any) -> dspy.LM:
    """A model behind a local vLLM, at temperature 0 and with the chosen tokens' log-probabilities."""
    return dspy.LM(
        f"hosted_vllm/{name}",
        api_base=api_base,
        temperature=0.0,
        max_tokens=max_tokens,
        logprobs=True,
        num_retries=RETRIES,
        **options,
    )


def endpoint_lm(teacher: EndpointTeacher) -> dspy.LM:
    """A hosted model; raises UserError without a key."""
    key = os.environ.get("TEACHER_API_KEY")
    if not key:
        raise UserError("the api profile needs its teacher's key: set TEACHER_API_KEY")
    place = {"api_base": teacher.api_base} if teacher.api_base else {}
    return dspy.LM(teacher.model, api_key=key, temperature=0.0, max_tokens=teacher.max_tokens, num_retries=RETRIES, **place)
