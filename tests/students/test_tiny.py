"""The tiny student's tokenizer: few tokens around a query, and none that the base has not seen."""

import pytest
import requests

from stages.parts.engines.process import KINDS, ModelToServe, prepare, running
from stages.parts.engines.requests import ProgramRequests
from stages.parts.run.params import TinyStudentSettings, load_params
from stages.parts.students.tiny import build_model, build_tokenizer, format_lessons
from stages.parts.task.program import IntentClassifier, predictor, training_messages
from stages.parts.task.text import safe_text
from stages.parts.training.rows import encode

LABELS = ["card_arrival", "declined_card_payment", "refund"]
QUERIES = ["Where is my card?", "they declined my payment\n\nagain", " I want a refund for £3.50 ", "¿dónde está? 💳"]
TEXTS = [safe_text(query, LABELS) for query in QUERIES] * 3
DEMONSTRATIONS = [
    {"query": TEXTS[0], "reasoning": 'The query says "my".', "label": LABELS[0]},
    {"augmented": True, "query": TEXTS[2], "reasoning": 'The query says "my", "card".', "label": LABELS[2]},
]


def served_prompt(program: IntentClassifier, query: str) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = ProgramRequests(program, KINDS["vllm"], "student", 1).body(query)["messages"]
    return messages


@pytest.fixture(params=["direct", "chain_of_thought"])
def program(request) -> IntentClassifier:
    return IntentClassifier(LABELS, "Classify a bank's\nqueries.", request.param)


def test_prompts_with_and_without_demonstrations_are_made_of_tokens_that_the_base_has_seen(program):
    tokenizer = build_tokenizer(TEXTS, program, 600)
    seen = {
        token for lesson in format_lessons(TEXTS, program, 10, 0) for token in encode(tokenizer, lesson)["input_ids"]
    }
    for demonstrations in ([], DEMONSTRATIONS):
        predictor(program).demos = demonstrations
        prompt = tokenizer.apply_chat_template(
            served_prompt(program, TEXTS[1]), continue_final_message=True, return_dict=False
        )
        assert not set(prompt) - seen, tokenizer.convert_ids_to_tokens(sorted(set(prompt) - seen))


def test_a_query_stands_between_six_tokens_and_comes_back_as_it_was(program):
    tokenizer = build_tokenizer(TEXTS, program, 600)
    for text in TEXTS:
        messages = training_messages(program, text, LABELS[0], "So.")
        query = tokenizer(text, add_special_tokens=False)["input_ids"]
        trained = encode(tokenizer, messages)["input_ids"]
        prompt = tokenizer.apply_chat_template(
            served_prompt(program, text), continue_final_message=True, return_dict=False
        )
        assert len(prompt) == len(query) + 6 and trained[: len(prompt)] == prompt
        assert tokenizer.decode(query) == text.lower()
    for label in LABELS:
        assert len(tokenizer(f" {label}", add_special_tokens=False)["input_ids"]) == 1


@pytest.mark.engine
def test_the_engine_reads_the_prompt_that_the_student_was_trained_on(tmp_path):
    program = IntentClassifier(LABELS, "Classify.", "direct")
    predictor(program).demos = DEMONSTRATIONS
    tokenizer = build_tokenizer(TEXTS, program, 600)
    student = TinyStudentSettings(kind="tiny", hidden_size=32, layers=1, vocabulary=600, epochs=1, learning_rate=0.1)
    build_model(tokenizer, student).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with running(prepare(KINDS["vllm"], ModelToServe(tmp_path, "student"), load_params().runtime)) as served:
        for text in TEXTS[:4]:
            body = ProgramRequests(program, KINDS["vllm"], "student", 1).body(text)
            answer = requests.post(
                f"{served.api_base}/chat/completions",
                json={**body, "return_token_ids": True},
                headers={"Authorization": f"Bearer {served.key}"},
                timeout=60,
            ).json()
            prompt = tokenizer.apply_chat_template(body["messages"], continue_final_message=True, return_dict=False)
            assert answer["prompt_token_ids"] == prompt
            said = answer["choices"][0]["message"]["content"]  # one token: random weights may begin to spell a label
            assert said and any(f" {label}".startswith(said) for label in LABELS)
