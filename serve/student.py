"""The pair that `optimize` chose, checked, and the engine that serves its weights."""

import asyncio
import os
from dataclasses import dataclass

from stages.parts.engines.engine import Engine, RunningEngine, ServedModel
from stages.parts.engines.http_client import EngineClient, EngineError, EngineTimeout
from stages.parts.engines.process import KINDS
from stages.parts.numbers.calibration import Calibration
from stages.parts.run.params import Params
from stages.parts.students.pair import Classifier, load_pair
from stages.parts.students.prediction import CalibratedPrediction
from stages.parts.students.serving import base_engine, shares_an_engine, tuned_engine

ENGINE_KEY = "ENGINE_API_KEY"
# an engine names its models at once, however busy it is, but Ray's proxy holds requests while no replica is there
LISTING_S = 5


@dataclass(frozen=True)
class ServedStudent:
    """A classifier, and the engine that it queries."""

    classifier: Classifier
    engine: Engine


def load_served_student(params: Params, base_there: str | None = None) -> ServedStudent:
    """Load and check everything that `make serve` needs; raises UserError where something is missing or does not belong
    together.

    `base_there`: the model of the engine at `engine.api_base`, where it wants its adapters asked for as BASE:ADAPTER.
    """
    pair = load_pair()
    pair.check_base(params.profile)
    pair.check_weights()
    checkpoint, name = pair.checkpoint, pair.served_name
    engine: Engine
    if params.engine.api_base:
        name = f"{base_there}:{name}" if base_there else name
        engine = engine_elsewhere(params, {checkpoint.name: name})
    elif shares_an_engine(checkpoint, params):
        engine = base_engine(pair.base, {checkpoint.name: checkpoint}, params)
        name = engine.served.names[checkpoint.name]
    else:
        engine = tuned_engine(pair.base, checkpoint, name, params)
    return ServedStudent(pair.classifier(engine.served.kind, name), engine)


def engine_elsewhere(params: Params, names: dict[str, str]) -> RunningEngine:
    """The engine at `engine.api_base`, which serves `names`; its key is in ENGINE_API_KEY."""
    assert params.engine.api_base
    api_base, key = params.engine.api_base.rstrip("/"), os.environ.get(ENGINE_KEY, "")
    return RunningEngine(ServedModel(api_base, names, key, KINDS[params.engine.kind]))


class EngineClassifier:
    """A QueryClassifier: predictions are read from an engine's completions."""

    def __init__(self, classifier: Classifier, client: EngineClient) -> None:
        self.classifier = classifier
        self.client = client
        self.calibration: Calibration = classifier.calibration
        self.model, self.labels, self.pair = classifier.model, classifier.labels, classifier.pair

    def shown(self, query: str) -> str:
        return self.classifier.shown(query)

    async def predict(self, query: str) -> CalibratedPrediction:
        return self.classifier.read(await self.client.complete(self.classifier.request(query)))


async def check_engine(student: ServedStudent, client: EngineClient) -> None:
    """Raise EngineError unless the engine serves the student's weights and a query gets a label."""
    name = student.classifier.model
    try:
        async with asyncio.timeout(LISTING_S):
            served = await client.models()
    except TimeoutError:
        raise EngineTimeout(f"the engine did not name its models within {LISTING_S} s") from None
    if name not in served:
        raise EngineError(
            f"it serves {', '.join(served)}, not {name}: start it with --served-model-name {name}, on the weights "
            f"of that hash"
        )
    student.classifier.check_trial(await client.complete(student.classifier.trial()))
