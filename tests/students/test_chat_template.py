"""Training and serving send the same tokens: with the templates of the students' families, and a tokenizer in which
what they trim would be one token with what stands before it.
"""

from pathlib import Path

import pytest
import trl
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stages.parts.run.errors import UserError
from stages.parts.students.chat_template import check_template, continued_ids
from stages.parts.task.program import IntentClassifier, predictor, training_messages
from stages.parts.task.prompt import StudentFormat, TeacherFormat

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
LABELS = ["refund", "refund_not_showing_up", "card_arrival", "3d_secure", "what's_this", "(other)"]
# Llama 3's and GPT-4's: brackets and the line breaks after them are one piece, a blank goes with what follows it.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
FAMILIES = "llama3 llama3_1 llama3_2 gemma3 gemma4 qwen2_5 qwen3 qwen3_instruct_2507 phi3 phi3_5".split()


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """A small BPE in which " ]]\\n" is one token, as in Llama 3's, with the family's template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(f"{WORDS}|{SIGNS}"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["[[ ## label ## ]]\nrefund\n\n[[ ## reasoning ## ]]\nIt says."] * 50, trainer)
    special = ("<bos>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in (*special, "<|im_end|>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<|eot_id|>")
    fast.chat_template = (TEMPLATES / f"{family}.jinja").read_text()
    assert len(fast(" ]]\n", add_special_tokens=False)["input_ids"]) == 1
    return fast


@pytest.mark.parametrize("style", ["direct", "chain_of_thought"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_served_prompt_begins_every_training_row(family, style):
    tokenizer, program = tokenizer_of(family), IntentClassifier(LABELS, "Classify.", style)
    check_template(tokenizer, program, family)
    wanted = predictor(program).signature
    prompt = continued_ids(tokenizer, StudentFormat().format(wanted, [], {"query": "where is it"}))
    for label in LABELS:
        row = tokenizer.apply_chat_template(
            training_messages(program, "where is it", label, "It says so."), return_dict=False
        )
        assert row[: len(prompt)] == prompt
        answer = tokenizer.decode(row[len(prompt) :], skip_special_tokens=True)
        reason = "" if style == "direct" else " It says so.\n\n[[ ## label ## ]]"
        assert answer.startswith(f"{reason} {label}")
        assert StudentFormat().parse(wanted, answer.split("<")[0].strip())["label"] == label


class EndsInALineBreak(StudentFormat):
    """A form of answers that templates which trim take apart: the opening ends in a line break."""

    def format_assistant_message_content(self, signature, outputs, missing_field_message=None):
        return TeacherFormat().format_assistant_message_content(signature, outputs).rstrip("\n")

    def opening(self, signature):
        return super().opening(signature) + "\n"


@pytest.mark.parametrize(("family", "trims"), [("llama3_1", True), ("gemma3", True), ("qwen2_5", False)])
def test_tokens_that_differ_are_refused_with_their_place(family, trims, monkeypatch):
    monkeypatch.setattr("stages.parts.students.chat_template.StudentFormat", EndsInALineBreak)
    monkeypatch.setattr("stages.parts.task.program.StudentFormat", EndsInALineBreak)
    tokenizer, program = tokenizer_of(family), IntentClassifier(LABELS, "Classify.", "direct")
    if not trims:
        return check_template(tokenizer, program, family)
    with pytest.raises(
        UserError, match=rf"{family}: token \d+ of a prompt is ' \]\]' when served and ' \]\]\\n' in a "
    ):
        check_template(tokenizer, program, family)


def test_a_template_that_takes_no_system_message_is_refused_with_its_reason():
    with pytest.raises(UserError, match="System role not supported"):
        check_template(tokenizer_of("gemma"), IntentClassifier(LABELS, "Classify.", "direct"), "Gemma 2")


def test_a_template_that_changes_answers_is_refused():
    tokenizer, program = tokenizer_of("qwen2_5"), IntentClassifier(LABELS, "Classify.", "direct")
    tokenizer.chat_template = (
        "{%- for message in messages %}<{{ message['content'].replace(']] r', ']] R') }}>{%- endfor %}"
    )
    with pytest.raises(
        UserError, match="goes on with ' Refund' after the prompt, and the served answer is held to ' refu"
    ):
        check_template(tokenizer, program, "a student")


def test_a_template_that_can_not_continue_is_refused():
    tokenizer, program = tokenizer_of("qwen2_5"), IntentClassifier(LABELS, "Classify.", "direct")
    tokenizer.chat_template = "{%- for message in messages %}{{ message['role'] }}{%- endfor %}"
    with pytest.raises(UserError, match="can't continue an answer"):
        check_template(tokenizer, program, "a student")
