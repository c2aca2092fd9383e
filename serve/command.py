"""What the commands that serve have in common."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from stages.parts.engines.http_client import EngineError
from stages.parts.run.commands import command


@contextmanager
def serving_command() -> Iterator[None]:
    """Run a command that serves, with the service's log on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("serve").setLevel(logging.INFO)
    with command("serve", EngineError):
        yield
