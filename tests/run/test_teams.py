"""A team's shared storage: real DVC and Git against a real S3 server on loopback. The stages are made up, so that whether one ran shows.

Needs dvc-s3 and moto's server (pip install -r requirements-s3.lock, and "moto[s3,server]").
"""

import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import commit_all, make_clone, run
from tests.run.test_pipeline_file import PIPELINE, outputs

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("dvc_s3") and importlib.util.find_spec("moto")), reason="dvc-s3 or moto is not installed"
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


@pytest.fixture(scope="module")
def team(tmp_path_factory) -> Iterator[Team]:
    """The pipeline run once, committed, and pushed to Git and to S3."""
    from moto.server import ThreadedMotoServer

    folder = tmp_path_factory.mktemp("team")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    place = "http://{}:{}".format(*server.get_host_and_port())
    found = Team(folder / "origin.git", folder / "first", folder / "ran")
    with pytest.MonkeyPatch.context() as patch:
        # When-required: servers other than Amazon's refuse the checksums that boto3 adds of its own accord.
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "STAGES_RUN": str(found.ran),
        }.items():
            patch.setenv(name, value)
        import boto3

        boto3.client("s3", endpoint_url=place, region_name="us-east-1").create_bucket(Bucket="team")
        make_clone(found.first)
        for stage in PIPELINE:
            shutil.copy(Path(__file__).with_name("made_up_stage.py"), found.first / f"stages/{stage}.py")
        run(found.first, "dvc", "remote", "add", "-d", "storage", "s3://team/teacher-to-student")
        run(found.first, "dvc", "remote", "modify", "storage", "endpointurl", place)
        run(folder, "git", "init", "-q", "--bare", "-b", "main", str(found.origin))
        run(found.first, "git", "remote", "add", "origin", str(found.origin))
        run(found.first, "dvc", "repro")
        assert found.ran.read_text().split() == list(PIPELINE)
        commit_all(found.first, "A run")
        run(found.first, "git", "push", "-q", "origin", "main")
        run(found.first, "dvc", "push", "--run-cache")
        yield found
    server.stop()


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
    assert pulled == {path: found for path, found in content(team.first).items() if path.startswith("models/")}
    assert not (tmp_path / "data").exists()
