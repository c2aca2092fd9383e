"""Many students on one base, by the real command: what is taken in, what is refused, and what vLLM then answers."""

import asyncio
import itertools
import json
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import requests
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from serve.many.app import Many
from serve.many.students import STUDENTS, add, read_student, remove, students
from stages.parts.engines.engine import AdapterSlots, RunningEngine, ServedModel, served_name
from stages.parts.engines.http_client import EngineError
from stages.parts.engines.process import KINDS
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import folder_sha256, write_json, write_text
from tests.conftest import run
from tests.serve.shop import LABELS, Shop, ended, make_shop, start, start_engine, until, wait_until
from tests.serve.stub_engine import answer
from tests.students.test_weights import pair

__all__ = ["pair"]
PYTHON = ("python", "-m", "serve.many")
QUERIES = ["where is my card", "it was declined", "top up", "what is this", "pending", "card", "is it here", "why"]
OTHER_LABELS = ["where", "card", "neither"]


def make_adapter(base: Path, folder: Path, seed: int, std: float = 0.5, r: int = 4) -> Path:
    """An adapter of a base that changes what it says, or with std 0 nothing."""
    torch.manual_seed(seed)
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=r, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=std)
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture
def house(pair, tmp_path, monkeypatch) -> Shop:
    """The repository that serves, and the current folder: its own student is none of those that are served."""
    made = make_shop(tmp_path / "house", real=pair, cached_answers=0, timeout_s=10)
    params = yaml.safe_load((made.folder / "params.yaml").read_text())
    params["engine"]["api_base"] = None
    (made.folder / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(made.folder)
    return made


def url(house: Shop) -> str:
    return f"http://127.0.0.1:{yaml.safe_load((house.folder / 'params.yaml').read_text())['serve']['port']}"


def many(house: Shop, *command: str) -> str:
    """What the command says where it is refused."""
    done = run(house.folder, *PYTHON, *command, check=False, PYTHONPATH=str(Path(__file__).parents[2]))
    assert "Traceback" not in done.stderr
    assert bool(done.returncode) == bool(done.stderr.strip()), done.stderr
    return done.stderr.strip() or done.stdout.strip()


@pytest.mark.slow
def test_what_could_not_be_served_is_refused_in_a_line(house, pair, tmp_path):
    base, _ = pair
    good = make_shop(tmp_path / "good", real=(base, make_adapter(base, tmp_path / "a", 1)))
    assert not many(house, "add", "good", str(good.folder))
    before = (house.folder / STUDENTS / "good").resolve()

    other_base = make_shop(tmp_path / "other", real=(make_adapter(base, tmp_path / "b", 1), tmp_path / "a"))
    high = make_shop(tmp_path / "high", real=(base, make_adapter(base, tmp_path / "c", 1, r=64)))
    embedded = make_adapter(base, tmp_path / "d", 1)
    config = json.loads((embedded / "adapter_config.json").read_text())
    (embedded / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": ["embed_tokens"]}))
    with_embeddings = make_shop(tmp_path / "embedded", real=(base, embedded))
    whole = make_shop(tmp_path / "whole", real=(base, base))
    changed = make_shop(tmp_path / "changed", real=pair)
    (changed.folder / paths.LORA / "epoch-1/adapter_config.json").write_text("{}")

    slots = AdapterSlots(count=1, max_rank=32)
    hashes = [folder_sha256(folder)[:12] for folder in (other_base.folder / paths.BASE, base)]
    for shop, says in (
        (other_base, rf"stands on another base \({hashes[0]}\) than models/base \({hashes[1]}\)"),
        (high, "has rank 64, the engine takes up to 32: raise lora.r"),
        (with_embeddings, "brings trained embeddings"),
        (whole, "is a whole model, no adapter"),
        (changed, "epoch-1 is not what .*models/program.sidecar.json was made with"),
    ):
        with pytest.raises(UserError, match=says):
            add("good", shop.folder, paths.BASE, slots)
    sidecar = json.loads((good.folder / paths.SIDECAR).read_text()) | {"labels": OTHER_LABELS}
    write_json(good.folder / paths.SIDECAR, sidecar)
    with pytest.raises(UserError, match="is a program of another style, other instructions or labels"):
        add("good", good.folder, paths.BASE, slots)
    write_json(good.folder / paths.SIDECAR, sidecar | {"labels": LABELS})
    for name in ("../good", "Good", "go-od", "healthz", ""):
        with pytest.raises(UserError, match="is no name for a student"):
            add(name, good.folder, paths.BASE, slots)
    with pytest.raises(UserError, match="is full: an engine has slots for 1 students"):
        add("better", good.folder, paths.BASE, slots)
    assert "no student is called 'better'; there are: good" in many(house, "remove", "better")
    assert (house.folder / STUDENTS / "good").resolve() == before and before.is_dir()
    assert many(house, "list") == f"good: {len(LABELS)} labels, 50.0% right on dev, served as {before.name}"
    remove("good")
    assert not list(STUDENTS.iterdir())


@pytest.fixture
def light(tmp_path, monkeypatch) -> Path:
    """A student's repository, with weights that nobody loads; the current folder is the one that serves, on the same
    base.
    """
    base, adapter = tmp_path / "b", tmp_path / "a"
    write_text(base / "weights", "base")
    write_text(adapter / "weights", "adapter")
    write_json(adapter / "adapter_config.json", {"r": 4})
    monkeypatch.chdir(make_shop(tmp_path / "house", real=(base, adapter)).folder)
    return make_shop(tmp_path / "team", real=(base, adapter)).folder


@pytest.mark.parametrize("file", ["program.json", "program.sidecar.json", "calibration.json", "adapter/weights"])
@pytest.mark.parametrize("how", ["gone", "changed", "no text"])
def test_a_damaged_student_is_refused_and_mended_by_adding_it_again(light, file, how):
    take_in("cards", str(light))
    folder = students()["cards"]
    damaged = folder / file
    if how == "gone":
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes().replace(b"0.5", b"0.6") + b" " if how == "changed" else b"\xff\xfe")
    with pytest.raises(UserError, match=f"{folder.name} is damaged: add cards again"):
        read_student("cards", folder, KINDS["vllm"])
    take_in("cards", str(light))
    read_student("cards", folder, KINDS["vllm"])


class FakeEngine:
    """Serves whatever is loaded into it."""

    def __init__(self) -> None:
        self.loaded = ["base-1"]
        self.full = False

    async def models(self) -> list[str]:
        return self.loaded

    async def complete(self, body: dict) -> dict:
        return answer(body)

    async def load(self, _: object, name: str, folder: Path) -> None:
        if self.full:
            raise EngineError("no memory for another adapter")
        self.loaded.append(name)

    async def unload(self, _: object, name: str) -> None:
        self.loaded.remove(name)


def test_a_student_goes_only_once_another_is_in_its_place_and_no_query_on_its_way(light, monkeypatch):
    def change(file: Path, **fields: object) -> None:
        write_json(light / file, json.loads((light / file).read_text()) | fields)

    def look(many: Many) -> str:
        asyncio.run(many.synchronise())
        return many.served["cards"].folder.name

    def start_service() -> Many:
        many = Many(RunningEngine(ServedModel("", {"base": "base-1"}, "", KINDS["vllm"])), engine, settings, [])
        monkeypatch.setattr(many.supervisor, "ready", True)
        return many

    engine, settings = FakeEngine(), SimpleNamespace(timeout_s=3600, queue=1, cached_answers=0)
    monkeypatch.setattr("serve.many.app.load_adapter", engine.load)
    monkeypatch.setattr("serve.many.app.unload_adapter", engine.unload)
    many = start_service()
    take_in("cards", str(light))
    first = look(many)
    change(paths.CALIBRATION, threshold=0.6)
    engine.full = True
    take_in("cards", str(light))
    assert look(many) == first and look(start_service()) == first, "after a restart, too"
    engine.full = False
    change(paths.CALIBRATION, threshold=0.7)
    take_in("cards", str(light))
    second = look(many)
    assert second != first and look(many) == second and first in engine.loaded, "queries may be on their way"
    settings.timeout_s = -1
    look(many)
    look(many)
    assert engine.loaded == ["base-1", second]
    assert {path.name for path in STUDENTS.iterdir()} == {"cards", second}


def take_in(name: str, repository: str) -> None:
    """What `add` does, without the start of a command."""
    add(name, Path(repository), paths.BASE, AdapterSlots(count=16, max_rank=32))


def answers(house: Shop, name: str) -> tuple[list[str], list[float]]:
    """Labels, and the confidences in them, of the same queries."""
    found = requests.post(f"{url(house)}/{name}/classify_intent/batch", json={"queries": QUERIES}, timeout=60)
    assert found.status_code == 200, found.text
    return [answer["label"] for answer in found.json()["answers"]], [
        answer["confidence"] for answer in found.json()["answers"]
    ]


def alike(found: tuple[list[str], list[float]], expected: tuple[list[str], list[float]]) -> bool:
    return found[0] == expected[0] and found[1] == pytest.approx(expected[1], abs=1e-3)


def served(house: Shop) -> list[str]:
    return requests.get(f"{url(house)}/readyz", timeout=5).json().get("students", [])


def model(house: Shop, name: str) -> str:
    return requests.get(f"{url(house)}/{name}/v1/models", timeout=5).json()["data"][0]["id"]


@contextmanager
def asked(house: Shop, name: str) -> Iterator[Counter[int]]:
    """Queries to a student all the time; gives how often each status came."""
    statuses: Counter[int] = Counter()
    over = threading.Event()

    def ask() -> None:
        with requests.Session() as session:
            while not over.is_set():
                query = {"query": f"{QUERIES[0]} {statuses.total()}"}
                statuses[session.post(f"{url(house)}/{name}/classify_intent", json=query, timeout=60).status_code] += 1

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    try:
        yield statuses
    finally:
        over.set()
        for thread in asking:
            thread.join()


def in_turn(house: Shop, name: str, repository: str) -> None:
    """Put another student in the place of one that is asked, and see that no query is lost."""
    with asked(house, name) as statuses:
        old = model(house, name)
        take_in(name, repository)
        until(lambda: model(house, name) != old)
        before = statuses.total()
        until(lambda: statuses.total() > before + 20)
        until(lambda: f"{old} is unloaded" in (house.folder / "log").read_text())
    assert set(statuses) == {200}, statuses


@pytest.mark.slow
def test_an_engine_elsewhere_is_kept_in_step_with_the_folder(house, pair, tmp_path):
    base, _ = pair
    first, second = (
        str(
            make_shop(
                tmp_path / name, labels=labels, real=(base, make_adapter(base, tmp_path / f"{name}-weights", seed))
            ).folder
        )
        for name, labels, seed in (("first", LABELS, 1), ("second", OTHER_LABELS, 2))
    )
    house.model = served_name("base", base)
    params = yaml.safe_load((house.folder / "params.yaml").read_text())
    params["engine"]["api_base"] = f"{house.engine}/v1"
    (house.folder / "params.yaml").write_text(yaml.safe_dump(params))
    take_in("cards", first)
    engine = start_engine(house)
    try:
        with ended(start(house, "serve.many")):
            wait_until(f"{url(house)}/readyz")
            assert served(house) == ["cards"] and set(answers(house, "cards")[0]) <= set(LABELS)
            in_turn(house, "cards", second)
            assert set(answers(house, "cards")[0]) <= set(OTHER_LABELS)
            page = requests.get(f"{url(house)}/cards/", timeout=5).text
            assert (
                'fetch("classify_intent"' in page
                and requests.get(f"{url(house)}/cards/metrics", timeout=5).status_code == 200
            )
            take_in("spoilt", first)
            shutil.rmtree((house.folder / STUDENTS / "spoilt").resolve() / "adapter")
            # An engine that was started again knows no adapters: they are loaded before it counts as ready.
            engine.kill()
            engine.wait()
            wait_until(f"{url(house)}/readyz", 503)
            engine = start_engine(house)
            wait_until(f"{url(house)}/readyz")
            assert set(answers(house, "cards")[0]) <= set(OTHER_LABELS)
            assert (house.folder / "log").read_text().count("spoilt can't be served") == 1
            take_in("spoilt", first)
            until(lambda: "spoilt" in served(house))
            assert set(answers(house, "spoilt")[0]) <= set(LABELS)
            remove("cards")
            until(lambda: "cards" not in served(house))
            assert (
                requests.post(f"{url(house)}/cards/classify_intent", json={"query": "x"}, timeout=5).status_code == 404
            )
    finally:
        engine.terminate()
        engine.wait()


@pytest.mark.engine
def test_students_come_go_and_change_while_the_engine_runs(house, pair, tmp_path):
    base, _ = pair

    def shop(name: str, seed: int, std: float = 0.5, labels: Sequence[str] = LABELS) -> str:
        adapter = make_adapter(base, tmp_path / f"{name}-weights", seed, std)
        return str(make_shop(tmp_path / name, labels=list(labels), real=(base, adapter), max_tokens=24).folder)

    first, second, as_base, other = (
        shop("first", 1),
        shop("second", 2),
        shop("base-alone", 3, std=0),
        shop("other", 4, labels=OTHER_LABELS),
    )
    take_in("cards", first)
    with ended(start(house, "serve.many")) as service:
        wait_until(f"{url(house)}/readyz", patience_s=300)
        assert served(house) == ["cards"]
        for name, repository in (("second", second), ("untrained", as_base), ("others", other)):
            take_in(name, repository)
        until(lambda: len(served(house)) == 4)

        alone = {name: answers(house, name) for name in ("cards", "second", "untrained", "others")}
        for one, another in itertools.combinations(alone.values(), 2):
            assert not alike(one, another), "each adapter answers by itself, and none as the base"
        assert all(set(alone[name][0]) <= set(OTHER_LABELS if name == "others" else LABELS) for name in alone)
        old = model(house, "cards")

        in_turn(house, "cards", second)  # and nothing is answered from what the old weights had cached
        assert alike(answers(house, "cards"), alone["second"])

        gone = model(house, "second")
        remove("second")
        until(lambda: served(house) == ["cards", "others", "untrained"])
        assert requests.post(f"{url(house)}/second/classify_intent", json={"query": "x"}, timeout=5).status_code == 404

        # What is served comes back with the engine, from the folder alone; vLLM itself knows no other names.
        until(lambda: f"{gone} is unloaded" in (house.folder / "log").read_text())
        [engine] = [
            child for child in psutil.Process(service.pid).children() if "vllm.entrypoints" in " ".join(child.cmdline())
        ]
        key = {"Authorization": f"Bearer {engine.environ()['VLLM_API_KEY']}"}
        place = f"http://127.0.0.1:{engine.cmdline()[engine.cmdline().index('--port') + 1]}/v1"
        assert requests.get(f"{place}/models", timeout=5).status_code == 401
        assert (
            requests.post(
                f"{place}/load_lora_adapter", json={"lora_name": "x", "lora_path": "/"}, timeout=5
            ).status_code
            == 401
        )
        cards = requests.get(f"{place}/models", headers=key, timeout=5).json()["data"]
        assert {card["id"] for card in cards if card.get("parent")} == {model(house, name) for name in served(house)}
        query = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        for name, status in ((gone, 404), (old, 404), (model(house, "cards"), 200)):
            answer = requests.post(f"{place}/chat/completions", json={**query, "model": name}, headers=key, timeout=60)
            assert answer.status_code == status, answer.text
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(f"{url(house)}/readyz", 503)
        refused = requests.post(f"{url(house)}/cards/classify_intent", json={"query": "a new one"}, timeout=5)
        assert refused.status_code == 503 and refused.headers["Retry-After"]
        wait_until(f"{url(house)}/readyz", patience_s=300)
        assert alike(answers(house, "cards"), alone["second"]) and alike(answers(house, "others"), alone["others"])
