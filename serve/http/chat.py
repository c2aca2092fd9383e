"""The program as a model behind OpenAI's chat protocol, so that any OpenAI client can call the classifier.

The last user message is the query. The program brings its own instructions and examples, so other messages are not
read. The response's content is the label; `intent` beside the choices is the whole classification. A parameter that
would change the response, and that a classifier can't honour, is refused; what only shapes free text has no effect.
"""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from serve.http.failures import Unsupported
from serve.http.keys import KeyCheck
from serve.http.routes import checked_route
from serve.schemas import PROBLEMS, Classification, OpenAIProblem, QueryText, Usage
from serve.service import Service

STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
OPENAI_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {**problem, "model": OpenAIProblem}
    for status, problem in (
        PROBLEMS | {404: {"description": "No such model"}, 422: {"description": "No query"}}
    ).items()
}
query_text: TypeAdapter[str] = TypeAdapter(QueryText)


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


text_parts: TypeAdapter[list[TextPart]] = TypeAdapter(list[TextPart])


class ChatMessage(BaseModel):
    """Any message of OpenAI's: tool calls, images and other things that are not read may precede the query."""

    role: str
    content: Any = None

    def query(self) -> str:
        """Return its text as a query; raises ValidationError if it has other parts than text, or is no query."""
        parts = self.content
        text = parts if isinstance(parts, str) else "\n".join(part.text for part in text_parts.validate_python(parts))
        return query_text.validate_python(text)


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class ResponseFormat(BaseModel):
    type: str


class ChatRequest(BaseModel):
    """OpenAI's chat completion request. The fields that are not named here have no effect on a label."""

    messages: Annotated[
        list[ChatMessage], Field(min_length=1, examples=[[{"role": "user", "content": "My card got declined"}]])
    ]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    tool_choice: str | dict[str, Any] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    stop: str | list[str] | None = None

    def check(self, labels: Sequence[str]) -> None:
        """Raise Unsupported, with its name, for a parameter that a classifier of these labels can't honour."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        optional_tools = ("auto", "none", None)
        refused = {
            "n": (self.n not in (None, 1), "there is one answer to a query"),
            "logprobs": (bool(self.logprobs), "the response has no tokens; `intent` has the labels' confidences"),
            "top_logprobs": (bool(self.top_logprobs), "see `intent`, which has the labels' confidences"),
            "logit_bias": (bool(self.logit_bias), "the labels' probabilities are calibrated without it"),
            "response_format": (
                self.response_format is not None and self.response_format.type != "text",
                "the response is a label, in plain text; `intent` has it as JSON",
            ),
            "tool_choice": (self.tool_choice not in optional_tools, "this model calls no tools"),
            "function_call": (self.function_call not in optional_tools, "this model calls no functions"),
            "modalities": (self.modalities not in (None, ["text"]), "the response is text"),
            "audio": (self.audio is not None, "the response is text"),
            "web_search_options": (self.web_search_options is not None, "this model searches nothing"),
            "stop": (any(stop in label for stop in stops for label in labels), "it is a part of a label"),
            "stream_options": (self.stream_options is not None and not self.stream, "it needs stream: true"),
        }
        for param, (is_refused, why) in refused.items():
            if is_refused:
                raise Unsupported(param, why)

    def query(self) -> str:
        """Return the last user message's text; raises Unsupported if there is none."""
        users = [message for message in self.messages if message.role == "user"]
        try:
            return (users[-1] if users else ChatMessage(role="user", content="")).query()
        except ValidationError as error:
            first = error.errors()[0]
            # a query without text gets a 422 on every route, all else OpenAI's 400
            status = 422 if first["type"] == "string_too_short" and users else 400
            raise Unsupported("messages", f"the last user message: {first['msg']}", status) from None


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int = 0
    message: AssistantMessage
    logprobs: None = None
    finish_reason: Literal["stop"] = "stop"


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    intent: Classification


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when this service loaded it, in seconds since 1970")
    owned_by: str = "this service"


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class ChunkChoice(BaseModel):
    index: int = 0
    delta: dict[str, str]
    logprobs: None = None
    finish_reason: Literal["stop"] | None


class Chunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


def chat_router(service: Service, keys: KeyCheck) -> APIRouter:
    """Make /v1/chat/completions and /v1/models for a service."""
    routes = APIRouter(prefix="/v1", route_class=checked_route(keys))
    started = int(time.time())

    def model() -> Model:
        return Model(id=service.classifier.model, created=started)

    @routes.post("/chat/completions", responses=OPENAI_PROBLEMS | STREAM, response_model=ChatCompletion)
    async def chat_completions(request: ChatRequest) -> Any:
        """Classify the last user message."""
        request.check(service.classifier.labels)
        (prediction,) = await service.predict([request.query()])
        name, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        usage = Usage.of(prediction)
        if request.stream:
            wants_usage = request.stream_options and request.stream_options.include_usage
            events = chunks(name, created, prediction.model, prediction.label, usage if wants_usage else None)
            return StreamingResponse(events, media_type="text/event-stream")
        choice = ChatChoice(message=AssistantMessage(content=prediction.label))
        return ChatCompletion(
            id=name,
            created=created,
            model=prediction.model,
            choices=[choice],
            usage=usage,
            intent=Classification.of(prediction),
        )

    @routes.get("/models", responses={401: OPENAI_PROBLEMS[401]})
    async def models() -> Models:
        """List the one model there is."""
        return Models(data=[model()])

    @routes.get("/models/{name:path}", responses={status: OPENAI_PROBLEMS[status] for status in (401, 404)})
    async def model_by_name(name: str) -> Model:
        """Describe the model."""
        served = model()
        if name != served.id:
            raise Unsupported("model", f"{name!r} is not served here: {served.id} is", 404)
        return served

    return routes


async def chunks(name: str, created: int, model: str, label: str, usage: Usage | None) -> AsyncIterator[str]:
    """Yield server-sent events: the label at once, the end, and with `usage` a last chunk that has no choice."""
    first = ChunkChoice(delta={"role": "assistant", "content": label}, finish_reason=None)
    last = ChunkChoice(delta={}, finish_reason="stop")
    for choices in ([first], [last], *([[]] if usage else [])):
        chunk = Chunk(id=name, created=created, model=model, choices=choices, usage=None if choices else usage)
        # OpenAI's chunks have `usage` only if it was requested, and null in all but the last
        yield f"data: {chunk.model_dump_json(exclude=None if usage else {'usage'})}\n\n"
    yield "data: [DONE]\n\n"
