"""Processes that end when they should."""

import shutil
import signal


def end_on_sigterm() -> None:
    """Make SIGTERM end the process as an exception does, so that `with` blocks take engines down."""

    def terminated(signum: int, _frame: object) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, terminated)


def dying_with_parent() -> list[str]:
    """A prefix that ends a command when this process is killed, even by SIGKILL (util-linux; nothing where it is missing)."""
    return ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
