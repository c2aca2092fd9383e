"""What an answer says: its fields, without the reasoning that a model writes before them."""

import re
from dataclasses import dataclass

LABEL_HEADER = "[[ ## label ## ]]"
# At the start of a line, as DSPy reads it; blanks and bold marks are as a model likes.
HEADER = re.compile(r"^[ \t>*_`#]*\[\[[ \t]*##[ \t]*(\w+)[ \t]*##[ \t]*\]\][*_`]*", re.MULTILINE)
TAG = r"(?:think|thinking|thought|reasoning|reflection|scratchpad)"
THOUGHTS = (
    re.compile(rf"<({TAG})>.*?</\1>|\[THINK\].*?\[/THINK\]", re.DOTALL | re.IGNORECASE),
    re.compile(rf"\A.*(?:</{TAG}>|\[/THINK\])", re.DOTALL | re.IGNORECASE),  # begun in the prompt
    re.compile(rf"(?:<{TAG}>|\[THINK\]).*\Z", re.DOTALL | re.IGNORECASE),  # cut short
)


def without_thoughts(answer: str) -> str:
    """Return an answer with blanks in the place of its reasoning blocks, so that all else stays where it is.

    Reasoning models rehearse the whole form in them, with labels that they go on to reject.
    """
    for thoughts in THOUGHTS:
        answer = thoughts.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), answer)
    return answer


def fields_of(answer: str) -> dict[str, str]:
    """Return the fields of an answer by name, stripped. Of several values of one field the last counts: a model that
    corrects itself means the correction.
    """
    shown = without_thoughts(answer)
    headers = list(HEADER.finditer(shown))
    ends = [*(header.start() for header in headers[1:]), len(shown)][: len(headers)]
    return {header[1].lower(): shown[header.end() : end].strip() for header, end in zip(headers, ends, strict=True)}


def value_start(answer: str) -> int:
    """Return where the value of the last label field begins. An answer without one begins with the value: its prompt
    ended with the header.
    """
    shown = without_thoughts(answer)
    starts = [header.end() for header in HEADER.finditer(shown) if header[1].lower() == "label"]
    return starts[-1] if starts else len(shown) - len(shown.lstrip())


@dataclass(frozen=True)
class AnswerForm:
    """The answers that an engine may give after the opening: one of `choices`, or a match of `regex` if it has none."""

    choices: tuple[str, ...] = ()
    regex: str = ""
