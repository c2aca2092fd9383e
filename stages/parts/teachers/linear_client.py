"""The linear teacher as a client in this process: it completes the program's requests in OpenAI's protocol.

The code that builds requests, parses completions and counts tokens for a 70B teacher therefore runs for this one too.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from stages.parts.encoder.vectors import Embeddings
from stages.parts.task.answer import LABEL_HEADER
from stages.parts.task.text import safe_text
from stages.parts.teachers.inputs import TeacherInputs
from stages.parts.teachers.self_trained import SelfTrainedClassifier, SelfTraining, named_labels

QUERY = re.compile(r"\[\[ ## query ## \]\]\n(.*)\n\nRespond with the corresponding output fields", re.DOTALL)
REASONING_HEADER = "[[ ## reasoning ## ]]"


class LinearClient:
    """Complete classification requests with a label, the terms that decided it, and log-probabilities of all labels.

    `known` maps texts to class probabilities [K] that were computed beforehand. Usage counts words as tokens.
    """

    def __init__(self, classifier: SelfTrainedClassifier, known: Mapping[str, np.ndarray]) -> None:
        self.classifier = classifier
        self.known = known

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        prompt = body["messages"][-1]["content"]
        found = QUERY.search(prompt)
        if not found:
            raise ValueError("the linear teacher completes classification prompts with a `query` field only")
        query = found[1]
        probabilities = self.known.get(query)
        if probabilities is None:
            probabilities = self.classifier.probabilities([query])[0]
        label = self.classifier.labels[int(np.argmax(probabilities))]
        reasoning = ""
        if REASONING_HEADER in prompt:
            quoted = [f'"{term}"' for term in self.classifier.deciding_terms(query, label)]
            reasoning = f"{REASONING_HEADER}\n{', '.join(quoted) or 'The wording as a whole'} speaks for {label}.\n\n"
        top = [token(name, chance) for name, chance in zip(self.classifier.labels, probabilities, strict=True)]
        tokens = [
            token(f"{reasoning}{LABEL_HEADER}\n", 1.0),
            {**token(label, probabilities.max()), "top_logprobs": top},
            token("\n\n[[ ## completed ## ]]", 1.0),
        ]
        content = "".join(str(part["token"]) for part in tokens)
        prompt_words = sum(len(message["content"].split()) for message in body["messages"])
        return {
            "choices": [{"message": {"content": content}, "finish_reason": "stop", "logprobs": {"content": tokens}}],
            "usage": {"prompt_tokens": prompt_words, "completion_tokens": len(content.split())},
        }


def linear_client(inputs: TeacherInputs, seed: int, embeddings: Embeddings | None = None) -> LinearClient:
    """Fit the linear teacher on people's labels and the pool.

    Gold rows get the probabilities of cross-fitting, so that judging the teacher on them is fair.
    """
    known_rows, meanings = list(inputs.rows), None
    if embeddings:
        learned = embeddings.of_rows([*inputs.pool, *inputs.gold, *inputs.reviewed])
        meanings = np.concatenate([learned, embeddings["labels"][named_labels(inputs.labels)]])
    training = SelfTraining(
        [row["text"] for row in inputs.pool], inputs.gold, inputs.labels, seed, inputs.reviewed, meanings
    )
    classifier = training.classifier()
    # All at once: faster than one by one, and a query's own text has no vector at hand.
    found = classifier.probabilities(
        [row["text"] for row in known_rows], embeddings.of_rows(known_rows) if embeddings else None
    )
    # Requests show a text without markers and odd blanks. Gold rows come last: theirs are of cross-fitting.
    known = {safe_text(row["text"], inputs.labels): chances for row, chances in zip(known_rows, found, strict=True)}
    of_gold = zip(inputs.gold, training.gold_probabilities(), strict=True)
    known |= {safe_text(row["text"], inputs.labels): chances for row, chances in of_gold}
    return LinearClient(classifier, known)


def token(text: str, probability: float) -> dict[str, Any]:
    return {"token": text, "logprob": math.log(max(float(probability), 1e-12)), "top_logprobs": []}
