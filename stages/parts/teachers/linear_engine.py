"""A DSPy engine over the linear teacher: it answers a ChatAdapter prompt as a language model would.

So the program, the adapter, the validation, the cache and the counting that run with a 70B teacher run with this one too.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
from dspy.lm15 import Message, Request, Response, TextPart, TokenLogprob, TopLogprob, Usage

from stages.parts.task.label_probabilities import LABEL_HEADER
from stages.parts.teachers.self_trained import SelfTrainedTeacher

QUERY = re.compile(r"\[\[ ## query ## \]\]\n(.*)\n\nRespond with the corresponding output fields", re.DOTALL)
SMALLEST = 1e-12  # a probability whose logarithm is still finite
REASONING_HEADER = "[[ ## reasoning ## ]]"


class LinearEngine:
    """Answers the query of a request's last message with the label, the terms that carried it, and all labels' log-probabilities.

    `texts` are classified at once, beforehand, which is faster than one by one. Tokens are counted as words.
    """

    def __init__(self, name: str, teacher: SelfTrainedTeacher, texts: Sequence[str]) -> None:
        self.name = name
        self.teacher = teacher
        self.known = dict(zip(texts, teacher.probabilities(texts), strict=True))

    def complete(self, request: Request) -> Response:
        prompt = request.messages[-1].text or ""
        found = QUERY.search(prompt)
        if not found:
            raise ValueError("the linear teacher answers classification prompts with a `query` field only")
        query = found[1]
        probabilities = self.known[query] if query in self.known else self.teacher.probabilities([query])[0]
        label = self.teacher.labels[int(np.argmax(probabilities))]
        fields = []
        if REASONING_HEADER in prompt:
            terms = ", ".join(f'"{term}"' for term in self.teacher.deciding_terms(query, label)) or "The wording as a whole"
            fields.append(f"{REASONING_HEADER}\n{terms} speaks for {label}.\n\n")
        tokens = [
            TokenLogprob("".join(fields) + f"{LABEL_HEADER}\n", 0.0),
            TokenLogprob(label, math.log(probabilities.max()), top=self.alternatives(probabilities)),
            TokenLogprob("\n\n[[ ## completed ## ]]", 0.0),
        ]
        answer = "".join(token.token for token in tokens)
        read, written = len(f"{request.system} {prompt}".split()), len(answer.split())
        return Response(
            id=None,
            model=self.name,
            message=Message.assistant([TextPart(answer)]),
            finish_reason="stop",
            usage=Usage(input_tokens=read, output_tokens=written, total_tokens=read + written),
            logprobs=tuple(tokens),
        )

    def alternatives(self, probabilities: np.ndarray) -> tuple[TopLogprob, ...]:
        """All labels as tokens, likeliest first."""
        order = np.argsort(-probabilities)
        return tuple(TopLogprob(self.teacher.labels[k], math.log(max(probabilities[k], SMALLEST))) for k in order)

    def __deepcopy__(self, memo: dict[int, object]) -> "LinearEngine":
        return self  # DSPy copies LMs freely; one fitted model is enough
