"""From a model's log-probabilities to a distribution over the labels."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from stages.parts.task.answer import value_start
from stages.parts.task.labels import LEAD, spelled

# tokens whose log-probabilities are requested at each position, if there are no more labels: OpenAI's limit
ALTERNATIVES = 20
ROUNDING = 0.01  # a log-probability above 0 by more than this is none


def alternatives(labels: int, most: int) -> int:
    """Return how many alternatives to request of a student, whose next tokens are the labels nearly alone, from an
    engine that reports at most `most`.
    """
    return min(max(ALTERNATIVES, labels), most)


def label_probabilities(logprobs: Any, labels: Sequence[str]) -> dict[str, float]:
    """Return the labels' probabilities, the highest first, from an OpenAI-style `logprobs` object; empty if it shows
    none, or holds what can be no log-probability.

    Walks the answer's tokens from the label's first on. Where an alternative token leads to other labels, they get its
    probability, in equal parts if it leads to several. So a label of one token, and the answer itself, have exact
    probabilities; labels that no reported alternative leads to have none. A label that others begin with has the
    probability that the answer also ends there.
    """
    found: dict[str, float] = {}
    names = {bare(label): label for label in labels}
    reached, so_far = "", 1.0
    for entry in tokens_of_label(logprobs["content"] if logprobs else []):
        reachable = tuple(name for name in names if name.startswith(reached))
        if reachable == (reached,):
            break
        others = [other for other in entry.get("top_logprobs") or () if other["token"] != entry["token"]]
        chances = [probability(each["logprob"]) for each in (entry, *others)]
        if None in chances:
            return {}
        for other, chance in zip(others, chances[1:], strict=True):
            continued = led_to(reachable, reached, shown_part(other["token"], reached))
            for name in continued:
                found[name] = found.get(name, 0.0) + so_far * (chance or 0.0) / len(continued)
        so_far *= chances[0] or 0.0
        chosen = shown_part(entry["token"], reached)
        if entry["token"] and not chosen:
            continue  # a backslash before an underscore
        if led_to(reachable, reached, chosen) in ([reached], []):
            break  # the end of an answer that other labels begin with, or no label at all
        reached += chosen
    if reached in names:
        found[reached] = found.get(reached, 0.0) + so_far
    total = max(1.0, sum(found.values()))  # an engine's own rounding, and tokens that it lists twice
    return {names[name]: value / total for name, value in sorted(found.items(), key=lambda pair: -pair[1])}


def probability(logprob: Any) -> float | None:
    """Return a log-probability's probability in [0, 1]; None for what is none (positive, NaN, no number)."""
    if isinstance(logprob, bool) or not isinstance(logprob, int | float) or not logprob <= ROUNDING:
        return None
    return math.exp(min(0.0, logprob))


def bare(name: str) -> str:
    """Return a name's spelling without what may stand before it."""
    return spelled(LEAD.sub("", name) or name)


def shown_part(token: str, reached: str) -> str:
    """Return a token as a part of a name: the first one without blanks and signs before it."""
    return spelled(token) if reached else spelled(LEAD.sub("", token))


@lru_cache(maxsize=4096)
def led_to(reachable: tuple[str, ...], reached: str, token: str) -> list[str]:
    """Return the names that a token continues after what was reached; if it continues none, the one that it ends."""
    continued = [name for name in reachable if token and name.startswith(reached + token)]
    return continued or [name for name in reachable if name == reached]


def tokens_of_label(content: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the tokens from the first of the label that counts on: of the last field, behind all reasoning; of the
    whole answer if its prompt ended with the label's header. Empty if there is none.
    """
    answer = "".join(entry["token"] for entry in content)
    value = answer[value_start(answer) :]
    start, end = len(answer) - len(LEAD.sub("", value)), 0
    for number, entry in enumerate(content):
        end += len(entry["token"])
        if end > start:
            return content[number:]
    return []
