"""The linear teacher as an engine in this process: it answers the program's requests as a language model behind
OpenAI's protocol would.

So requests, reading, checks and counting that run with a 70B teacher run with this one too.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from stages.parts.task.label_probabilities import LABEL_HEADER
from stages.parts.teachers.questions import Questions
from stages.parts.teachers.self_trained import Lessons, SelfTrainedTeacher

QUERY = re.compile(r"\[\[ ## query ## \]\]\n(.*)\n\nRespond with the corresponding output fields", re.DOTALL)
REASONING_HEADER = "[[ ## reasoning ## ]]"


class LinearClient:
    """Answers the query of a request's last message with the label, the terms that carried it, and the labels'
    log-probabilities.

    `known` are the labels' probabilities [K] of texts that were classified beforehand. Tokens are counted as words.
    """

    def __init__(self, teacher: SelfTrainedTeacher, known: Mapping[str, np.ndarray]) -> None:
        self.teacher = teacher
        self.known = known

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        prompt = body["messages"][-1]["content"]
        found = QUERY.search(prompt)
        if not found:
            raise ValueError("the linear teacher answers classification prompts with a `query` field only")
        query = found[1]
        probabilities = self.known[query] if query in self.known else self.teacher.probabilities([query])[0]
        label = self.teacher.labels[int(np.argmax(probabilities))]
        reasoning = ""
        if REASONING_HEADER in prompt:
            terms = (
                ", ".join(f'"{term}"' for term in self.teacher.deciding_terms(query, label)) or "The wording as a whole"
            )
            reasoning = f"{REASONING_HEADER}\n{terms} speaks for {label}.\n\n"
        top = [token(name, chance) for name, chance in zip(self.teacher.labels, probabilities, strict=True)]
        tokens = [
            token(f"{reasoning}{LABEL_HEADER}\n", 1.0),
            {**token(label, probabilities.max()), "top_logprobs": top},
            token("\n\n[[ ## completed ## ]]", 1.0),
        ]
        answer = "".join(str(part["token"]) for part in tokens)
        read, written = sum(len(message["content"].split()) for message in body["messages"]), len(answer.split())
        return {
            "choices": [{"message": {"content": answer}, "finish_reason": "stop", "logprobs": {"content": tokens}}],
            "usage": {"prompt_tokens": read, "completion_tokens": written},
        }


def linear_client(questions: Questions, seed: int) -> LinearClient:
    """The linear teacher, fitted on what people labelled and the pool. Of gold rows it says what it would have said
    without their label.
    """
    lessons = Lessons(
        [row["text"] for row in questions.pool], questions.gold, questions.labels, seed, questions.reviewed
    )
    teacher, texts = lessons.teacher(), [row["text"] for row in questions.rows]
    known = dict(zip(texts, teacher.probabilities(texts), strict=True))  # all at once: faster than one by one
    known |= zip((row["text"] for row in questions.gold), lessons.on_gold(), strict=True)
    return LinearClient(teacher, known)


def token(text: str, probability: float) -> dict[str, Any]:
    return {"token": text, "logprob": math.log(max(float(probability), 1e-12)), "top_logprobs": []}
