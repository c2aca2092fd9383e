"""DSPy's settings while a program runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import dspy

from stages.parts.task.prompt import TeacherFormat


@contextmanager
def using(lm: dspy.LM, prompt_format: dspy.Adapter | None = None) -> Iterator[None]:
    """Run programs on `lm`, by default in the teacher's format, counting tokens."""
    with dspy.context(lm=lm, adapter=prompt_format or TeacherFormat(), track_usage=True, disable_history=True):
        yield
