"""A trained adapter on a real model, which random weights can't stand for: SmolLM2-135M, dequantised from GGUF.

Trained once a clone and kept in .cache/tests: a minute of two cores, and a download of 93 MB.
"""

import shutil
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, set_seed

from stages.parts.engines.requests import ProgramRequests
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import file_sha256, read_json
from stages.parts.run.params import Params, PretrainedStudentSettings, parse_params
from stages.parts.students.chat_template import check_template, continued_ids
from stages.parts.students.scoring import Scores, max_tokens, score
from stages.parts.students.serving import students
from stages.parts.students.weights import ADAPTER_FILES, export, layers_below, lora_config
from stages.parts.task.program import IntentClassifier, predictor, training_messages
from stages.parts.task.prompt import StudentFormat
from stages.parts.training.rows import encode
from stages.parts.training.trainer import fine_tune
from stages.parts.training.watch import complete_checkpoints
from stages.parts.weights.fetch import place
from tests.conftest import ROOT
from tests.training.test_trainer import plan

NAMES = {  # of the sample -> here: one label begins another
    "request_refund": "refund",
    "refund_not_showing_up": "refund_not_showing_up",
    "card_arrival": "card_arrival",
    "declined_card_payment": "declined_card_payment",
}
PROGRAM = IntentClassifier(list(NAMES.values()), "Classify.", "direct")
pytestmark = [pytest.mark.engine, pytest.mark.slow]


def rows(file: str, each: int) -> list[dict[str, str]]:
    """The first rows of each label."""
    chosen = pd.read_csv(paths.SAMPLE / file).groupby("category").head(each)
    return [{"text": row.text, "label": NAMES[row.category]} for row in chosen.itertuples() if row.category in NAMES]


@pytest.fixture(scope="module")
def params() -> Params:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    return parse_params({**values, "profile": "smollm"})


@pytest.fixture(scope="module")
def student(params) -> tuple[Path, Path]:
    """The base's folder and the adapter's."""
    assert isinstance(params.student, PretrainedStudentSettings)
    kept = ROOT / ".cache/tests" / file_sha256(Path(__file__))[:16]
    base, adapter = kept / "base", kept / "adapter"
    if not adapter.is_dir():
        try:
            place(params.student.weights, base)
        except UserError as error:
            pytest.skip(f"SmolLM2 could not be fetched: {error}")
        check_template(AutoTokenizer.from_pretrained(base), PROGRAM, "SmolLM2")
        set_seed(0)
        tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
        learned = [
            encode(tokenizer, training_messages(PROGRAM, row["text"], row["label"], ""))
            for row in rows("train.csv", 48)
        ]
        lora = lora_config(params.lora, embeddings=False, without=layers_below(model, 10))
        wanted = plan(lora=lora, epochs=4, batch=16, learning_rate=0.001)
        fine_tune(model, tokenizer, learned, wanted, kept / "scratch", keep_epochs=True)
        adapter.mkdir()
        for file in ADAPTER_FILES:
            shutil.copy(complete_checkpoints(kept / "scratch")[-1] / file, adapter)
        shutil.rmtree(kept / "scratch")
    return base, adapter


def label_scores(model: PreTrainedModel, tokenizer, texts: list[str]) -> torch.Tensor:
    """The log-probabilities of the answers [N, K], each computed whole."""
    wanted, found = predictor(PROGRAM).signature, []
    for text in texts:
        prompt = continued_ids(tokenizer, StudentFormat().format(wanted, [], {"query": text}))
        for label in PROGRAM.labels:
            answer = tokenizer(f" {label}<|im_end|>", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
            found.append(logits.log_softmax(-1)[range(len(answer)), answer].sum())
    return torch.stack(found).view(len(texts), -1)


def test_a_dequantised_base_still_speaks(student):
    base, _ = student
    assert "quantization_config" not in read_json(base / "config.json")
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


def test_an_export_answers_as_the_adapter_does(student, tmp_path):
    base, adapter = student
    texts = [row["text"] for row in rows("test.csv", 5)]
    tokenizer = AutoTokenizer.from_pretrained(base)
    untuned = AutoModelForCausalLM.from_pretrained(base)
    before = label_scores(untuned, tokenizer, texts)
    beside = label_scores(PeftModel.from_pretrained(untuned, str(adapter)), tokenizer, texts)
    export(base, adapter, tmp_path / "export")
    alone = label_scores(AutoModelForCausalLM.from_pretrained(tmp_path / "export"), tokenizer, texts)
    moved = (alone.softmax(1) - beside.softmax(1)).abs().max(1).values  # bfloat16 rounds the sum once more
    assert (moved > 0.1).sum() <= 1, moved
    assert (alone.argmax(1) == beside.argmax(1)).sum() >= len(texts) - 1, "but for a tie"
    assert (before.argmax(1) != beside.argmax(1)).sum() > 1


def test_merged_and_beside_its_base_it_gives_the_same_answers(student, params):
    base, adapter = student
    test = rows("test.csv", 12)
    tokens = max_tokens("direct", PROGRAM.labels, base)
    found: dict[tuple[str, str], Scores] = {}
    for weights in ("merged", "adapter"):
        runtime = params.runtime.model_copy(update={"weights": weights})
        with closing(students(base, {"tuned": adapter}, params.model_copy(update={"runtime": runtime}))) as each:
            for name, served in each:
                requests = ProgramRequests(PROGRAM, served.kind, served.names[name], tokens)
                found[weights, name] = score(served, requests, test, 8)
    merged, beside, untuned = found["merged", "tuned"], found["adapter", "tuned"], found["merged", "base"]
    same = sum(one == other for one, other in zip(merged.predicted, beside.predicted, strict=True))
    assert same > 0.9 * len(test), "but for near ties: merging rounds the weights to bfloat16"
    assert merged.accuracy > 0.6 > untuned.accuracy + 0.1
    begins = [found for found, row in zip(merged.predicted, test, strict=True) if row["label"] == "refund"]
    assert begins.count("refund") > len(begins) / 2, "a label that another begins with is not drowned by it"
