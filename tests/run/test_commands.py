"""How commands end."""

import errno

import pytest

from stages.parts.run.commands import command
from stages.parts.run.errors import UserError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("no gold rows"), "tune: no gold rows"),
        (ValueError("torn"), "tune: torn"),
        (
            OSError(errno.EDQUOT, "quota"),
            "tune: the disk is full (while writing a file): free some space and run it again",
        ),
        (
            OSError(errno.EFBIG, "large", "x"),
            "tune: a file-size limit (ulimit -f) is reached (while writing x): free some space and run it again",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", ".cache/x"),
            "tune: .cache/x: Permission denied: it has to be a path that you may use",
        ),
        (
            ModuleNotFoundError("No module named 'scipy.stats'", name="scipy.stats"),
            "tune: this environment has no scipy: run `make setup` and use .venv/bin/python "
            "(requirements-serve.lock is enough for a student in the process alone)",
        ),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, status, capsys):
    with pytest.raises(SystemExit) as caught, command("tune", ValueError, stopped="stopped half-way"):
        raise error
    assert caught.value.code == status
    assert capsys.readouterr().err == ("tune: stopped half-way\n" if status == 130 else "")


@pytest.mark.parametrize(
    "error",
    [ValueError("a fault of ours"), PermissionError(errno.EACCES, "denied"), ModuleNotFoundError(name="serve.gone")],
)
def test_anything_else_keeps_its_traceback(error):
    with pytest.raises(type(error)), command("tune"):
        raise error


def test_parameters_that_a_failed_experiment_leaves_behind_are_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_EXP_NAME", "taut-lamb")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with pytest.raises(SystemExit, match="keeps the changes of this run"), command("lora"):
        raise UserError("no rows")
