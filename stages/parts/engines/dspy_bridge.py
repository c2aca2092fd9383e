"""An engine as a DSPy language model, for what DSPy runs: the optimiser."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import dspy
from dspy.clients.engines.lm15_engine import LM15Engine
from dspy.lm15 import Request, Response, RouterConfig

from stages.parts.engines.engine import ServedModel
from stages.parts.task.dspy_context import using
from stages.parts.task.label_probabilities import alternatives
from stages.parts.task.program import IntentClassifier
from stages.parts.task.prompt import StudentFormat, answer_form

RETRIES = 5  # with DSPy's exponential back-off, about a minute: enough for a rate limit or an engine's hiccup


class OptionsEngine:
    """DSPy's own client with request keys that only our engines know. Given to dspy.LM directly they would reroute each
    call through litellm, at four times the processor time (6.8 ms against 1.5 ms a call)."""

    def __init__(self, served: ServedModel, options: Mapping[str, Any], whole_at_limit: bool) -> None:
        self.options = dict(options)
        self.whole_at_limit = whole_at_limit
        self.engine = LM15Engine(RouterConfig(api_keys={"vllm": served.key}, base_urls={"vllm": served.api_base}))

    def complete(self, request: Request) -> Response:
        extensions = {**(request.config.extensions or {}), **self.options}
        response = self.engine.complete(replace(request, config=replace(request.config, extensions=extensions)))
        if self.whole_at_limit:
            # a label that fills its last token is whole: DSPy would warn of each
            response = replace(response, finish_reason="stop")
        return response

    def __deepcopy__(self, memo: dict[int, object]) -> "OptionsEngine":
        return self  # DSPy copies LMs freely; connections are shared


@contextmanager
def using_student(served: ServedModel, name: str, program: IntentClassifier, most_tokens: int) -> Iterator[None]:
    """Run programs like `program` on a served student, at temperature 0 and with the chosen tokens' log-probabilities.
    Not cached: asking again is cheap."""
    form = answer_form(program.labels, program.style)
    student = dspy.LM(
        f"hosted_vllm/{served.names[name]}",
        engine=OptionsEngine(served, served.kind.answer_options(form), whole_at_limit=bool(form.choices)),
        temperature=0.0,
        max_tokens=most_tokens,
        logprobs=True,
        top_logprobs=alternatives(len(program.labels), served.kind.most_alternatives),
        num_retries=RETRIES,
        cache=False,
    )
    with using(student, StudentFormat()):
        yield
