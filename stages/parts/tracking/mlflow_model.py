"""The served pair as an MLflow model: JSON and code, no pickle (an MLflow "model from code").

Not `mlflow.dspy`: in 3.17.2 it pickles program and settings even with use_dspy_model_save=True (program.pkl,
dspy_config.pkl), and its load_model refuses both where pickles are refused.

ENGINE_API_BASE (ends in /v1) and ENGINE_API_KEY say where the student is served:

    model = mlflow.pyfunc.load_model("models:/intent-classifier@served")
    model.predict(["My card got declined"])  # a dictionary for each query: label, confidence, abstained, ...
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import requests

from stages.parts.engines.process import KINDS
from stages.parts.run.errors import UserError
from stages.parts.students.pair import load_pair

TIMEOUT_S = 60


class IntentModel(mlflow.pyfunc.PythonModel):
    """Answers queries as the service does; raises UserError, before anything is sent, if one holds nothing to read."""

    def load_context(self, context: Any) -> None:
        # The pair's three files are in one folder.
        pair = load_pair(Path(context.artifacts["sidecar"]).parent)
        self.classifier = pair.classifier(KINDS[context.model_config["engine"]])

    def predict(
        self, context: Any, model_input: list[str], params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        for number, query in enumerate(model_input):
            if not self.classifier.shown(query):
                raise UserError(f"query {number} holds nothing to read: leave it out")
        api_base = os.environ["ENGINE_API_BASE"].rstrip("/")
        answers = []
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {os.environ.get('ENGINE_API_KEY', '')}"
            for query in model_input:
                response = session.post(
                    f"{api_base}/chat/completions", json=self.classifier.request(query), timeout=TIMEOUT_S
                )
                response.raise_for_status()
                answers.append(asdict(self.classifier.read(response.json())))
        return answers


mlflow.models.set_model(IntentModel())
