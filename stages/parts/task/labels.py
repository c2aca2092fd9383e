"""Label names: how they are written, and which one an answer names."""

import re
from collections.abc import Sequence
from functools import lru_cache

from stages.parts.task.text import normalized

UNKNOWN = "unknown"  # an answer that names no label
NONE_OF_THESE = "none_of_these"  # the label of what no other label fits

# Before a name: quotes, brackets, bullets, headings, bold marks, "1.", and the field's name once more ("Label: x").
LEAD = re.compile(
    r"""\A(?:[\s`'"*_>#(\[{<\u2022\u00b7-]|\d+[.)]\s|(?:the\s+)?(?:label|intent)\s*(?:is\s|[:=]))*""", re.IGNORECASE
)
TAIL = re.compile(r"""[\s`'"*_.,:;!?)\]}>-]*\Z""")


def clean_label(name: str) -> str:
    """Return a label name as the pipeline writes it: lower case, underscores, no trailing question mark. Cleaning it
    again changes nothing.
    """
    return "_".join(normalized(name).lower().replace("_", " ").split()).rstrip("?_")


def spelled(text: str) -> str:
    """Return a part of a name with what spellings differ in made equal: case, backslashes before signs, and blanks,
    hyphens and underscores between words.
    """
    return re.sub("[ _-]", "_", text.casefold().replace("\\", ""))


@lru_cache(maxsize=4096)
def label_key(name: str) -> str:
    """Return what all spellings of a label name share. Two labels with one key can't be told apart in answers.

    Signs within a name count (c, c++ and c#), what stands around it does not: quotes, bullets, brackets, bold marks, a
    full stop, `Label:`.
    """
    text = normalized(name).casefold()
    bare = TAIL.sub("", LEAD.sub("", text))
    return re.sub("_+", "_", spelled(bare or text))


@lru_cache(maxsize=64)
def labels_by_key(labels: tuple[str, ...]) -> dict[str, str]:
    """Return the labels by their keys, without those that share one."""
    keys = [label_key(label) for label in labels]
    return {key: label for key, label in zip(keys, labels, strict=True) if keys.count(key) == 1}


def match_label(answer: str, labels: Sequence[str]) -> str:
    """Return the label that an answer names in whatever spelling, or UNKNOWN if it names none or several.

    A label may also stand alone on one line of several, as where a model goes on to explain itself.
    """
    if answer in labels:
        return answer
    known = labels_by_key(tuple(labels))
    if whole := known.get(label_key(answer)):
        return whole
    named = {label for line in answer.splitlines() if (label := known.get(label_key(line)))}
    return named.pop() if len(named) == 1 else UNKNOWN
