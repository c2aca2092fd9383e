"""What a model is asked: signature, prompt format, and which answers are wanted.

The labels stand in the instructions and the field is a plain `str`: a `Literal` field would print all labels again
after the query, where no prefix cache can reuse them (dspy's ChatAdapter; 192 tokens a prompt against 33). What DSPy
calls an adapter is a prompt format here: an adapter is a LoRA adapter.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from stages.parts.run.params import Style
from stages.parts.task.answer import LABEL_HEADER, AnswerForm, fields_of, without_thoughts
from stages.parts.task.labels import NONE_OF_THESE


def signature(
    labels: Sequence[str], instructions: str, descriptions: Mapping[str, str] | None = None
) -> type[dspy.Signature]:
    """query -> label, with the labels in the instructions.

    `descriptions` are for a teacher, which knows nothing but the prompt: each stands behind its label's name, and a
    label for what no other fits gets a sentence. A student learns both from its rows, and gets none (None).
    """
    described = descriptions or {}
    names = "\n".join(f"- {label}: {described[label]}" if label in described else f"- {label}" for label in labels)
    otherwise = (
        f"\nAnswer {NONE_OF_THESE} where no other intent fits."
        if descriptions is not None and NONE_OF_THESE in labels
        else ""
    )
    return dspy.Signature("query: str -> label: str", f"{instructions} The intents are:\n{names}{otherwise}")


class TeacherFormat(dspy.ChatAdapter):
    """DSPy's chat format. No second call in JSON after a parse failure: a failure is a wrong answer."""

    def __init__(self) -> None:
        super().__init__(use_json_adapter_fallback=False)

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """Return the fields of an answer, the last value of each, reasoning blocks left out. DSPy's own parser takes
        the first value, wherever it stands. Raises AdapterParseError if a field is missing.
        """
        found = fields_of(completion)
        fields = {name: found[name] for name in signature.output_fields if name in found}
        if fields.keys() != signature.output_fields.keys():
            raise AdapterParseError(type(self).__name__, signature, lm_response=completion, parsed_result=fields)
        return fields


class StudentFormat(TeacherFormat):
    """The student's: the prompt ends with the header of the answer's first field, so that no token is spent on it.

    For engines of our own only, which continue an assistant's last message where they are told to
    (EngineKind.answer_options). Training and serving send the same tokens, whatever the chat template does:

    - Templates trim messages (Llama 3, Gemma 3), and transformers trims a message that it continues. So the header is
      sent without anything behind it, and a value follows after one blank: a line break would be one token with the
      brackets before it in many tokenizers (`]]\\n`), a blank is one with the word after it.
    - An answer ends with its last value. Nothing stands between it and the token that ends the turn, so that a label
      that begins another one is told apart by that token.
    - Nothing follows the query. DSPy repeats the answer's form there, 40 tokens behind each query that no rows share; a
      student learns the form, and engines hold it to it.
    """

    version = "student format 3"  # a pair belongs to one; another form of prompts or answers is another version

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        return [*super().format(signature, demos, inputs), {"role": "assistant", "content": self.opening(signature)}]

    def user_message_output_requirements(self, signature: type[dspy.Signature]) -> str:
        return ""

    def format_assistant_message_content(
        self, signature: type[dspy.Signature], outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        values = {name: outputs.get(name, missing_field_message) for name in signature.output_fields}
        return "\n\n".join(f"[[ ## {name} ## ]] {value}" for name, value in values.items())

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        return super().parse(signature, self.opening(signature) + without_thoughts(completion))

    def opening(self, signature: type[dspy.Signature]) -> str:
        return f"[[ ## {next(iter(signature.output_fields))} ## ]]"


def answer_form(labels: Sequence[str], style: Style) -> AnswerForm:
    """Return what may follow the opening: a label, or reasoning, the label's header and a label."""
    if style == "direct":
        return AnswerForm(choices=tuple(f" {label}" for label in labels))
    reasoning = r"([^\[]|\[[^\[])+"  # anything but the next header
    return AnswerForm(regex=rf" {reasoning}\n\n{re.escape(LABEL_HEADER)} ({'|'.join(map(re.escape, labels))})")
