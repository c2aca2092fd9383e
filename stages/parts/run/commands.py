"""How every command ends: with one line on what the user can mend, never with a traceback for it."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.parts.run.errors import UserError
from stages.parts.run.files import NO_ROOM
from stages.parts.run.machine import end_on_sigterm

# Of paths that the user chose, or a `.cache` that is not theirs.
NOT_YOURS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


@contextmanager
def command(name: str, *also: type[Exception], stopped: str = "") -> Iterator[None]:
    """Run a command's block; exit in one line for a UserError, an exception of `also`, a missing package and a full
    disk.

    Exit status 1 for those, 130 after Ctrl-C (with the line `stopped`, if given). SIGTERM unwinds the block like an
    exception, so that its own `with` blocks shut engines down.
    """
    end_on_sigterm()
    one_line: tuple[type[Exception], ...] = (UserError, *also)
    try:
        yield
    except one_line as error:
        sys.exit(f"{name}: {error}{undo_hint()}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "stages", "serve"):
            raise
        sys.exit(
            f"{name}: this environment has no {package}: run `make setup` and use .venv/bin/python "
            "(requirements-serve.lock is enough for a student in the process alone)"
        )
    except OSError as error:
        if error.errno in NOT_YOURS and error.filename:
            sys.exit(f"{name}: {error.filename}: {error.strerror}: it has to be a path that you may use")
        if error.errno not in NO_ROOM:
            raise
        full = "a file-size limit (ulimit -f) is reached" if error.errno == errno.EFBIG else "the disk is full"
        sys.exit(f"{name}: {full} (while writing {error.filename or 'a file'}): free some space and run it again")
    except KeyboardInterrupt:
        if stopped:
            print(f"{name}: {stopped}", file=sys.stderr)
        sys.exit(130)


def undo_hint() -> str:
    """Return how to undo the parameters of a failed `dvc exp run -S ...`; nothing outside one.

    DVC writes such parameters into params.yaml and leaves them there when a stage fails.
    """
    in_workspace = Path(os.environ.get("DVC_ROOT", "")).resolve() == Path.cwd()
    if "DVC_EXP_NAME" not in os.environ or not in_workspace:
        return ""
    return " (params.yaml keeps the changes of this run: `git checkout HEAD -- params.yaml dvc.lock` goes back)"
