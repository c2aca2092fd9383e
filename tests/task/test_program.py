"""What the program sends, what it makes of answers, and how it is kept."""

import json
import re

import dspy
import pytest

from stages.parts.run.errors import UserError
from stages.parts.task.label_probabilities import label_probabilities
from stages.parts.task.program import IntentClassifier, predictor, training_messages, using
from stages.parts.task.program_file import load_program, program_state, save_program
from stages.parts.task.prompt import StudentFormat, TeacherFormat

LABELS = ["card_arrival", "pending_top_up"]
INSTRUCTIONS = "Classify."


class ScriptedEngine:
    """Answers with what a script says for the query; raises what the script raises."""

    def __init__(self, script):
        self.script = script

    def complete(self, request):
        from dspy.lm15 import Message, Response, TextPart, Usage

        answer = next(value for key, value in self.script.items() if key in request.messages[-1].text)
        if isinstance(answer, Exception):
            raise answer
        usage = Usage(input_tokens=7, output_tokens=3, total_tokens=10)
        return Response(
            id=None, model="scripted", message=Message.assistant([TextPart(answer)]), finish_reason="stop", usage=usage
        )

    def __deepcopy__(self, memo):
        return self


def scripted(script) -> dspy.LM:
    return dspy.LM("scripted", engine=ScriptedEngine(script), cache=False, num_retries=0)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("[[ ## label ## ]]\ncard_arrival\n\n[[ ## completed ## ]]", "card_arrival"),
        ("[[ ## label ## ]]\n Card Arrival. \n", "card_arrival"),
        ("[[ ## label ## ]]\n`pending_top_up`", "pending_top_up"),
        ("[[ ## label ## ]]\ncard_arrival or pending_top_up", "unknown"),
        ("[[ ## label ## ]]\nunknown", "unknown"),
        ("card_arrival", "unknown"),
        ("[[ ## lab", "unknown"),
        (" ", "unknown"),
        ('{"label": "card_arrival"}', "unknown"),
    ],
)
def test_whatever_a_model_writes_becomes_a_label_or_unknown(answer, label):
    program = IntentClassifier(LABELS, INSTRUCTIONS, "direct")
    with using(scripted({"where": answer})):
        prediction = program(query="where is it")
    assert (prediction.label, prediction.valid) == (label, label != "unknown")


@pytest.mark.parametrize("style", ["direct", "chain_of_thought"])
def test_a_training_row_is_what_serving_sends_and_parses(style):
    program = IntentClassifier(LABELS, INSTRUCTIONS, style)
    messages = training_messages(program, "Where's my card?\n\nThanks", "card_arrival", "It says card.")
    sent = StudentFormat().format(predictor(program).signature, [], {"query": "Where's my card? Thanks"})[:-1]
    assert messages[:2] == [{key: message[key] for key in ("role", "content")} for message in sent]
    assert messages[1]["content"] == "[[ ## query ## ]]\nWhere's my card? Thanks"  # nothing follows that no rows share
    parsed = TeacherFormat().parse(predictor(program).signature, messages[2]["content"])
    assert parsed["label"] == "card_arrival" and parsed.get("reasoning", "It says card.") == "It says card."


def test_a_program_comes_back_as_saved_and_not_onto_another_shape(tmp_path):
    program = IntentClassifier(LABELS, INSTRUCTIONS, "direct")
    predictor(program).demos = [dspy.Example(query="new card?", label="card_arrival")]
    save_program(program, tmp_path / "program.json")
    again = load_program(tmp_path / "program.json", LABELS, INSTRUCTIONS, "direct")
    assert program_state(again) == program_state(program)
    assert "new card?" in str(
        TeacherFormat().format(predictor(again).signature, predictor(again).demos, {"query": "x"})
    )
    with pytest.raises(UserError, match="another style, other instructions or labels"):
        load_program(tmp_path / "program.json", LABELS, INSTRUCTIONS, "chain_of_thought")
    with pytest.raises(UserError, match="another style, other instructions or labels"):
        load_program(tmp_path / "program.json", [*LABELS, "one_more"], INSTRUCTIONS, "direct")


@pytest.mark.parametrize("style", ["direct", "chain_of_thought"])
def test_a_saved_program_loads_with_plain_dspy_and_one_without_metadata_with_ours(tmp_path, style):
    class Plain(dspy.Module):
        def __init__(self):
            super().__init__()
            self.classify = (dspy.Predict if style == "direct" else dspy.ChainOfThought)("query -> label")

    program = IntentClassifier(LABELS, INSTRUCTIONS, style)
    predictor(program).demos = [dspy.Example(query="new card?", label="card_arrival")]
    save_program(program, tmp_path / "program.json")
    plain = Plain()
    plain.load(tmp_path / "program.json")
    assert plain.predictors()[0].signature.instructions == predictor(program).signature.instructions
    assert [dict(demo) for demo in plain.predictors()[0].demos] == [{"query": "new card?", "label": "card_arrival"}]
    old = json.loads((tmp_path / "program.json").read_text())
    del old["metadata"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    again = load_program(tmp_path / "old.json", LABELS, INSTRUCTIONS, style)
    assert program_state(again) == program_state(program)


def test_descriptions_stand_in_the_teachers_shared_prefix_and_nowhere_else():
    labels = [*LABELS, "none_of_these"]

    def messages(*described) -> list[dict[str, str]]:
        program = IntentClassifier(labels, INSTRUCTIONS, "chain_of_thought", *described)
        return TeacherFormat().format(predictor(program).signature, [], {"query": "where is my card"})

    plain, bare, described = messages(), messages({}), messages({LABELS[0]: "What it means."})
    sentence = "Answer none_of_these where no other intent fits."
    assert (
        f"- {LABELS[0]}: What it means.\n" in described[0]["content"] and f"- {LABELS[1]}\n" in described[0]["content"]
    )
    assert (
        sentence in described[0]["content"] and sentence in bare[0]["content"] and sentence not in plain[0]["content"]
    )
    assert plain[1:] == bare[1:] == described[1:]  # the query's own message
    assert "".join(bare[0]["content"].split(sentence)).split() == plain[0]["content"].split()


FORM = (
    "[[ ## reasoning ## ]]\nIt could be pending_top_up.\n\n[[ ## label ## ]]\npending_top_up\n\n[[ ## completed ## ]]"
)
RIGHT = "[[ ## reasoning ## ]]\nIt says card.\n\n[[ ## label ## ]]\ncard_arrival\n\n[[ ## completed ## ]]"


@pytest.mark.parametrize(
    "answer",
    [
        f"<think>\n{FORM}\n</think>\n\n{RIGHT}",
        f"{FORM}\n</think>\n{RIGHT}",
        f"<think>{FORM}</think><think>{FORM}</think>{RIGHT}",
        f"<THINKING>\n{FORM}\n</THINKING>\n{RIGHT}",
        f"[THINK]{FORM}[/THINK]{RIGHT}",
        f"<think>\n{FORM}\n</think>\n{RIGHT}\n<think>{FORM}",
        f"{FORM}\n\nNo, wait.\n\n{RIGHT}",
        f"{FORM.partition(chr(10) * 2 + '[[ ## comp')[0]}\n\n[[ ## label ## ]]\ncard_arrival",
        "**[[ ## reasoning ## ]]**\nIt says card.\n\n**[[## label ##]]**\n**card_arrival**",
    ],
)
def test_the_last_value_outside_of_thoughts_counts(answer):
    program = IntentClassifier(LABELS, INSTRUCTIONS, "chain_of_thought")
    with using(scripted({"where": answer})):
        assert program(query="where is it").label == "card_arrival"
    direct = IntentClassifier(LABELS, INSTRUCTIONS, "direct")
    with using(scripted({"where": answer})):
        assert direct(query="where is it").label == "card_arrival"
    tokens = [{"token": token, "logprob": -0.1, "top_logprobs": []} for token in re.findall(r"\w+|\W", answer)]
    found = label_probabilities({"content": tokens}, LABELS)
    assert list(found) == ["card_arrival"], "probabilities are read at the place of the label that counts"


@pytest.mark.parametrize("answer", [f"<think>\n{FORM}", f"<think>\n{RIGHT}\n</think>\n", "</think>", "<think>"])
def test_thoughts_without_an_answer_are_none(answer):
    program = IntentClassifier(LABELS, INSTRUCTIONS, "chain_of_thought")
    with using(scripted({"where": answer})):
        assert program(query="where is it").label == "unknown"


def test_a_students_answer_may_think_and_correct_itself_too():
    wanted, student = predictor(IntentClassifier(LABELS, INSTRUCTIONS, "direct")).signature, StudentFormat()
    assert student.parse(wanted, " card_arrival")["label"] == "card_arrival"
    assert student.parse(wanted, "It is clear.</think> card_arrival")["label"] == "card_arrival"
    for begun in ("<think>pending_top_up</think>\n", "pending_top_up</think>\n", "pending_top_up\n\n"):
        assert student.parse(wanted, f"{begun}[[ ## label ## ]] card_arrival")["label"] == "card_arrival"
