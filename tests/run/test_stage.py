"""How a stage ends, what it notes, and that tracking fails none."""

import errno
import json

import pytest
import yaml

from stages.parts.run import stage
from stages.parts.run.errors import UserError
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (UserError("split.gold=9 leaves no pool"), "files: split.gold=9 leaves no pool"),
        (OSError(errno.ENOSPC, "No space left on device", "data/x"), "files: the disk is full (while writing data/x)"),
    ],
)
def test_a_stage_ends_with_one_line_and_notes_no_time(tmp_path, monkeypatch, error, says):
    monkeypatch.chdir(tmp_path)

    def main() -> None:
        raise error

    main.__module__ = "stages.parts.run.files"
    with pytest.raises(SystemExit) as caught:
        stage.run_stage(main)
    assert str(caught.value.code).startswith(says) and "\n" not in str(caught.value.code)
    assert not list(tmp_path.iterdir())


def test_a_stage_notes_its_time_and_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def main() -> None:
        pass

    main.__module__ = "stages.parts.run.files"
    stage.run_stage(main)
    noted = json.loads((tmp_path / "reports/times/files.json").read_text())
    assert noted["seconds"] >= 0 and noted["peak_memory_mb"] > 10


@pytest.mark.parametrize(
    ("program", "says"),
    [("#!/bin/sh\nkill -9 $$\n", "report is not tracked: it ended with -9"), ("no program", "Exec format error")],
)
def test_a_tracking_process_that_is_killed_fails_no_stage(tmp_path, monkeypatch, capsys, program, says):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["tracking"]["mlflow"] = "sqlite:///mlflow.db"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    python = tmp_path / ".venv-tracking/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(program)
    python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "cache", lambda: tmp_path / ".cache")
    stage.log_to_trackers("report")
    assert says in capsys.readouterr().err
