"""The pair that is served: its three files belong together, and a completion is read as a calibrated prediction."""

import shutil
from pathlib import Path

import pytest

from stages.parts.engines.http_client import EngineError
from stages.parts.engines.process import KINDS
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, write_json, write_text
from stages.parts.students.pair import PAIR_FILES, load_pair
from stages.parts.students.prediction import RunnerUp
from stages.parts.task.labels import UNKNOWN
from stages.parts.task.program_file import token_fingerprint
from tests.serve.shop import LABELS, make_shop


@pytest.fixture
def shop(tmp_path, monkeypatch):
    made = make_shop(tmp_path / "shop")
    monkeypatch.chdir(made.folder)
    return made


def test_a_pair_is_whole_and_travels_as_three_files(shop, tmp_path):
    pair = load_pair()
    pair.check_weights()
    pair.check_base("embedded")
    assert pair.served_name == shop.model
    for name in PAIR_FILES:
        shutil.copy(paths.PROGRAM.parent / name, tmp_path)
    assert load_pair(tmp_path).classifier(KINDS["vllm"]).request("hi") == pair.classifier(KINDS["vllm"]).request("hi")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (paths.PROGRAM, "program.json is not what models/program.sidecar.json was made with"),
        (paths.SIDECAR, "models/calibration.json is of another pair than models/program.sidecar.json"),
        (paths.LORA / "epoch-1/weights", "models/lora/epoch-1 is not what models/program.sidecar.json was made with"),
        (paths.BASE / "weights", "models/base is not what models/program.sidecar.json was made with"),
    ],
)
def test_what_was_not_chosen_together_is_refused(shop, file: Path, words: str):
    if file == paths.SIDECAR:
        write_json(file, read_json(file) | {"checkpoint_sha256": "0" * 64})
    else:
        write_text(file, file.read_text() + " ")
    with pytest.raises(UserError, match=words):
        pair = load_pair()
        pair.check_weights()
        pair.check_base("embedded")


def test_a_pair_of_another_profile_is_refused(shop):
    with pytest.raises(UserError, match="is of profile embedded"):
        load_pair().check_base("llama")


def completion(content: str, **alternatives: float) -> dict:
    chosen = max(alternatives.values())
    others = [{"token": token, "logprob": logprob} for token, logprob in alternatives.items()]
    tokens = [{"token": content, "logprob": chosen, "top_logprobs": others}]
    return {"choices": [{"message": {"content": content}, "logprobs": {"content": tokens}, "finish_reason": "stop"}]}


def test_a_trial_of_other_tokens_than_the_trained_ones_is_no_answer(shop):
    sidecar = read_json(paths.SIDECAR) | {"trial_tokens": token_fingerprint([1, 2, 3])}
    write_json(paths.SIDECAR, sidecar)
    classifier = load_pair().classifier(KINDS["vllm"])
    assert classifier.trial()["return_token_ids"]
    said = completion("card_arrival", card_arrival=-0.5)
    classifier.check_trial({"choices": [{**said["choices"][0], "prompt_token_ids": [1, 2, 3]}]})  # as SGLang has it
    for ids in ([1, 2, 3], None):
        classifier.check_trial({**said, "prompt_token_ids": ids})
    with pytest.raises(EngineError, match="another tokenizer or chat template than it was trained with"):
        classifier.check_trial({**said, "prompt_token_ids": [1, 2]})


def test_a_completion_is_read_as_a_calibrated_prediction(shop):
    classifier = load_pair().classifier(KINDS["vllm"])
    found = classifier.read(completion("card_arrival", card_arrival=-0.5, declined_card_payment=-1.5))
    assert found.label == "card_arrival" and found.confidence == pytest.approx(1 / (1 + 2.718281828**-1))
    assert not found.abstained and found.model == shop.model
    assert found.runners_up == [RunnerUp("declined_card_payment", pytest.approx(1 - found.confidence))]
    nothing = classifier.read(completion("Hello", Hello=-0.5))
    assert (nothing.label, nothing.confidence, nothing.abstained) == (UNKNOWN, 0.0, "unsure")
    assert set(LABELS) >= {found.label}
