"""Which engines run for which student: one for a base with its adapters, one each for students that were trained whole."""

from contextlib import closing, contextmanager

import pytest

from stages.parts import vllm_server
from stages.parts.params import load_params
from stages.parts.vllm_server import ServedModel, students


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """A base, an adapter and two whole models on disk; the list of engines' models while they "run"."""
    for name, file in (("base", "config.json"), ("adapter", "adapter_config.json"), ("whole", "config.json"), ("other", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(name)
    up: list[str] = []

    @contextmanager
    def run(engine):
        up.append(engine.line[engine.line.index("--model") + 1].rpartition("/")[2])
        try:
            yield engine.served
        finally:
            up.pop()

    monkeypatch.setattr(vllm_server, "running", run)
    return tmp_path, up


def test_each_student_is_asked_for_while_its_own_engine_runs(engines):
    folder, up = engines
    found = []
    with closing(students(folder / "base", {name: folder / name for name in ("adapter", "whole", "other")}, load_params())) as each:
        for name, served in each:
            assert isinstance(served, ServedModel) and served.names[name].startswith(f"{name}-")
            found.append((name, *up))
    assert found == [("base", "base"), ("adapter", "base"), ("whole", "whole"), ("other", "other")]
    assert not up


def test_a_failure_ends_the_engine(engines):
    folder, up = engines
    with pytest.raises(KeyError), closing(students(folder / "base", {"whole": folder / "whole"}, load_params())) as each:
        for name, _ in each:
            if name == "whole":
                assert up == ["whole"]
                raise KeyError
    assert not up
