"""A hosted teacher behind OpenAI's protocol."""

import os

import dspy

from stages.parts.engines.dspy_lm import RETRIES
from stages.parts.run.errors import UserError
from stages.parts.run.params import EndpointSettings


def endpoint_lm(teacher: EndpointSettings) -> dspy.LM:
    """A hosted model; raises UserError without a key."""
    key = os.environ.get("TEACHER_API_KEY")
    if not key:
        raise UserError("the api profile needs its teacher's key: set TEACHER_API_KEY")
    place = {"api_base": teacher.api_base} if teacher.api_base else {}
    return dspy.LM(teacher.model, api_key=key, temperature=0.0, max_tokens=teacher.max_tokens, num_retries=RETRIES, **place)
