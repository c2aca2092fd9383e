"""What the commands that serve have in common."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from stages.parts.engines.http_client import EngineError
from stages.parts.run.errors import UserError
from stages.parts.run.machine import end_on_sigterm


@contextmanager
def serving_command() -> Iterator[None]:
    """The service's log on standard error; SIGTERM ends the block in good order; an error is one line and exit status
    1, Ctrl-C 130.
    """
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("serve").setLevel(logging.INFO)
    end_on_sigterm()
    try:
        yield
    except (UserError, EngineError) as error:
        sys.exit(f"serve: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
