"""Which engines run for which student: by default one each; adapters beside their base where runtime.weights says so."""

import json
from contextlib import closing, contextmanager

import pytest

from stages.parts.engines.engine import ServedModel
from stages.parts.run.params import load_params
from stages.parts.students import serving as module
from stages.parts.students.serving import students


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """A base, an adapter and two whole models on disk; the list of engines' models while they "run"."""
    for name, file in (("base", "config.json"), ("adapter", "adapter_config.json"), ("whole", "config.json"), ("other", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps({"r": 4, "of": name}))
    up: list[str] = []

    @contextmanager
    def run(engine):
        up.append(engine.line[engine.line.index("--model") + 1].rpartition("/")[2])
        try:
            yield engine.served
        finally:
            up.pop()

    monkeypatch.setattr(module, "running", run)
    monkeypatch.setattr(module, "merged", lambda base, adapter: tmp_path / "merged")
    return tmp_path, up


@pytest.mark.parametrize(("weights", "engine"), [("merged", "merged"), ("adapter", "base")])
def test_each_student_is_asked_for_while_its_own_engine_runs(engines, weights, engine):
    folder, up = engines
    params = load_params()
    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"weights": weights})})
    found = {}
    with closing(students(folder / "base", {name: folder / name for name in ("adapter", "whole", "other")}, params)) as each:
        for name, served in each:
            assert isinstance(served, ServedModel) and served.names[name].startswith(f"{name}-")
            found[name] = list(up)
    assert found == {"base": ["base"], "adapter": [engine], "whole": ["whole"], "other": ["other"]}
    assert not up


def test_a_failure_ends_the_engine(engines):
    folder, up = engines
    with pytest.raises(KeyError), closing(students(folder / "base", {"whole": folder / "whole"}, load_params())) as each:
        for name, _ in each:
            if name == "whole":
                assert up == ["whole"]
                raise KeyError
    assert not up
