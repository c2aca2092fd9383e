"""Chat completions in one compact form, whatever form a vendor sends them in: an answer that was paid is never dropped
for its form.

Content may be a string or a list of parts. Log-probabilities may be OpenAI's objects, Together's lists, null, or
numbers that are none: those that can't be read mean no probabilities. Usage may be absent, zero, strings, or leave out
hidden reasoning: what is missing is estimated from bytes, and marked so.
"""

import math
from collections.abc import Mapping
from typing import Any

from stages.parts.engines.http_client import UnreadableAnswer
from stages.parts.task.label_probabilities import tokens_of_label

LABEL_TOKENS = 40  # whose alternatives are kept
BYTES_PER_TOKEN = 3  # of UTF-8: English has about 4, scripts of three bytes a character about 3
MOST_TOKENS = 10**8  # of one answer: a larger number would only end a budget
ROUNDING = 1e-3  # that a log-probability may be above 0, and a sum of probabilities above 1
UNREADABLE = (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError)


def compact(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what readers need of a completion: content, reason to finish, usage, and the log-probabilities of the
    label's tokens alone (those of a whole reasoning take 100 KB). Raises UnreadableAnswer if it is none.

    Usage has 0 for a number that the vendor does not give (`with_estimates`).
    """
    try:
        choice = answer["choices"][0]
        message = choice.get("message") or {"content": choice["text"]}
        content = text_of(message.get("content"))
    except UNREADABLE:
        raise UnreadableAnswer(f"the engine's answer is no chat completion: {shape_of(answer)}", answer) from None
    tokens = label_tokens(choice.get("logprobs"))
    return {
        "choices": [
            {
                "message": {"content": content},
                "finish_reason": choice.get("finish_reason"),
                "logprobs": None if tokens is None else {"content": tokens},
            }
        ],
        "usage": usage_of(answer),
    }


def prompt_ids(completion: Mapping[str, Any]) -> list[int] | None:
    """Return the prompt's token ids, if an engine reports them: vLLM of a completion, SGLang of a choice."""
    ids = completion.get("prompt_token_ids") or completion["choices"][0].get("prompt_token_ids")
    return ids if isinstance(ids, list) else None


def shape_of(answer: Mapping[str, Any]) -> str:
    """Return what an answer without a message has instead, for an error."""
    choices = answer.get("choices")
    if not choices or not isinstance(choices, list):
        return "it has no choices"
    return (
        f"its first choice has no message, but {', '.join(choices[0]) if isinstance(choices[0], dict) else choices[0]}"
    )


def text_of(content: Any) -> str:
    """Return the text of a message's content: a string, null, or a list of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TypeError
    parts = [{"text": part} if isinstance(part, str) else part for part in content]
    return "".join(part["text"] for part in parts if part.get("type") in (None, "text", "output_text"))


def label_tokens(logprobs: Any) -> list[dict[str, Any]] | None:
    """Return the label's tokens in OpenAI's form, with their alternatives; None if they can't be read."""
    if not logprobs:
        return None
    try:
        tokens = raw_tokens(logprobs)
        # Only these are converted: a whole reasoning's would take milliseconds.
        count = len(tokens_of_label([{"token": token} for token, _, _ in tokens]))
        return [token_of(*token) for token in tokens[len(tokens) - count :][:LABEL_TOKENS]]
    except UNREADABLE:
        return None


def raw_tokens(logprobs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return each token with its log-probability and its alternatives as they came, in OpenAI's form or Together's."""
    if logprobs.get("content") is None and "tokens" in logprobs:
        tokens = logprobs["tokens"]
        alternatives = logprobs.get("top_logprobs") or [None] * len(tokens)
        return list(zip(tokens, logprobs["token_logprobs"], alternatives, strict=True))
    return [(entry["token"], entry["logprob"], entry.get("top_logprobs")) for entry in logprobs["content"]]


def token_of(token: str, number: Any, alternatives: Any) -> dict[str, Any]:
    """Return a token in OpenAI's form; raises ValueError or TypeError for numbers that are no log-probabilities.

    `alternatives` are OpenAI's list of objects, or Together's object of numbers by token.
    """
    own = log_probability(number)
    listed = alternatives or ()
    pairs = listed.items() if isinstance(listed, dict) else [(other["token"], other["logprob"]) for other in listed]
    # An alternative without a number, as some engines report for tokens that their grammar rules out, has none.
    others = [(name, log_probability(value)) for name, value in pairs if value is not None and value == value]
    if math.exp(own) + sum(math.exp(value) for name, value in others if name != token) > 1 + ROUNDING:
        raise ValueError
    found = [{"token": name, "logprob": value} for name, value in others]
    return {"token": token, "logprob": own, "top_logprobs": found}


def log_probability(value: Any) -> float:
    number = float(value)
    if not number <= ROUNDING:  # NaN as well
        raise ValueError
    return min(number, 0.0)


def usage_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return prompt and completion tokens; 0 for a number that is absent, or none."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        usage = {}
    prompt = count_of(usage.get("prompt_tokens", usage.get("input_tokens")))
    completion = count_of(usage.get("completion_tokens", usage.get("output_tokens")))
    # Some vendors count hidden reasoning in the total alone, and bill it.
    completion = max(completion, count_of(usage.get("total_tokens")) - prompt)
    marked = {"estimated": True} if usage.get("estimated") else {}
    return {"prompt_tokens": prompt, "completion_tokens": completion, **marked}


def count_of(value: Any) -> int:
    """Return a number of tokens; 0 for what is none."""
    try:
        number = int(float(value))
    except UNREADABLE:
        return 0
    return number if 0 <= number <= MOST_TOKENS else 0


def with_estimates(
    usage: Mapping[str, Any], body: Mapping[str, Any] | None, completion: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a usage whose missing numbers are estimated, from the bytes of prompt and content, and which says so.

    `body` is None for a batch's answer before its request is known again: its prompt is not counted.
    """
    content = "".join(choice["message"]["content"] for choice in completion["choices"])
    prompt = "".join(message["content"] for message in body["messages"]) if body else ""
    estimates = {"prompt_tokens": tokens_in(prompt), "completion_tokens": tokens_in(content)}
    missing = {name: tokens for name, tokens in estimates.items() if tokens and not usage[name]}
    return {**usage, **missing, "estimated": True} if missing else dict(usage)


def tokens_in(text: str) -> int:
    return math.ceil(len(text.encode(errors="replace")) / BYTES_PER_TOKEN)
