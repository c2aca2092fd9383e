from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import AutoTokenizer

from stages.parts.run.errors import UserError
from stages.parts.students.chat_template import freeze_date
from stages.parts.students.tiny import build_tokenizer
from stages.parts.task.program import IntentClassifier
from stages.parts.weights import hub

# The date handling of the two templates in use: Llama 3.2 sets it from the clock where unset, others print the clock.
SETS = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}Today: {{ "
    "date_string }}. "
)
PRINTS = "Today: {{ strftime_now('%d %b %Y') }}. "
REST = "{% for message in messages %}{{ message['content'] }}{%- endfor %}"


@pytest.mark.parametrize("template", [SETS + REST, PRINTS + REST])
def test_a_template_prints_the_same_day_every_day(tmp_path, template):
    tokenizer = build_tokenizer(["where is my card"] * 3, IntentClassifier(["a", "b"], "Classify.", "direct"), 600)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    freeze_date(tmp_path)
    freeze_date(tmp_path)
    written = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False
    )
    assert written == "Today: 26 Jul 2024. hi"


def test_a_model_without_a_template_is_refused(tmp_path):
    tokenizer = build_tokenizer(["where is my card"] * 3, IntentClassifier(["a", "b"], "Classify.", "direct"), 600)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no chat template"):
        freeze_date(tmp_path)


REFUSAL = SimpleNamespace(headers={}, request=None)  # the least of a response that the hub's errors carry


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            GatedRepoError("401", response=REFUSAL),
            "is gated: accept its licence on https://huggingface.co/a/b, then set HF_TOKEN",
        ),
        (RepositoryNotFoundError("404", response=REFUSAL), "the hub has no a/b at"),
        (OSError("no route to host"), "a/b could not be reached (no route to host): check the network"),
        (
            httpx.ConnectError("[Errno -2] Name or service not known"),
            "([Errno -2] Name or service not known): check the network",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_clear_line(tmp_path, monkeypatch, error, says):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(UserError) as caught:
        hub.snapshot("a/b", "0" * 40, tmp_path)
    assert says in str(caught.value) and "\n" not in str(caught.value)
