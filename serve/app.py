"""The HTTP app around the served program."""

from typing import Annotated

import dspy
from dspy.utils.exceptions import LMError
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from stages.parts.lm import using
from stages.parts.task import IntentClassifier

MAX_QUERY = 4000  # characters; the tiny student reads 4,096 tokens, prompt included


class Query(BaseModel):
    query: Annotated[str, Field(min_length=1, max_length=MAX_QUERY, examples=["My card got declined"])]


class Answer(BaseModel):
    """`label` is one of the labels, or "unknown" where the model's answer names none; `confidence` its probability in [0, 1]."""

    label: str
    confidence: float | None
    reasoning: str
    model: str


def create_app(program: IntentClassifier, lm: dspy.LM) -> FastAPI:
    """The app for a program on a running engine. 503 where the engine fails."""
    app = FastAPI(title="Intent classifier")

    @app.post("/classify_intent")
    async def classify_intent(query: Query) -> Answer:
        try:
            with using(lm):
                found = await program.acall(query=query.query)
        except LMError as error:
            raise HTTPException(503, f"the engine failed: {type(error).__name__}", headers={"Retry-After": "1"}) from None
        return Answer(label=found.label, confidence=found.confidence, reasoning=found.reasoning, model=lm.model.partition("/")[2])

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "up"}

    return app
