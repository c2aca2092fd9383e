"""The service under OpenAI's own clients, Python and JavaScript: what they read, and what they show of a refusal."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.conftest import ROOT
from tests.serve.shop import LABELS, Shop, ended, make_shop, serving, start_engine

KEY = "a-key-that-is-long-enough"
MESSAGES = [{"role": "user", "content": "My card got declined"}]
JS_CLIENT = "openai@6.49.0"


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Iterator[Shop]:
    made = make_shop(tmp_path_factory.mktemp("openai") / "shop", timeout_s=2)
    with ended(start_engine(made)):
        yield made


@pytest.fixture(scope="module")
def url(shop) -> Iterator[str]:
    with serving(shop, SERVE_API_KEYS=KEY) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(url) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)


def post(url: str, **fields: object) -> requests.Response:
    headers = {"Authorization": f"Bearer {KEY}"}
    return requests.post(f"{url}/chat/completions", json={"messages": MESSAGES, **fields}, headers=headers, timeout=30)


def test_a_completion_has_all_that_clients_read(client, shop):
    [model] = client.models.list().data
    assert (model.id, model.object) == (shop.model, "model") and model.created > 1_700_000_000
    assert client.models.retrieve(shop.model) == model
    completion = client.chat.completions.create(model=shop.model, messages=MESSAGES)
    assert completion.choices[0].message.content in LABELS and completion.choices[0].finish_reason == "stop"
    assert completion.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 100,
        "completion_tokens": 1,
        "total_tokens": 101,
    }
    again = client.chat.completions.create(model=shop.model, messages=MESSAGES)
    assert again.usage == completion.usage and again.id != completion.id, "from the cache"


@pytest.mark.parametrize("wanted", [True, False])
def test_a_stream_has_the_usage_chunk_if_it_was_requested(client, wanted):
    options = {"stream_options": {"include_usage": True}} if wanted else {}
    stream = client.chat.completions.create(model="any", messages=MESSAGES, stream=True, **options)
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) in LABELS
    assert all(chunk.usage is None for chunk in chunks)
    assert (last.usage.total_tokens, last.choices) == (101, []) if wanted else last.choices[0].finish_reason == "stop"


NULLABLE = (
    "stream", "stream_options", "n", "logprobs", "top_logprobs", "logit_bias", "response_format", "tool_choice",
    "function_call", "modalities", "audio", "web_search_options", "stop", "temperature", "top_p", "max_tokens",
    "max_completion_tokens", "presence_penalty", "frequency_penalty", "seed", "user", "tools", "metadata", "store",
    "service_tier", "reasoning_effort", "model",
)  # fmt: skip


def test_every_nullable_field_takes_null(url):
    assert post(url, **dict.fromkeys(NULLABLE)).status_code == 200
    harmless = {
        "n": 1, "logprobs": False, "top_logprobs": 0, "logit_bias": {}, "response_format": {"type": "text"},
        "tools": [{"type": "function", "function": {"name": "look"}}], "tool_choice": "auto", "modalities": ["text"],
        "stop": ["\n", "###"], "temperature": 1.7, "max_tokens": 1, "stream": False,
    }  # fmt: skip
    assert post(url, **harmless).status_code == 200


REFUSED: dict[str, dict[str, Any]] = {
    "n": {"n": 2},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"top_logprobs": 3},
    "logit_bias": {"logit_bias": {"50256": -100}},
    "response_format": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
    "tool_choice": {"tools": [{"type": "function", "function": {"name": "look"}}], "tool_choice": "required"},
    "function_call": {"function_call": {"name": "look"}},
    "modalities": {"modalities": ["text", "audio"]},
    "audio": {"audio": {"voice": "alloy", "format": "wav"}},
    "web_search_options": {"web_search_options": {}},
    "stop": {"stop": ["_"]},
    "stream_options": {"stream_options": {"include_usage": True}},
    "messages.0.role": {"messages": [{"content": "x"}]},
    "messages": {"messages": []},
}


@pytest.mark.parametrize("param", REFUSED)
def test_what_can_not_be_honoured_is_refused_with_its_name(url, param):
    response = post(url, **REFUSED[param])
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert set(error) == {"message", "type", "param", "code"} and param in error["message"]


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("", openai.UnprocessableEntityError),
        ("\u00ad\u200b [[ ## label ## ]]", openai.UnprocessableEntityError),
        ("x" * 4001, openai.BadRequestError),
        ("SIMULATE-REFUSE", openai.APIStatusError),
        ("SIMULATE-500", openai.InternalServerError),
        ("SIMULATE-HANG", openai.InternalServerError),
    ],
)
def test_errors_are_openais_and_hold_no_query(client, query, error):
    with pytest.raises(error) as raised:
        client.chat.completions.create(model="any", messages=[{"role": "user", "content": query}])
    assert raised.value.body["message"] and raised.value.type in ("invalid_request_error", "server_error")
    assert len(query) < 2 or query not in str(raised.value)


def test_failures_outside_a_handler_have_the_same_form(url, client):
    with pytest.raises(openai.AuthenticationError) as raised:
        client.with_options(api_key="wrong").models.list()
    assert (raised.value.type, raised.value.code) == ("authentication_error", "invalid_api_key")
    with pytest.raises(openai.NotFoundError, match="gpt-5") as raised:
        client.models.retrieve("gpt-5")
    assert raised.value.type == "invalid_request_error"
    headers = {"Authorization": f"Bearer {KEY}"}
    odd = {
        404: requests.post(f"{url}/embeddings", json={}, headers=headers, timeout=30),
        405: requests.get(f"{url}/chat/completions", headers=headers, timeout=30),
        413: post(url, padding="x" * 2**21),
        415: requests.post(f"{url}/chat/completions", data="x", headers=headers, timeout=30),
        400: requests.post(
            f"{url}/chat/completions", data="{", headers={**headers, "Content-Type": "application/json"}, timeout=30
        ),
    }
    for status, response in odd.items():
        assert response.status_code == status and response.json()["error"]["message"], response.text


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """A folder with OpenAI's JavaScript client; skips the test where npm can't install it."""
    folder = ROOT / ".cache/npm"
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    if not (folder / "node_modules/openai").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), JS_CLIENT]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            pytest.skip(f"npm can't install {JS_CLIENT}: {done.stderr[-200:]}")
    return folder


@pytest.mark.slow
def test_the_javascript_client_reads_everything(url, shop, node_modules):
    script = Path(__file__).with_name("openai_client.mjs")
    done = subprocess.run(
        ["node", str(script), url, KEY], cwd=node_modules, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    seen = {line.pop("call"): line for line in map(json.loads, done.stdout.splitlines())}
    assert seen["models.list"]["model"]["id"] == shop.model == seen["models.retrieve"]["model"]["id"]
    label = seen["chat"]["content"]
    assert label in LABELS and seen["chat"]["intent"] == label and seen["chat"]["usage"]["total_tokens"] == 101
    assert seen["stream"] == {"content": label, "usage": seen["chat"]["usage"], "chunks": 3}
    assert seen["stream helper"]["content"] == label
    for param in ("n", "logprobs", "response_format", "tool_choice"):
        refusal = seen[param]
        assert (refusal["kind"], refusal["status"], refusal["param"]) == ("BadRequestError", 400, param)
        assert refusal["message"].startswith(f"400 {param}: "), "the client shows the reason"
    assert (seen["messages"]["status"], seen["messages"]["param"]) == (422, "messages")
    assert (seen["model"]["status"], seen["key"]["status"]) == (404, 401)
    assert seen["key"]["code"] == "invalid_api_key"
