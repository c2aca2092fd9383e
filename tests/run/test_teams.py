"""A team's shared storage: real DVC and Git, a shared folder and, where it is installed, a real S3 server on loopback.
The stages are made up, so that whether one ran shows.

S3 needs dvc-s3 and moto's server (pip install -r requirements-s3.lock, and "moto[s3,server]").
"""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import commit_all, make_clone, run
from tests.run.test_pipeline_file import PIPELINE, outputs

pytestmark = pytest.mark.slow
without_s3 = pytest.mark.skipif(
    not (importlib.util.find_spec("dvc_s3") and importlib.util.find_spec("moto")),
    reason="dvc-s3 or moto is not installed",
)


@dataclass
class Team:
    """A Git server's repository, the run that everybody shares, and the file that tells which stages ran."""

    origin: Path
    first: Path
    ran: Path

    def member(self, folder: Path) -> Path:
        """Another clone, with nothing of DVC's in it."""
        run(folder.parent, "git", "clone", "-q", str(self.origin), folder.name)
        run(folder, "git", "config", "user.name", "test")
        run(folder, "git", "config", "user.email", "test@example.invalid")
        self.ran.write_text("")
        return folder


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of a server with the bucket `team`, whose keys are in the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        # Servers other than Amazon's refuse the checksums that boto3 adds of its own accord.
        patch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket="team")
        yield address
    server.stop()


@pytest.fixture(scope="module", params=["folder", pytest.param("s3", marks=without_s3)])
def team(request, tmp_path_factory) -> Iterator[Team]:
    """The pipeline run once, committed, and pushed to Git and to the storage."""
    folder = tmp_path_factory.mktemp("team")
    with ExitStack() as open_ones:
        open_ones.enter_context(pytest.MonkeyPatch.context()).setenv("STAGES_RUN", str(folder / "ran"))
        if request.param == "folder":
            yield shared_run(folder, str(folder / "storage"), {})
        else:
            yield shared_run(
                folder, "s3://team/teacher-to-student", {"endpointurl": open_ones.enter_context(s3_server())}
            )


def shared_run(folder: Path, storage: str, settings: dict[str, str]) -> Team:
    found = Team(folder / "origin.git", folder / "first", folder / "ran")
    make_clone(found.first)
    for stage in PIPELINE:
        shutil.copy(Path(__file__).with_name("made_up_stage.py"), found.first / f"stages/{stage}.py")
    run(found.first, "dvc", "remote", "add", "-d", "storage", storage)
    for name, value in settings.items():
        run(found.first, "dvc", "remote", "modify", "storage", name, value)
    run(folder, "git", "init", "-q", "--bare", "-b", "main", str(found.origin))
    run(found.first, "git", "remote", "add", "origin", str(found.origin))
    run(found.first, "dvc", "repro")
    assert found.ran.read_text().split() == list(PIPELINE)
    commit_all(found.first, "A run")
    run(found.first, "git", "push", "-q", "origin", "main")
    run(found.first, "dvc", "push", "--run-cache")
    return found


def content(folder: Path) -> dict[str, bytes]:
    """Everything that the stages made, by path."""
    roots = [folder / out for stage in PIPELINE.values() for out in outputs(stage)]
    files = [file for root in roots for file in (root.rglob("*") if root.is_dir() else [root]) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_another_clone_gets_the_run_and_reruns_nothing(team, tmp_path):
    clone = team.member(tmp_path / "clone")
    assert not (clone / "models").exists()
    run(clone, "dvc", "pull")
    assert content(clone) == content(team.first) and len(content(clone)) > 2 * len(PIPELINE)
    assert "up to date" in run(clone, "dvc", "repro").stdout
    assert not team.ran.read_text()


def test_the_image_pulls_the_models_without_git(team, tmp_path):
    """What the pods' init container does (serve/deploy/kubernetes)."""
    for name in ("dvc.yaml", "dvc.lock", "params.yaml", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(team.first / name, tmp_path / name)
    run(tmp_path, "dvc", "config", "--local", "core.no_scm", "true")
    run(tmp_path, "dvc", "pull", "base", "lora", "optimize", "calibrate")
    pulled = {path: found for path, found in content(tmp_path).items() if path.startswith("models/")}
    served = {path: found for path, found in content(team.first).items() if path.startswith("models/")}
    others = {out for name in ("linear", "encoder") for out in outputs(PIPELINE[name])}
    assert pulled == {
        path: found for path, found in served.items() if not {path, *map(str, Path(path).parents)} & others
    }
    assert not (tmp_path / "data").exists()


FROM_LORA = [stage for stage in list(PIPELINE)[list(PIPELINE).index("lora") :] if stage not in ("linear", "encoder")]


def test_what_a_colleague_tried_runs_nowhere_else_again(team, tmp_path):
    colleague = team.member(tmp_path / "colleague")
    run(colleague, "dvc", "pull")
    run(colleague, "dvc", "exp", "run", "--name", "narrow", "-S", "lora.r=8")
    assert team.ran.read_text().split() == FROM_LORA, "what was pulled is used"
    run(colleague, "dvc", "exp", "push", "origin", "narrow")

    elsewhere = team.member(tmp_path / "elsewhere")  # by an experiment, which is in no commit
    run(elsewhere, "dvc", "exp", "pull", "origin", "narrow")
    run(elsewhere, "dvc", "exp", "apply", "narrow")
    assert yaml.safe_load((elsewhere / "params.yaml").read_text())["lora"]["r"] == 8
    assert "up to date" in run(elsewhere, "dvc", "repro").stdout
    assert content(elsewhere) == content(colleague) != content(team.first)

    beside = team.member(tmp_path / "beside")  # on the same machine, by the run cache
    run(beside, "dvc", "cache", "dir", "--local", str(colleague / ".dvc/cache"))
    run(beside, "dvc", "exp", "run", "-S", "lora.r=8")
    assert content(beside) == content(colleague)
    assert not team.ran.read_text()


def test_a_queue_over_ranks_ends_in_one_table(team, tmp_path):
    clone = team.member(tmp_path / "clone")
    run(clone, "dvc", "pull")
    run(clone, "dvc", "exp", "run", "--queue", "-S", "lora.r=8,16,64")
    run(clone, "dvc", "exp", "run", "--run-all")
    assert team.ran.read_text().split() == 3 * FROM_LORA, "the stages before lora are shared"
    (head,) = [
        one for one in json.loads(run(clone, "dvc", "exp", "show", "--json").stdout) if one["rev"] != "workspace"
    ]
    found = {}
    for experiment in head["experiments"]:
        (data,) = (revision["data"] for revision in experiment["revs"])
        found[data["params"]["params.yaml"]["data"]["lora"]["r"]] = data["metrics"]["reports/metrics.json"]["data"][
            "made_up"
        ]
    assert sorted(found) == [8, 16, 64] and len(set(found.values())) == 3


def test_a_clone_without_any_cache_runs_own_texts_and_goes_back(team, tmp_path):
    """The committed dvc.lock names outputs that neither the cache nor a storage has."""
    clone = team.member(tmp_path / "clone")
    run(clone, "dvc", "remote", "remove", "storage")
    shutil.copytree(clone / "data/example", clone / "data/mine")
    with (clone / "data/mine/pool.csv").open("a") as pool:
        pool.write("Where is my order?,p7\n")
    commit_all(clone, "own texts")
    own_texts = ["-S", "raw.source=folder", "-S", "raw.folder=data/mine"]
    run(clone, "dvc", "exp", "run", *own_texts)
    run(clone, "git", "checkout", "-f", "HEAD", "--", ".")

    run(clone, "dvc", "exp", "run", "--temp", *own_texts, "-S", "lora.r=4")
    run(clone, "dvc", "exp", "run", "--queue", *own_texts, "-S", "lora.r=8")
    run(clone, "dvc", "exp", "run", "--run-all")
    run(clone, "dvc", "exp", "run", *own_texts, "-S", "lora.r=16")
    run(clone, "git", "checkout", "-f", "HEAD", "--", ".")
    run(clone, "dvc", "exp", "run", "-S", "lora.r=8")
    assert team.ran.read_text().split() == [*PIPELINE, *3 * FROM_LORA, *PIPELINE]
