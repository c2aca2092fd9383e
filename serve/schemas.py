"""What requests and responses look like: the source of the OpenAPI document."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from stages.parts.students.pair import RunnerUp

MAX_QUERY = 4000  # characters
MAX_BATCH = 256  # queries

QueryText = Annotated[str, Field(min_length=1, max_length=MAX_QUERY, examples=["My card got declined"])]


class ClassifyRequest(BaseModel):
    query: QueryText


class BatchRequest(BaseModel):
    queries: Annotated[list[QueryText], Field(min_length=1, max_length=MAX_BATCH)]


class Classification(BaseModel):
    """What the service says of a query. `confidence` is calibrated: of many answers at 0.8, 80 % are right.

    With `abstained`, the confidence is below the threshold that the wanted precision needs, and `label` is the best
    guess; it is "unknown" where the model's answer named no label.
    """

    label: str = Field(examples=["declined_card_payment"])
    confidence: float = Field(ge=0, le=1)
    abstained: bool
    runners_up: list[RunnerUp] = Field(description="the next likeliest labels, likeliest first")
    reasoning: str | None = Field(description="the student's reasons, where the program asks for them")
    model: str = Field(description="the weights, by name and hash")


class Classifications(BaseModel):
    answers: list[Classification] = Field(description="in the order of the queries")


class Problem(BaseModel):
    """What went wrong, in one line. It never repeats the query."""

    detail: str


# What every route that asks the engine can answer besides 200 and FastAPI's own 422.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": why}
    for status, why in {
        400: "The body can't be read",
        401: "No valid API key",
        408: "The body did not come in time",
        413: "The body, the query or the batch is too large",
        429: "Too many queries in flight; see Retry-After",
        503: "The engine is not up; see Retry-After",
        504: "The engine did not answer in time",
    }.items()
}
