"""What requests and responses look like: the source of the OpenAPI document."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from stages.parts.students.prediction import Abstention, CalibratedPrediction, RunnerUp

MAX_QUERY = 4000  # characters
MAX_BATCH = 256  # queries


QueryText = Annotated[str, Field(min_length=1, max_length=MAX_QUERY, examples=["My card got declined"])]


class ClassifyRequest(BaseModel):
    query: QueryText


class BatchRequest(BaseModel):
    queries: Annotated[list[QueryText], Field(min_length=1, max_length=MAX_BATCH)]


class Classification(BaseModel):
    """The answer to a query, by the student unless `answered_by` says otherwise. `confidence` is calibrated: of many
    answers at 0.8, 80 % are right.

    `abstained` is "unsure" if the confidence is below the threshold that the wanted precision needs. Then `label` is
    the best guess, or "unknown" if the completion named no label. It is "out_of_scope" if the text is unlike all that
    the student knows: probably no label fits. Only an encoder student can tell.
    """

    label: str = Field(examples=["declined_card_payment"])
    confidence: float = Field(ge=0, le=1)
    abstained: Abstention | None = Field(description="why the label is no more than a guess; null for an answer")
    runners_up: list[RunnerUp] = Field(description="the next most likely labels, most likely first")
    reasoning: str | None = Field(description="the student's reasons, if the program asks for them")
    model: str = Field(description="the weights, by name and hash")
    answered_by: Literal["student", "teacher"] = Field(description="the teacher, if serve.when_unsure says so")
    price_usd: float | None = Field(description="what the teacher's answer cost, if it is known")

    @classmethod
    def of(cls, prediction: CalibratedPrediction) -> Self:
        """Return a prediction in the service's form."""
        return cls(**fields_of(prediction))


FIELDS = tuple(Classification.model_fields)


def fields_of(prediction: CalibratedPrediction) -> dict[str, Any]:
    """Return a prediction's fields as the JSON of a Classification has them, without pydantic's 20 µs for checks."""
    return {name: getattr(prediction, name) for name in FIELDS}


class Classifications(BaseModel):
    answers: list[Classification] = Field(description="in the order of the queries")


class Usage(BaseModel):
    """The tokens of the completion that the label was read from, in the engine; a cached answer repeats them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prediction: CalibratedPrediction) -> Self:
        """Return the tokens of a prediction."""
        prompt, completion = prediction.prompt_tokens, prediction.completion_tokens
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class Problem(BaseModel):
    """What went wrong, in one line. It never repeats the query."""

    detail: str


class OpenAIProblemDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIProblem(BaseModel):
    """The same in OpenAI's form, below /v1."""

    error: OpenAIProblemDetail


# What every route that queries the engine can answer besides 200 and FastAPI's own 422.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": why}
    for status, why in {
        400: "The body can't be read",
        401: "No valid API key",
        408: "The body did not come in time",
        413: "The body, the query or the batch is too large",
        415: "The body is not sent as JSON; the problem names the header",
        429: "Too many queries in flight; see Retry-After",
        503: "The engine is not up; see Retry-After",
        504: "The engine did not answer in time",
    }.items()
}
