"""Shared by all tests: where the repository and the real rows are, and temporary clones of the repository."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

# tests use local models only; without it transformers asks the hub first and waits
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parent.parent
BANKING77 = ROOT.parent / "shared/data/banking77"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="how often the labelling run is killed")


def pytest_configure() -> None:
    """Pin each xdist worker to its own cores: two engines that share cores run five times slower."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        cores, workers = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: workers] or cores)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices of a few hundred rows gain nothing from threads, which spin for ten times as long on busy cores."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def banking77() -> Path:
    """The folder of Banking77's own CSV files, which this repository may not hold."""
    if not BANKING77.is_dir():
        pytest.skip(f"Banking77's files are not at {BANKING77}")
    return BANKING77


def run(folder: Path, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder with this virtual environment's programs first."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        text=True,
        capture_output=True,
        env={**os.environ, "PATH": path, **environment},
        check=False,
    )
    assert not check or done.returncode == 0, (
        f"{' '.join(command)} exited {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done


def tracked_files() -> list[Path]:
    """What a commit of the working tree would hold."""
    listed = run(ROOT, "git", "ls-files", "-co", "--exclude-standard").stdout.splitlines()
    return [Path(name) for name in listed if (ROOT / name).is_file()]


def commit_all(folder: Path, message: str) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", message)


def make_clone(folder: Path) -> Path:
    """The working tree as it is, committed in a new repository."""
    for file in tracked_files():
        (folder / file.parent).mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, folder / file)
    run(folder, "git", "init", "-q", "-b", "main")
    run(folder, "git", "config", "user.name", "test")
    run(folder, "git", "config", "user.email", "test@example.invalid")
    commit_all(folder, "clone")
    return folder


@pytest.fixture
def clone(tmp_path: Path) -> Callable[[], Path]:
    """A maker of a clone in the test's own folder."""
    return lambda: make_clone(tmp_path / "clone")
