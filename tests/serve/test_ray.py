"""The classifier on a real Ray Serve, with the stub engine: the same answers, and no query lost while replicas come and go."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from serve.schemas import Answer
from stages.parts.engines.network import free_port
from tests.conftest import ROOT
from tests.serve.shop import ENGINE_KEY, Shop, ended, make_shop, start_engine

pytest.importorskip("ray", reason="needs Ray: .venv/bin/pip install --no-deps --require-hashes -r requirements-ray.lock")

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import ServeDeploySchema

from serve.ray_serve.apps import Endpoint, Where, classifier

PATIENCE_S = 90


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Iterator[Shop]:
    shop = make_shop(tmp_path_factory.mktemp("ray") / "shop")
    with ended(start_engine(shop, latency_ms=200)):
        yield shop


@pytest.fixture(scope="module")
def url(shop) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINE_API_KEY", ENGINE_KEY)
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        port = free_port()
        ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
        try:
            serve.start(http_options=HTTPOptions(port=port))
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


def deploy(shop: Shop, **options: Any) -> None:
    app = classifier(Endpoint(folder=str(shop.folder), api_base=f"{shop.engine}/v1", open=False))
    app._bound_deployment = app._bound_deployment.options(**options)
    serve.run(app, name="classifier", route_prefix="/")


def replicas() -> int:
    counts: Counter[str] = Counter(serve.status().applications["classifier"].deployments["classifier"].replica_states)
    return counts["RUNNING"]


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.2)


@contextmanager
def load(url: str, at_once: int) -> Iterator[Counter[int]]:
    """Queries all the time; gives how often each status came."""
    statuses: Counter[int] = Counter()
    over = threading.Event()

    def ask(number: int) -> None:
        with requests.Session() as session:
            while not over.is_set():
                query = {"query": f"query {number} {statuses.total()}"}
                statuses[session.post(f"{url}/classify_intent", json=query, timeout=30).status_code] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(at_once)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_replicas_come_and_go_and_no_query_is_lost(shop, url):
    quick = {"upscale_delay_s": 1, "downscale_delay_s": 2, "metrics_interval_s": 0.5, "look_back_period_s": 1}
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2, **quick}
    deploy(shop, autoscaling_config=scaling)
    answer = Answer.model_validate(requests.post(f"{url}/classify_intent", json={"query": "where is it"}, timeout=30).json())
    assert answer.model == shop.model and answer.confidence == pytest.approx(0.6) and not answer.abstained
    assert replicas() == 1
    with load(url, at_once=12) as statuses:
        until(lambda: replicas() == 2)
        # Another program comes, and the classifier alone is replaced: the endpoint stays.
        params = yaml.safe_load((shop.folder / "params.yaml").read_text())
        params["serve"]["examples"] = ["another example"]
        (shop.folder / "params.yaml").write_text(yaml.safe_dump(params))
        before = statuses.total()
        deploy(shop, autoscaling_config=scaling)
        until(lambda: "another example" in requests.get(url, timeout=30).text)
        until(lambda: statuses.total() > before + 50)
    assert set(statuses) == {200}, statuses
    until(lambda: replicas() == 1)


def test_a_killed_replica_comes_back(shop, url):
    deploy(shop, num_replicas=1)
    processes = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if b"ServeReplica:classifier" in path.read_bytes()]
    assert processes
    for process in processes:
        os.kill(int(process), signal.SIGKILL)

    def answers() -> bool:
        try:
            return requests.post(f"{url}/classify_intent", json={"query": "where is it"}, timeout=5).status_code == 200
        except requests.RequestException:
            return False

    until(answers)


def test_the_file_for_serve_deploy_is_what_ray_takes():
    found = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "serve/deploy/ray.yaml").read_text()))
    assert {app.name: app.import_path for app in found.applications} == {
        "llm": "serve.ray_serve.apps:llm",
        "classifier": "serve.ray_serve.apps:classifier",
    }
    for app in found.applications:
        (Endpoint if app.name == "classifier" else Where).model_validate(app.args)
