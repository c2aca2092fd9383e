"""Models that others serve behind OpenAI's protocol: vendors, gateways, engines of another team. Never started here."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stages.parts.task.prompt import AnswerForm

TOO_LONG = (
    "context length",
    "context_length",
    "context window",
    "too many tokens",
    "prompt is too long",
    "maximum input length",
)
NO_CREDIT = ("insufficient_quota", "insufficient quota", "insufficient balance", "insufficient credit")
# not with 429: limits of requests a minute, too, come with advice on billing
OF_PAYMENT = (*NO_CREDIT, "billing", "payment")
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
        return any(words in message.lower() for words in TOO_LONG)

    def refuses_all(self, status: int, message: str) -> str | None:
        shown = message_in(message)
        if status == 401:
            return f"the endpoint refuses the key in {self.key_name}: {shown}"
        if status == 402 or any(
            words in message.lower() for words in {403: OF_PAYMENT, 429: NO_CREDIT}.get(status, ())
        ):
            return f"the endpoint says that no credit is left: {shown}"
        if status == 404:
            return f"the endpoint has no such model or path: {shown}"
        return None

    def complaint(self, status: int, message: str) -> str:
        return f"the endpoint answered {status}: {message_in(message)}"


def message_in(message: str) -> str:
    """Return the message of an error response in one line: OpenAI's form, or the whole text."""
    try:
        error = json.loads(message)["error"]
        shown = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        shown = message
    return in_one_line(shown) or "no message"


def in_one_line(text: str) -> str:
    return " ".join(text.split())[:SHOWN]
