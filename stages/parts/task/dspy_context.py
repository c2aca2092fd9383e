"""DSPy's settings while a program runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import dspy

from stages.parts.run.paths import cache
from stages.parts.task.prompt import TeacherFormat


@contextmanager
def using(lm: dspy.LM, prompt_format: dspy.Adapter | None = None) -> Iterator[None]:
    """Run programs on `lm`, by default in the teacher's format, counting tokens."""
    with dspy.context(lm=lm, adapter=prompt_format or TeacherFormat(), track_usage=True, disable_history=True):
        yield


def keep_answers() -> None:
    """Cache answers on disk in .cache, so that a killed run asks nothing twice. Model names must tell models apart: DSPy's keys ignore
    everything else about an engine."""
    dspy.configure_cache(enable_disk_cache=True, enable_memory_cache=False, disk_cache_dir=str(cache() / "dspy"))
