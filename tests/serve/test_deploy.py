"""What ships the service: the image, the manifests against their schemas and the app, alerts and dashboard against its
metrics.

hadolint, kubernetes-validate (both from PyPI, see serve/deploy/README.md), kubectl and promtool are used where they are
installed; KubeRay's own schema where KUBERAY_CRD names its file.
"""

import fnmatch
import importlib.util
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import yaml
from prometheus_client import CollectorRegistry

from serve.http.app import create_app
from serve.service import ServiceMetrics
from serve.traffic import TrafficMetrics
from stages.parts.run.params import load_params
from tests.conftest import ROOT, run

DEPLOY = ROOT / "serve/deploy"
KUBERNETES = DEPLOY / "kubernetes"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def program(name: str) -> str:
    """A program on the path or beside this interpreter; skips the test where there is none."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    return found or pytest.skip(f"{name} is not installed")


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out of the build: the last pattern that fits it, or a folder of it,
    decides.
    """
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            parts = path.split("/")
            heads = ["/".join(parts[: end + 1]) for end in range(len(parts))]
            if any(fnmatch.fnmatchcase(head, pattern) for head in (*heads, *(parts if "**/" in line else ()))):
                out = not line.startswith("!")
    return out


def test_the_image_holds_what_it_copies_and_no_secrets():
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M)
    for path in " ".join(copied).replace("${HARDWARE}", "cpu").split():
        made = path == "models/export/encoder"  # by `make export`
        assert ((ROOT / path).exists() or made) and not ignored(path), path
    for path in (
        ".git/config",
        ".dvc/config.local",
        "models/base/x",
        "data/raw/train.csv",
        ".env",
        "serve/.env.prod",
        "stages/key.pem",
        ".cache/x",
    ):
        assert ignored(path), path
    assert not ignored("stages/parts/engines/vllm.py")
    stages = DOCKERFILE.split("\nFROM ")[1:]
    [encoder] = [stage for stage in stages if " AS encoder\n" in stage]
    assert stages[-1].startswith("${HARDWARE}\n"), "without --target, `docker build` makes the last one"
    for served in (encoder, stages[-1]):
        assert "\nUSER 10001" in served and "\nHEALTHCHECK" in served
    assert "COPY --from" not in encoder and "--require-hashes -r requirements-serve.lock" in encoder
    assert not re.search(r"^(ARG|ENV).*(KEY|TOKEN|SECRET|PASSWORD)", DOCKERFILE, re.M)


def test_hadolint_finds_nothing():
    run(ROOT, program("hadolint"), "--no-color", "Dockerfile")


def rendered(kind: str) -> list[dict]:
    return list(yaml.safe_load_all(run(ROOT, program("kubectl"), "kustomize", str(KUBERNETES / kind)).stdout))


@pytest.mark.parametrize("kind", ["base", "decoder", "gpu"])
def test_manifests_fit_their_schemas(kind):
    if not importlib.util.find_spec("kubernetes_validate"):
        pytest.skip("kubernetes-validate is not installed")
    import kubernetes_validate

    for resource in rendered(kind):
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


RAY_SERVICES = {"llm": "ray.production.yaml", "classifier": "ray.classifier.yaml"}


def strict(schema: dict) -> dict:
    """An OpenAPI schema that refuses unknown fields, as `kubectl --validate=strict` does."""
    if (
        schema.get("type") == "object"
        and schema.get("properties")
        and not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        schema = {
            **schema,
            "additionalProperties": False,
            "properties": {key: strict(of) for key, of in schema["properties"].items()},
        }
    return {**schema, "items": strict(schema["items"])} if isinstance(schema.get("items"), dict) else schema


@pytest.mark.parametrize("name", RAY_SERVICES)
def test_ray_services_fit_kuberays_schema_and_serve_what_the_files_say(name):
    service = yaml.safe_load((KUBERNETES / f"ray/{name}.yaml").read_text())
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == yaml.safe_load((DEPLOY / RAY_SERVICES[name]).read_text())
    cluster = service["spec"]["rayClusterConfig"]
    assert f"\nray=={cluster['rayVersion']} " in (ROOT / "requirements-ray.lock").read_text()
    pods = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    policies = list(yaml.safe_load_all((KUBERNETES / "ray/network-policy.yaml").read_text()))
    [chosen] = [
        policy["spec"]["podSelector"]["matchLabels"] for policy in policies if policy["metadata"]["name"] == name
    ]
    assert all(chosen.items() <= pod["metadata"]["labels"].items() for pod in pods)
    if crd := os.environ.get("KUBERAY_CRD"):
        [version] = [
            version for version in yaml.safe_load(Path(crd).read_text())["spec"]["versions"] if version["name"] == "v1"
        ]
        jsonschema.validate(service["spec"], strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"]))
    if importlib.util.find_spec("kubernetes_validate"):
        import kubernetes_validate

        whole = [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **pod["metadata"]}, "spec": pod["spec"]}
            for pod in pods
        ]
        for resource in (*whole, *policies):
            kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def test_manifests_fit_the_app():
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (KUBERNETES / "base").glob("*.yaml")}
    assert set(files["kustomization"]["resources"]) == {f"{name}.yaml" for name in files if name != "kustomization"}
    template = files["deployment"]["spec"]["template"]
    [service] = template["spec"]["containers"]
    routes = create_app(_NoService(), []).openapi()["paths"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert service[probe]["httpGet"]["path"] in routes, probe
    assert f"EXPOSE {service['ports'][0]['containerPort']}" in DOCKERFILE
    for name in ("service", "network-policy", "disruption-budget"):
        spec = files[name]["spec"]
        selector = spec.get("podSelector") or spec["selector"]
        assert selector.get("matchLabels", selector).items() <= template["metadata"]["labels"].items(), name
    [port] = service["ports"]
    [rule] = files["network-policy"]["spec"]["ingress"]
    assert [place["port"] for place in rule["ports"]] == [port["name"]]
    assert [place["targetPort"] for place in files["service"]["spec"]["ports"]] == [port["name"]]


def mebibytes(quantity: str) -> float:
    return float(quantity[:-2]) * {"Mi": 1, "Gi": 1024}[quantity[-2:]]


@pytest.mark.parametrize("kind", ["base", "decoder", "gpu"])
def test_a_pod_has_what_its_student_needs(kind):
    [deployment] = [resource for resource in rendered(kind) if resource["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    [service], before = pod["containers"], pod.get("initContainers", [])
    for container in (*before, service):
        assert container["securityContext"]["readOnlyRootFilesystem"] and container["resources"]["limits"]["memory"]
    mounts = {mount["name"] for container in (*before, service) for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    params = load_params(ROOT / "params.yaml")
    starts_within = service["startupProbe"]["periodSeconds"] * service["startupProbe"]["failureThreshold"]
    ends_within = pod["terminationGracePeriodSeconds"] - int(service["lifecycle"]["preStop"]["exec"]["command"][1])
    tag = {"base": "student", "decoder": "cpu", "gpu": "gpu"}[kind]
    assert {container["image"] for container in (*before, service)} == {f"intent-classifier:{tag}"}
    assert ("nvidia.com/gpu" in service["resources"]["limits"]) == (kind == "gpu")
    if kind != "base":
        assert before and starts_within >= params.runtime.engine_start_s
        assert ends_within >= params.serve.timeout_s + 25  # the engine's own end: 20 + 5
        return
    assert not before and "storage" not in json.dumps(deployment["spec"]).replace("ephemeral-storage", "")
    measured = json.loads((ROOT / "reports/bench/in_process.json").read_text())["encoder"]
    assert starts_within >= 10 * measured["ready_s"] and ends_within >= params.serve.timeout_s
    assert mebibytes(service["resources"]["requests"]["memory"]) * 2**20 >= 1.5e6 * measured["memory_mb"]
    target = DOCKERFILE.partition("\nFROM encoder AS student\n")[2].partition("\nFROM ")[0]
    assert target.startswith("COPY models/export/encoder student\n"), "nothing is pulled: the image holds its student"


class _NoService:
    """An app to read routes from: it is never asked."""

    metrics = ServiceMetrics()
    classifier = SimpleNamespace(calibration=SimpleNamespace(threshold=0.5), model="m")


def metric_names(registry: CollectorRegistry) -> set[str]:
    families = list(registry.collect())
    names = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    return names | {
        f"{family.name}_{part}"
        for family in families
        if family.type == "histogram"
        for part in ("bucket", "sum", "count")
    }


def named_metrics(expression: str) -> set[str]:
    """The series that a PromQL expression reads."""
    bare = re.sub(r'\{[^}]*\}|\[[^\]]*\]|"[^"]*"|\b(by|on|group_left|without) \([^)]*\)', " ", expression)
    words = re.findall(r"[a-z_][\w:]*(?!\w*\()", bare)
    return {word for word in words if not re.search(rf"\b{re.escape(word)}\s*\(", bare)} - {
        "and",
        "or",
        "unless",
        "by",
        "on",
    }


def test_alerts_and_dashboard_read_metrics_that_the_service_has():
    rules = [
        rule
        for group in yaml.safe_load((DEPLOY / "monitoring/rules.yaml").read_text())["groups"]
        for rule in group["rules"]
    ]
    panels = json.loads((DEPLOY / "monitoring/dashboard.json").read_text())["panels"]
    traffic = CollectorRegistry()
    TrafficMetrics(traffic)
    own = metric_names(ServiceMetrics().registry)
    known = own | metric_names(traffic) | {rule["record"] for rule in rules if "record" in rule} | {"up"}
    expressions = [rule["expr"] for rule in rules] + [target["expr"] for panel in panels for target in panel["targets"]]
    for expression in expressions:
        assert named_metrics(expression) <= known, expression
    shown = set().union(*map(named_metrics, expressions))
    unread = own - shown - {name for name in own if name.endswith(("_sum", "_count", "_seconds"))}
    assert not unread, "a metric that no alert and no panel reads"


def test_alerts_fire_when_they_should_and_not_else():
    run(DEPLOY / "monitoring", program("promtool"), "test", "rules", "rules_test.yaml")
