"""The served pair as an MLflow model: JSON and code, no pickle (an MLflow "model from code").

Not `mlflow.dspy`: in 3.17.2 it pickles program and settings even with use_dspy_model_save=True (program.pkl,
dspy_config.pkl), and its load_model refuses both where pickles are refused.

stages/parts/tracking logs it. Whoever loads it says where the student is served, in ENGINE_API_BASE (ends in /v1) and
ENGINE_API_KEY:

    model = mlflow.pyfunc.load_model("models:/intent-classifier@served")
    model.predict(["My card got declined"])  # one dictionary a query: label, confidence, abstained, ...
"""

import os
from pathlib import Path
from typing import Any

import mlflow
import requests

from serve.classifier import Classifier
from stages.parts.engines.kinds import KINDS
from stages.parts.engines.requests import ProgramRequests
from stages.parts.numbers.calibration import load_calibration
from stages.parts.task.program_file import load_program, load_sidecar

TIMEOUT_S = 60


class IntentModel(mlflow.pyfunc.PythonModel):
    """Answers queries as the service does."""

    def load_context(self, context: Any) -> None:
        files = {name: Path(path) for name, path in context.artifacts.items()}
        pair = load_sidecar(files["sidecar"])
        program = load_program(files["program"], pair.labels, pair.instructions, pair.style)
        name = f"{Path(pair.checkpoint).name}-{pair.checkpoint_sha256[:12]}"
        asked = ProgramRequests(program, KINDS[context.model_config["engine"]], name, pair.max_tokens)
        self.classifier = Classifier(asked, load_calibration(files["calibration"]))

    def predict(
        self, context: Any, model_input: list[str], params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        api_base = os.environ["ENGINE_API_BASE"].rstrip("/")
        answers = []
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {os.environ.get('ENGINE_API_KEY', '')}"
            for query in model_input:
                response = session.post(
                    f"{api_base}/chat/completions", json=self.classifier.request(query), timeout=TIMEOUT_S
                )
                response.raise_for_status()
                answers.append(self.classifier.answer(response.json()).model_dump())
        return answers


mlflow.models.set_model(IntentModel())
