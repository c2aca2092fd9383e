"""Telling trackers of a stage never fails it, whatever their process does."""

import pytest
import yaml

from stages.parts.run import tracked
from tests.conftest import ROOT


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
    monkeypatch.setattr(tracked, "cache", lambda: tmp_path / ".cache")
    tracked.tell_trackers("report")
    assert says in capsys.readouterr().err
