"""Label names: how they are written, and which one an answer means."""

from collections.abc import Sequence

UNKNOWN = "unknown"  # an answer that names no label
NONE_OF_THESE = "none_of_these"  # the label of what no other label fits


def clean_label(name: str) -> str:
    """A label name as the pipeline writes it: lower case, underscores, no trailing question mark. Cleaning it again
    changes nothing.
    """
    return "_".join(name.lower().replace("_", " ").split()).rstrip("?_")


def match_label(answer: str, labels: Sequence[str]) -> str:
    """The label that an answer names, forgiving case, quotes, blanks and a full stop; UNKNOWN where it names none."""
    cleaned = clean_label(answer.strip().strip("`'\"*.").strip())
    return cleaned if cleaned in labels else UNKNOWN
