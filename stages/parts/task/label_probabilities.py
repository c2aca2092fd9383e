"""From a model's log-probabilities to a distribution over the labels."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

LABEL_HEADER = "[[ ## label ## ]]"
# tokens whose log-probabilities are asked for at each position, where there are no more labels: OpenAI's limit
ALTERNATIVES = 20


def alternatives(labels: int, most: int) -> int:
    """How many alternatives to ask a student for, whose next tokens are the labels nearly alone, of an engine that
    gives `most`.
    """
    return min(max(ALTERNATIVES, labels), most)


def label_probabilities(logprobs: Any, labels: Sequence[str]) -> dict[str, float]:
    """Probabilities of the labels, likeliest first, from an OpenAI-style `logprobs` object; empty where it shows none.

    Walks the answer's tokens from the label's first on. Where an alternative token leads to other labels, they get its
    probability, in equal parts if it leads to several. So a label of one token, and the answer itself, have exact
    probabilities; labels that no reported alternative leads to have none.
    """
    found: dict[str, float] = {}
    reached, so_far = "", 1.0
    for entry in tokens_of_label(logprobs["content"] if logprobs else []):
        reachable = tuple(label for label in labels if label.startswith(reached))
        if reachable == (reached,):
            break
        chosen = entry["token"]
        for other in entry.get("top_logprobs") or ():
            if other["token"] != chosen:
                others = led_to(reachable, reached, other["token"])
                for label in others:
                    found[label] = found.get(label, 0.0) + so_far * math.exp(other["logprob"]) / len(others)
        so_far *= math.exp(entry["logprob"])
        if led_to(reachable, reached, chosen) in ([reached], []):
            break  # the end of an answer that other labels begin with, or no label at all
        reached += chosen
    if reached in labels:
        found[reached] = found.get(reached, 0.0) + so_far
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


@lru_cache(maxsize=4096)
def led_to(reachable: tuple[str, ...], reached: str, token: str) -> list[str]:
    """The labels that a token continues after what was reached; where it continues none, the label that it ends."""
    continued = [label for label in reachable if token and label.startswith(reached + token)]
    return continued or [label for label in reachable if label == reached]


def tokens_of_label(content: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The tokens from the label's first on; all, where the prompt ended with the label's header already."""
    header_seen = LABEL_HEADER not in "".join(entry["token"] for entry in content)
    text = ""
    for number, entry in enumerate(content):
        if (header_seen or LABEL_HEADER in text) and entry["token"].strip():
            return content[number:]
        text += entry["token"]
    return []
