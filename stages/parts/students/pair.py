"""The pair that `optimize` chose, weights and program, with the calibration of its confidence: loaded, checked, and
queried.

Three files say what a pair is: program.json, program.sidecar.json (which names and hashes the weights) and
calibration.json. They lie in `models` of a repository, and travel together wherever a student is served.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.parts.engines.completions import prompt_ids
from stages.parts.engines.engine import EndpointKind
from stages.parts.engines.errors import EngineError
from stages.parts.engines.requests import ProgramRequests
from stages.parts.numbers.calibration import Calibration, PairCalibration, load_calibration
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import file_sha256, folder_sha256
from stages.parts.students.prediction import CalibratedPrediction, calibrated_prediction
from stages.parts.task.program import IntentClassifier
from stages.parts.task.program_file import Sidecar, load_program, load_sidecar, token_fingerprint
from stages.parts.task.text import safe_text

PAIR_FILES = tuple(path.name for path in (paths.PROGRAM, paths.SIDECAR, paths.CALIBRATION))


class Classifier:
    """Makes requests for queries and reads the completions as calibrated predictions. Holds no connection and no
    state.
    """

    def __init__(self, requests: ProgramRequests, calibration: Calibration, trial_tokens: str | None = None) -> None:
        self.requests = requests
        self.calibration = calibration
        self.trial_tokens = trial_tokens

    @property
    def model(self) -> str:
        return self.requests.model

    @property
    def labels(self) -> tuple[str, ...]:
        return self.requests.program.labels

    @property
    def pair(self) -> str:
        """A name of all that an answer depends on besides the query: weights, program, calibration."""
        return f"{self.model} {self.calibration.model_dump_json()}"

    def shown(self, query: str) -> str:
        """Return the text that a prompt shows of a query. Equal ones have equal predictions; an empty one has none."""
        return safe_text(query, self.labels)

    def request(self, query: str) -> dict[str, Any]:
        """The body of a chat completion request."""
        return self.requests.body(query)

    def trial(self) -> dict[str, Any]:
        """The request of a harmless query: an engine that answers it has nothing against all of them."""
        return self.requests.trial()

    def check_trial(self, completion: dict[str, Any]) -> None:
        """Raise EngineError unless a completion of the trial is one, and was made from the tokens that training makes
        of its prompt. With others the answers would look right and be worse.
        """
        self.read(completion)
        ids = prompt_ids(completion)
        if ids and self.trial_tokens and token_fingerprint(ids) != self.trial_tokens:
            raise EngineError(
                f"{self.model} is served with another tokenizer or chat template than it was trained with: start the "
                "engine on the student's own folder, with its own template"
            )

    def read(self, completion: Mapping[str, Any]) -> CalibratedPrediction:
        """What a chat completion says; raises EngineError where it is none."""
        found = self.requests.read(dict(completion))
        prediction = calibrated_prediction(found.label, found.probabilities, self.calibration, self.model)
        return replace(
            prediction,
            reasoning=found.reasoning,
            prompt_tokens=found.prompt_tokens,
            completion_tokens=found.completion_tokens,
        )


@dataclass(frozen=True)
class Pair:
    """A pair's files as they were read from `folder`: sidecar, program, calibration. The weights stay on the disk."""

    folder: Path
    sidecar: Sidecar
    program: IntentClassifier
    calibration: PairCalibration

    @property
    def base(self) -> Path:
        return Path(self.sidecar.base)

    @property
    def checkpoint(self) -> Path:
        return Path(self.sidecar.checkpoint)

    @property
    def served_name(self) -> str:
        """The name that the checkpoint is served under, with its hash: caches go by the name alone."""
        return f"{self.checkpoint.name}-{self.sidecar.checkpoint_sha256[:12]}"

    def requests(self, kind: EndpointKind, model: str | None = None) -> ProgramRequests:
        """The program's requests to an engine that serves the weights as `model` (by default `served_name`)."""
        return ProgramRequests(self.program, kind, model or self.served_name, self.sidecar.max_tokens)

    def classifier(self, kind: EndpointKind, model: str | None = None) -> Classifier:
        return Classifier(self.requests(kind, model), self.calibration, self.sidecar.trial_tokens)

    def check_weights(self, root: Path = Path()) -> None:
        """Raise UserError where the checkpoint of the repository at `root` is not the one that was chosen."""
        check_folder(root / self.checkpoint, self.sidecar.checkpoint_sha256, self.folder)

    def check_base(self, profile: str) -> None:
        """Raise UserError where the pair is of another profile, or the base is not the one that it stands on."""
        if self.sidecar.profile != profile:
            sidecar = self.folder / paths.SIDECAR.name
            raise UserError(
                f"{sidecar} is of profile {self.sidecar.profile}, params.yaml wants {profile}: run `dvc repro`"
            )
        check_folder(self.base, self.sidecar.base_sha256, self.folder)


def load_pair(folder: Path = paths.SIDECAR.parent) -> Pair:
    """Read a pair's three files from a folder; raises UserError where one is missing or of another pair."""
    program, sidecar, calibration = (folder / name for name in PAIR_FILES)
    chosen, calibrated_for = load_sidecar(sidecar), load_calibration(calibration, PairCalibration)
    if not program.is_file() or file_sha256(program) != chosen.program_sha256:
        raise UserError(f"{program} is not what {sidecar} was made with: run `dvc repro` or `dvc checkout`")
    hashes = (chosen.checkpoint_sha256, chosen.program_sha256)
    if (calibrated_for.checkpoint_sha256, calibrated_for.program_sha256) != hashes:
        raise UserError(f"{calibration} is of another pair than {sidecar}: run `dvc repro calibrate`")
    loaded = load_program(program, chosen.labels, chosen.instructions, chosen.style)
    return Pair(folder, chosen, loaded, calibrated_for)


def check_present(folder: Path) -> None:
    """Raise UserError where a folder that DVC keeps is not there."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: run `dvc repro` or `dvc checkout`")


def check_folder(folder: Path, expected: str, pair: Path) -> None:
    check_present(folder)
    if folder_sha256(folder) != expected:
        raise UserError(
            f"{folder} is not what {pair / paths.SIDECAR.name} was made with: run `dvc repro` or `dvc checkout`"
        )
