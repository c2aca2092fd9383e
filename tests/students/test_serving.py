"""Which engines run for which student: by default one each; adapters beside their base where runtime.weights says
so.
"""

import json
from contextlib import closing, contextmanager

import pytest

from stages.parts.engines.engine import ServedModel
from stages.parts.run.params import load_params
from stages.parts.students import serving as module
from stages.parts.students.serving import students


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """A base, an adapter and two whole models on disk; the lists of engines' models that are asked, and of those that
    have started and not ended."""
    for name, file in (
        ("base", "config.json"),
        ("adapter", "adapter_config.json"),
        ("whole", "config.json"),
        ("other", "config.json"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps({"r": 4, "name": name}))
    asked: list[str] = []
    alive: list[str] = []

    def model(engine):
        return engine.line[engine.line.index("--model") + 1].rpartition("/")[2]

    def stop(engine):
        if model(engine) in alive:
            alive.remove(model(engine))

    @contextmanager
    def run(engine):
        assert model(engine) in alive
        asked.append(model(engine))
        try:
            yield engine.served
        finally:
            asked.pop()
            stop(engine)

    monkeypatch.setattr(module, "running", run)
    monkeypatch.setattr(module.EngineProcess, "start", lambda engine: alive.append(model(engine)))
    monkeypatch.setattr(module.EngineProcess, "wait_until_up", lambda _: None)
    monkeypatch.setattr(module.EngineProcess, "stop", stop)
    monkeypatch.setattr(module, "merged", lambda base, adapter: tmp_path / "merged")
    return tmp_path, asked, alive


@pytest.mark.parametrize(("weights", "engine"), [("merged", "merged"), ("adapter", "base")])
def test_each_student_is_asked_for_while_its_own_engine_runs(engines, weights, engine):
    folder, asked, alive = engines
    params = load_params()
    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"weights": weights})})
    found = {}
    with closing(
        students(folder / "base", {name: folder / name for name in ("adapter", "whole", "other")}, params)
    ) as each:
        for name, served in each:
            assert isinstance(served, ServedModel) and served.names[name].startswith(f"{name}-")
            found[name] = list(asked)
    assert found == {"base": ["base"], "adapter": [engine], "whole": ["whole"], "other": ["other"]}
    assert not asked and not alive


def test_the_next_engine_starts_ahead_unless_they_would_share_a_port(engines):
    folder, _, alive = engines
    params = load_params()
    for port, wanted in (
        (None, [["base", "whole"], ["whole", "other"], ["other"]]),
        (8001, [["base"], ["whole"], ["other"]]),
    ):
        params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"port": port})})
        with closing(students(folder / "base", {name: folder / name for name in ("whole", "other")}, params)) as each:
            assert [list(alive) for _ in each] == wanted


def test_a_failure_ends_the_engines(engines):
    folder, asked, alive = engines
    with (
        pytest.raises(KeyError),
        closing(students(folder / "base", {"whole": folder / "whole"}, load_params())) as each,
    ):
        for name, _ in each:
            if name == "base":
                assert asked == ["base"] and alive == ["base", "whole"]
                raise KeyError
    assert not asked and not alive
