"""Models that others serve behind OpenAI's protocol: vendors, gateways, engines of another team. Never started here."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.parts.task.answer import AnswerForm

# How vendors and engines call a prompt with too many tokens: codes, and words of messages.
TOO_LONG_CODES = {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
TOO_LONG = (
    "context length",  # OpenAI, vLLM, SGLang, Mistral, DeepSeek
    "context window",
    "context size",  # llama.cpp
    "maximum number of tokens",  # Gemini
    "prompt is too long",  # Anthropic
    "input is too long",  # Bedrock
    "maximum prompt length",  # xAI
    "maximum input length",
    "reduce the length of the messages",  # Groq
    "must have less than",  # TGI
    "too many tokens",
)
NO_CREDIT_CODES = {
    "insufficient_quota",
    "insufficient_balance",
    "insufficient_credits",
    "billing_hard_limit_reached",
    "billing_not_active",
    "payment_required",
    "exceeded_current_quota_error",
}
# Whole phrases, for errors without a code: a message may repeat the query, and a bank's customers write of payments;
# a limit of requests a minute comes with advice on billing.
NO_CREDIT = (
    "insufficient quota",
    "insufficient balance",
    "insufficient credit",
    "credit balance is too low",
    "billing to be enabled",
)
SHOWN = 200  # characters of a vendor's message that the user sees


class HostedEndpoint:
    """A kind of engine that others run: its words for errors. `key_name` is the variable that holds the key."""

    name = "endpoint"
    max_alternatives = 20  # OpenAI's limit

    def __init__(self, key_name: str) -> None:
        self.key_name = key_name

    def answer_options(self, form: AnswerForm | None) -> dict[str, Any]:
        return {}

    def models(self, cards: Sequence[Mapping[str, Any]]) -> list[str]:
        return [card["id"] for card in cards]

    def says_too_long(self, message: str) -> bool:
        error = error_in(message)
        return bool(error.names & TOO_LONG_CODES) or any(words in error.message.lower() for words in TOO_LONG)

    def refuses_all(self, status: int, message: str) -> str | None:
        shown = message_in(message)
        if status == 401:
            return f"the endpoint refuses the key in {self.key_name}: {shown}"
        if status == 402 or (status in (400, 403, 429) and says_no_credit(error_in(message))):
            return f"the endpoint says that no credit is left: {shown}"
        if status == 404:
            return f"the endpoint has no such model or path: {shown}"
        return None

    def complaint(self, status: int, message: str) -> str:
        return f"the endpoint answered {status}: {message_in(message)}"


@dataclass(frozen=True)
class ErrorBody:
    """An error response: its code, if that is a word, its names (code and type, in small letters), and its message."""

    code: str | None
    names: frozenset[str]
    message: str


def error_in(text: str) -> ErrorBody:
    """Return what an error response holds: OpenAI's form, the same without its frame or in a list, or any text."""
    try:
        found = json.loads(text)
        found = found[0] if isinstance(found, list) else found  # Gemini
        error = found.get("error", found)
        if isinstance(error, str):
            return ErrorBody(None, frozenset(), error)
        message = error.get("message") or error.get("detail") or text
        code = error.get("code")
    except (ValueError, IndexError, AttributeError, RecursionError):
        return ErrorBody(None, frozenset(), text)
    word = code if isinstance(code, str) and not code.isdigit() else None
    names = frozenset(str(name).lower() for name in (code, error.get("type")) if name)
    return ErrorBody(word, names, message if isinstance(message, str) else json.dumps(message))


def says_no_credit(error: ErrorBody) -> bool:
    if error.code or error.names & NO_CREDIT_CODES:  # a code says what is wrong, and its message is not searched
        return bool(error.names & NO_CREDIT_CODES)
    return any(words in error.message.lower() for words in NO_CREDIT)


def message_in(text: str) -> str:
    """Return the message of an error response in one line; of a web page, its words."""
    message = error_in(text).message
    if message.lstrip().startswith("<"):
        message = re.sub(r"(?is)<(script|style)\b.*?</\1>|<[^>]*>", " ", message)
    return in_one_line(message) or "no message"


def in_one_line(text: str) -> str:
    return " ".join(text.split())[:SHOWN]
