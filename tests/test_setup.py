"""The set-up's refusals: each one clear line, non-zero, and what was there stays."""

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import run

PYPI_IS_AWAY = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_RETRIES": "0",
}


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


def setup(folder: Path, **environment: str):
    return run(folder, "make", "setup", check=False, **{"PYTHON": sys.executable, **environment})


def test_make_alone_prints_help(clone):
    told = run(clone(), "make").stdout
    assert all(f"make {target} " in told for target in ("setup", "repro", "test", "lint", "lock"))


def test_an_old_python_is_named(clone, tmp_path):
    old = program(
        tmp_path / "bin", "python3.9", 'case "$*" in *version_info*) exit 1;; --version) echo Python 3.9.18;; esac'
    )
    done = setup(clone(), PYTHON=str(old))
    assert done.returncode != 0
    assert "setup: Python 3.9.18 will not do: use Python 3.11, 3.12 or 3.13" in done.stderr


def test_a_missing_python_is_named(clone):
    done = setup(clone(), PYTHON="python9.9")
    assert done.returncode != 0 and "setup: python9.9 not found" in done.stderr


def test_a_full_disk_is_named_before_anything_is_written(clone, tmp_path):
    df = program(tmp_path / "bin", "df", "echo header; echo /dev/x 100 99 1048576 99% /")
    folder = clone()
    done = run(folder, "make", "setup", check=False, PATH=f"{df.parent}:{os.environ['PATH']}", PYTHON=sys.executable)
    assert done.returncode != 0 and "1 GiB are free here, 6 GiB are needed" in done.stderr
    assert not (folder / ".venv").exists()


@pytest.mark.slow
def test_no_network_is_named_and_the_next_make_goes_on(clone):
    folder = clone()
    done = setup(folder, **PYPI_IS_AWAY, PIP_CONFIG_FILE=os.devnull)
    assert done.returncode != 0
    assert "setup: the packages could not be installed: check the network" in done.stderr
    assert (folder / ".venv/bin/python").exists() and not list((folder / ".venv").glob(".ready-*"))


@pytest.mark.parametrize(("first", "then"), [("cpu", "gpu"), ("gpu", "cpu")])
def test_the_other_hardwares_environment_is_refused(clone, first, then):
    folder = clone()
    (folder / ".venv").mkdir()
    (folder / f".venv/.ready-{first}").touch()
    done = setup(folder, HARDWARE=then)
    assert (
        done.returncode != 0
        and f"setup: .venv has the {first} builds" in done.stderr
        and "rm -rf .venv first" in done.stderr
    )
    assert [path.name for path in (folder / ".venv").iterdir()] == [f".ready-{first}"]


@pytest.mark.parametrize("hardware", ["tpu"])
def test_unknown_hardware_is_refused(clone, hardware):
    done = setup(clone(), HARDWARE=hardware)
    assert done.returncode != 0 and f"requirements-{hardware}.lock" in done.stderr + done.stdout
