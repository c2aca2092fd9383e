"""The program as a model behind OpenAI's chat protocol, so that any OpenAI client can call the classifier.

The last user message is the query. The program brings its own instructions and examples, so other messages are not
read. The answer's content is the label; `intent` beside the choices is the whole answer.
"""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from serve.http.keys import KeyCheck
from serve.schemas import PROBLEMS, Classification, QueryText
from serve.service import Service

STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
query_text: TypeAdapter[str] = TypeAdapter(QueryText)


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


text_parts: TypeAdapter[list[TextPart]] = TypeAdapter(list[TextPart])


class ChatMessage(BaseModel):
    """Any message of OpenAI's: tool calls, images and what else is not read may stand before the query."""

    role: str
    content: Any = None

    def query(self) -> str:
        """Its text as a query; raises ValidationError where it has other parts than text, or will not do."""
        parts = self.content
        text = parts if isinstance(parts, str) else "\n".join(part.text for part in text_parts.validate_python(parts))
        return query_text.validate_python(text)


class ChatRequest(BaseModel):
    """OpenAI's chat completion request. What only shapes free text (temperature, max_tokens, ...) has no effect
    here.
    """

    messages: Annotated[
        list[ChatMessage], Field(min_length=1, examples=[[{"role": "user", "content": "My card got declined"}]])
    ]
    stream: bool = False


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    index: int = 0
    message: AssistantMessage
    finish_reason: Literal["stop"] = "stop"


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    intent: Classification


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    owned_by: str = "this service"


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class ChunkChoice(BaseModel):
    index: int = 0
    delta: dict[str, str]
    finish_reason: Literal["stop"] | None


class Chunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]


def chat_router(service: Service, keys: KeyCheck) -> APIRouter:
    """/v1/chat/completions and /v1/models for a service."""
    routes = APIRouter(prefix="/v1", route_class=keys.route())

    @routes.post("/chat/completions", responses=PROBLEMS | STREAM, response_model=ChatCompletion)
    async def chat_completions(request: ChatRequest) -> Any:
        """Classify the last user message."""
        last = next(
            (message for message in reversed(request.messages) if message.role == "user"),
            ChatMessage(role="user", content=""),
        )
        try:
            query = last.query()
        except ValidationError as error:
            raise HTTPException(400, f"the last user message: {error.errors()[0]['msg']}") from None
        answer = (await service.classify([query]))[0]
        name, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        if request.stream:
            return StreamingResponse(chunks(name, created, answer), media_type="text/event-stream")
        message = AssistantMessage(content=answer.label)
        return ChatCompletion(
            id=name, created=created, model=answer.model, choices=[ChatChoice(message=message)], intent=answer
        )

    @routes.get("/models", responses={401: PROBLEMS[401]})
    async def models() -> Models:
        """The one model there is."""
        return Models(data=[Model(id=service.classifier.model)])

    return routes


async def chunks(name: str, created: int, answer: Classification) -> AsyncIterator[str]:
    """Server-sent events: the label at once, then the end."""
    for choice in (
        ChunkChoice(delta={"role": "assistant", "content": answer.label}, finish_reason=None),
        ChunkChoice(delta={}, finish_reason="stop"),
    ):
        yield f"data: {Chunk(id=name, created=created, model=answer.model, choices=[choice]).model_dump_json()}\n\n"
    yield "data: [DONE]\n\n"
