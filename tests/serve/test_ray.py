"""Both applications on a real Ray Serve: the same answers, and no query lost while classifiers come and go (with the
stub engine); an LLM replica on a real tiny student."""

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from serve.schemas import Classification
from stages.parts.run import commands
from stages.parts.run.machine import free_port
from stages.parts.run.params import load_params
from tests.conftest import ROOT
from tests.serve.shop import ENGINE_KEY, LABELS, Shop, ended, last_request, make_shop, start_engine, until
from tests.students.test_weights import pair

pytest.importorskip("ray", reason="needs Ray: make setup-ray, then .venv-ray/bin/python -m pytest")

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import DeploymentSchema, ServeDeploySchema

from serve import supervisor
from serve.ray_serve import apps
from serve.ray_serve.__main__ import main
from serve.ray_serve.apps import RayEndpoint, Where, classifier, llm

__all__ = ["pair"]
SENT: list[dict[str, Any]] = []


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


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": json.dumps({"query": "where is it"}).encode(), "more_body": False}


async def send(message: dict[str, Any]) -> None:
    SENT.append(message)


@pytest.mark.parametrize("base", [None, "base-1"])
def test_a_replica_answers_in_this_process_without_a_cluster(tmp_path, monkeypatch, base):
    """Ray's local testing mode has no proxy, and copies arguments: the app is asked by ASGI, with functions that are
    found by name.
    """
    made = make_shop(tmp_path / "shop")
    made.model = f"{base}:{made.model}" if base else made.model
    params = yaml.safe_load((made.folder / "params.yaml").read_text())
    # `make serve`'s own; the endpoint on Ray is vLLM, and the stub answers to its words alone
    params["engine"]["kind"] = "sglang"
    (made.folder / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setenv("ENGINE_API_KEY", ENGINE_KEY)
    monkeypatch.chdir(made.folder)
    SENT.clear()
    with ended(start_engine(made)):
        app = classifier(RayEndpoint(folder=str(made.folder), api_base=f"{made.engine}/v1", base=base, open=False))
        replica = serve.run(app, _local_testing_mode=True)
        place = {
            "type": "http",
            "method": "POST",
            "path": "/classify_intent",
            "root_path": "",
            "query_string": b"",
            "http_version": "1.1",
        }
        replica.remote(place | {"headers": [(b"content-type", b"application/json")]}, receive, send).result(
            timeout_s=30
        )
        assert last_request(made)["model"] == made.model
        replica.check_health.remote().result(timeout_s=30)
    assert SENT[0]["status"] == 200 and Classification.model_validate_json(SENT[1]["body"]).label in LABELS
    assert not ray.is_initialized()


def test_a_replica_comes_before_its_endpoint_and_answers_once_that_is_there(tmp_path, monkeypatch):
    made = make_shop(tmp_path / "shop")
    monkeypatch.setattr(apps, "FIRST_CHECK_S", 0.1)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_S", 0.1)
    monkeypatch.setenv("ENGINE_API_KEY", ENGINE_KEY)
    monkeypatch.chdir(made.folder)
    app = classifier(RayEndpoint(folder=str(made.folder), api_base=f"{made.engine}/v1", open=False))
    replica = serve.run(app, _local_testing_mode=True)
    place = {
        "type": "http",
        "method": "GET",
        "path": "/readyz",
        "root_path": "",
        "query_string": b"",
        "http_version": "1.1",
        "headers": [],
    }

    def ready() -> int:
        SENT.clear()
        replica.remote(place, receive, send).result(timeout_s=30)
        status: int = SENT[0]["status"]
        return status

    assert ready() == 503
    replica.check_health.remote().result(timeout_s=30)
    with ended(start_engine(made)):
        until(lambda: ready() == 200)


def test_what_ray_can_not_deploy_is_one_line(tmp_path, monkeypatch):
    made = make_shop(tmp_path / "shop")

    def failed(*_: object, **__: object) -> None:
        raise RuntimeError("Deploying application llm failed: a replica died\nTraceback: ...")

    monkeypatch.chdir(made.folder)
    monkeypatch.setenv("ENGINE_API_KEY", ENGINE_KEY)
    monkeypatch.setattr("sys.argv", ["serve", "--port", str(free_port())])
    monkeypatch.setattr(commands, "end_on_sigterm", lambda: None)
    monkeypatch.setattr(ray, "init", failed)
    with pytest.raises(SystemExit) as ended_by:
        main()
    assert str(ended_by.value).startswith(
        "serve: Ray failed: Deploying application llm failed: a replica died; its logs are in /tmp/ray/"
    )


def deploy(shop: Shop, **options: Any) -> None:
    app = classifier(RayEndpoint(folder=str(shop.folder), api_base=f"{shop.engine}/v1", open=False))
    app._bound_deployment = app._bound_deployment.options(**options)
    serve.run(app, name="classifier", route_prefix="/")


def replicas() -> int:
    counts: Counter[str] = Counter(serve.status().applications["classifier"].deployments["classifier"].replica_states)
    return counts["RUNNING"]


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
    answer = Classification.model_validate(
        requests.post(f"{url}/classify_intent", json={"query": "where is it"}, timeout=30).json()
    )
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


def kill(deployment: str) -> None:
    """kill -9 of the deployment's replicas."""
    name = f"ServeReplica:{deployment}".encode()
    processes = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if name in path.read_bytes()]
    assert processes
    for process in processes:
        os.kill(int(process), signal.SIGKILL)


def test_a_killed_replica_comes_back(shop, url):
    deploy(shop, num_replicas=1)
    kill("classifier")

    def answers() -> bool:
        try:
            return requests.post(f"{url}/classify_intent", json={"query": "where is it"}, timeout=5).status_code == 200
        except requests.RequestException:
            return False

    until(answers)


@pytest.mark.engine
def test_the_llm_replica_answers_with_the_adapter_and_comes_back_when_it_is_killed(url, pair, tmp_path, monkeypatch):
    made = make_shop(tmp_path / "pair", real=pair, max_tokens=24, cached_answers=0)
    params = yaml.safe_load((made.folder / "params.yaml").read_text())
    params["runtime"]["weights"] = "adapter"
    (made.folder / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(made.folder)
    api_base = f"{url}/llm/v1"
    serve.run(llm(Where(folder=str(made.folder))), name="llm", route_prefix="/llm")
    serve.run(
        classifier(RayEndpoint(folder=str(made.folder), api_base=api_base, open=False)),
        name="classifier",
        route_prefix="/",
    )

    assert requests.get(f"{api_base}/models", timeout=30).status_code == 401
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {ENGINE_KEY}"
        base, adapter = [card["id"] for card in session.get(f"{api_base}/models", timeout=30).json()["data"]]
        assert base.startswith("base-") and adapter == made.model
        question = {
            "messages": [{"role": "user", "content": "where is it"}],
            "temperature": 0,
            "max_tokens": 8,
            "logprobs": True,
        }
        said = [
            session.post(f"{api_base}/chat/completions", json={**question, "model": model}, timeout=60).json()[
                "choices"
            ][0]
            for model in (base, adapter)
        ]
        assert said[0]["logprobs"] != said[1]["logprobs"], "the adapter changes what the base says"

    def ask(number: int) -> requests.Response:
        return requests.post(f"{url}/classify_intent", json={"query": f"query {number}"}, timeout=60)

    before = [ask(number).json() for number in range(4)]
    assert {answer["model"] for answer in before} == {adapter} and {answer["label"] for answer in before} <= set(LABELS)
    kill("llm")
    failed: list[requests.Response] = []

    def answers() -> bool:
        found = ask(0)
        if found.status_code != 200:
            failed.append(found)
        return found.status_code == 200

    until(answers, patience_s=300)
    # Ray holds queries while no replica is there: the first ones end by the time limit, until the service knows.
    assert {answer.status_code for answer in failed} <= {503, 504}
    assert all(answer.headers["Retry-After"] for answer in failed if answer.status_code == 503)
    assert [ask(number).json() for number in range(4)] == before


@pytest.mark.engine
def test_the_production_form_takes_its_adapters_from_a_bucket(url, pair, tmp_path, monkeypatch):
    """ray.production.yaml itself, with what a CPU and a tiny base want, and an S3 server on loopback."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    base, adapter = pair
    made = make_shop(tmp_path / "pair", real=pair, max_tokens=24, cached_answers=0)
    monkeypatch.chdir(made.folder)
    server.start()
    place = {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    bucket = pytest.importorskip("boto3").client("s3")
    bucket.create_bucket(Bucket="BUCKET")

    args = yaml.safe_load((ROOT / "serve/deploy/ray.production.yaml").read_text())["applications"][0]["args"]
    [config] = args["llm_configs"]
    del config["accelerator_type"], config["engine_kwargs"]["revision"]
    there = config["model_loading_config"]["model_id"]
    config["model_loading_config"]["model_source"] = str(base)
    config["lora_config"]["dynamic_lora_loading_path"] = "s3://BUCKET/adapters"
    config["engine_kwargs"] |= {"dtype": "float32", "enforce_eager": True, "max_model_len": 512}
    variables = {"env_vars": {**place, "VLLM_CPU_KVCACHE_SPACE": "1"}}
    on_cpu = {
        "accelerator_config": {"kind": "cpu"},
        "placement_group_config": {"bundles": [{"CPU": 1}]},
        "runtime_env": variables,
    }
    args |= {
        "llm_configs": [config | on_cpu],
        "ingress_deployment_config": {"ray_actor_options": {"runtime_env": variables}},
    }
    serve.run(pytest.importorskip("ray.serve.llm").build_openai_app(args), name="llm", route_prefix="/llm")
    try:
        for file in adapter.iterdir():  # while it runs
            bucket.upload_file(str(file), "BUCKET", f"adapters/{made.model}/{file.name}")
        endpoint = RayEndpoint(folder=str(made.folder), api_base=f"{url}/llm/v1", base=there, open=False)
        serve.run(classifier(endpoint), name="classifier", route_prefix="/")
        answer = requests.post(f"{url}/classify_intent", json={"query": "where is it"}, timeout=60).json()
        assert answer["model"] == f"{there}:{made.model}" and answer["label"] in LABELS
    finally:
        server.stop()


@pytest.mark.parametrize("file", ["ray.yaml", "ray.classifier.yaml", "ray.production.yaml"])
def test_the_files_for_serve_deploy_are_what_ray_takes(file):
    for app in ServeDeploySchema.model_validate(
        yaml.safe_load((ROOT / "serve/deploy" / file).read_text())
    ).applications:
        if app.import_path == "ray.serve.llm:build_openai_app":
            check_llm(app.args)
        else:
            assert app.import_path == f"serve.ray_serve.apps:{app.name}" and app.name in ("llm", "classifier")
            (RayEndpoint if app.name == "classifier" else Where).model_validate(app.args)


def check_llm(args: dict[str, Any]) -> None:
    """By ray.serve.llm's own types, vLLM's own arguments, and params.yaml."""
    [config] = pytest.importorskip("ray.serve.llm").LLMServingArgs.model_validate(args).llm_configs
    config.get_engine_config()  # raises for an argument that vLLM does not have
    DeploymentSchema.model_validate({"name": "llm", **config.deployment_config})
    student = load_params(ROOT / "params.yaml").profiles["llama"].student
    assert (config.model_loading_config.model_source, config.engine_kwargs["revision"]) == (
        student.weights.repository,
        student.weights.revision,
    )
    assert config.engine_kwargs["max_model_len"] == student.max_model_len
    there = yaml.safe_load((ROOT / "serve/deploy/ray.classifier.yaml").read_text())["applications"][0]["args"]["base"]
    assert config.model_loading_config.model_id == there
