"""A sample of what DSPy calls in a stage, written down where `tracking.mlflow` is set; otherwise nothing is recorded.

MLflow's own autologging would have to run inside the stage, beside packages that it can't share. So the stage leaves
the calls in .cache, and stages/parts/tracking logs them to the stage's run by that run's id: no thread can attach a
call to another run.
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dspy
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback

from stages.parts.run.files import write_json
from stages.parts.run.params import Params
from stages.parts.run.paths import TRACES

SAMPLE = 20  # traces


class CallRecorder(BaseCallback):
    """Keeps a uniform sample of the outermost calls (reservoir sampling), each with the calls of modules and models
    inside it, in the order in which they began."""

    def __init__(self, sample: int = SAMPLE) -> None:
        self.sample, self.seen = sample, 0
        self.kept: list[list[dict[str, Any]]] = []
        self.draw = random.Random(0)
        self.lock = threading.Lock()
        self.running: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}

    def begin(self, call_id: str, kind: str, name: str, inputs: Any) -> None:
        outer = ACTIVE_CALL_ID.get()
        inside = outer in self.running  # and not the optimiser's own, which is no trace
        trace = self.running[outer][1] if inside else []
        call = {"id": call_id, "parent": outer if inside else None, "kind": kind, "name": name, "inputs": inputs}
        trace.append({**call, "started_ns": time.time_ns()})
        self.running[call_id] = trace[-1], trace

    def end(self, call_id: str, outputs: Any, exception: BaseException | None, usage: Any = None) -> None:
        call, trace = self.running.pop(call_id)
        error = repr(exception) if exception else None
        call |= {"ended_ns": time.time_ns(), "outputs": outputs, "error": error, "usage": usage}
        if call["parent"] is not None:
            return
        with self.lock:
            self.seen += 1
            place = self.draw.randrange(self.seen)
            if len(self.kept) < self.sample:
                self.kept.append(trace)
            elif place < self.sample:
                self.kept[place] = trace

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.begin(call_id, "module", type(instance).__name__, inputs["kwargs"])

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        # Log-probabilities are long, and what they come to is in the program's own answer.
        said = {name: value for name, value in outputs.toDict().items() if name != "logprobs"} if outputs else None
        self.end(call_id, said, exception, usage=outputs.get_lm_usage() if outputs else None)

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.begin(call_id, "model", instance.model, inputs["messages"])

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        said = [answer["text"] if isinstance(answer, dict) else answer for answer in outputs or ()]
        self.end(call_id, said, exception)


@contextmanager
def recorded_calls(stage: str, params: Params) -> Iterator[None]:
    """Leave a sample of the block's DSPy calls for the tracking process, which runs when the stage is finished."""
    if not params.tracking.mlflow:
        yield
        return
    recorder = CallRecorder()
    with dspy.context(callbacks=[recorder]):
        yield
    write_json(TRACES / f"{stage}.json", recorder.kept)
