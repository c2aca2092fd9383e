"""Answers that were paid are kept and counted, whatever form they come in: through the real stage and real HTTP."""

import json
import math
import shutil
from typing import Any

import pytest

from stages.parts.engines import http_client
from stages.parts.engines.completions import compact, token_of, usage_of
from stages.parts.engines.endpoint import HostedEndpoint
from stages.parts.engines.http_client import UnreadableAnswer, json_object
from stages.parts.engines.requests import ProgramRequests
from stages.parts.run import paths
from stages.parts.task.program import IntentClassifier
from stages.parts.task.prompt import TeacherFormat
from tests.teachers.sandbox import Sandbox
from tests.teachers.simulated_teacher import FORMS

WITHOUT_PROBABILITIES = {"null", "nan", "infinity", "positive", "absent"}
WITHOUT_USAGE = {"no_usage", "zero_usage"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Sandbox:
    """A run on answers in OpenAI's own form."""
    sandbox = Sandbox(tmp_path_factory.mktemp("plain"), pool=30)
    with sandbox.teacher():
        assert not sandbox.label()
    return sandbox


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("outputs", "huge")])
def test_an_answer_in_any_form_is_labelled_counted_and_never_paid_again(tmp_path, plain, form):
    sandbox = Sandbox(tmp_path, pool=30)
    with sandbox.teacher("--form", form):
        assert not sandbox.label()
        report, rows = sandbox.report(), sandbox.rows()
        shutil.rmtree(tmp_path / paths.TEACHER)
        assert not sandbox.label()
        assert sandbox.stats()["answers"] == 60 == report["answers"]
    assert sandbox.report() == report and sandbox.rows() == rows
    wanted = plain.rows()
    assert [row["label"] for row in rows] == [row["label"] for row in wanted]
    if form in WITHOUT_PROBABILITIES:
        assert all(row["confidence"] is None and row["probabilities"] == {} for row in rows)
        assert report.pop("gold_brier") is None
        report["gold_brier"] = plain.report()["gold_brier"]
    else:
        assert rows == wanted
    if form in WITHOUT_USAGE:
        assert report["estimated_answers"] == 60 and report["cost"] > 0
        assert report["prompt_tokens"] == pytest.approx(plain.report()["prompt_tokens"] * 4 / 3, rel=0.02)
    else:
        assert report == plain.report()


def test_a_budget_without_usage_goes_by_an_estimate_and_says_so(tmp_path):
    sandbox = Sandbox(tmp_path, pool=100)
    sandbox.set("runtime", budget_usd=0.004)
    with sandbox.teacher("--form", "no_usage"):
        complaint = sandbox.label()
        assert complaint.startswith("about $0.00") and "of runtime.budget_usd $0.0040 are spent" in complaint
        assert 0 < sandbox.stats()["distinct_dollars"] < 0.004


def test_what_can_not_be_read_is_kept_as_it_came_and_read_by_better_code(tmp_path, plain, monkeypatch):
    """Here the better code is a reader that takes `outputs` for choices."""
    sandbox = Sandbox(tmp_path, pool=30)
    with sandbox.teacher("--form", "outputs"):
        complaint = sandbox.label()
        assert "the engine's answer is no chat completion: it has no choices" in complaint and "\n" not in complaint
        paid = sandbox.stats()["answers"]
        with sandbox.answers() as store:
            records = [record for _, record in store.records()]
        payments = sum(1 + len(record["paid_before"]) for record in records)
        assert 0 <= paid - payments < 8, "but for what was in flight when the run ended"
        assert paid <= 20 and all(record["dollars"] > 0 for record in records)

    def better(answer: dict[str, Any]) -> dict[str, Any]:
        return compact({**answer, "choices": answer.get("outputs") or answer.get("choices")})

    monkeypatch.setattr("stages.parts.engines.caching_client.compact", better)
    with sandbox.teacher():
        assert not sandbox.label()
        assert sandbox.stats()["answers"] == 60 - len(records)
    assert sandbox.rows() == plain.rows()
    assert sandbox.report()["answers"] == 60 - len(records) + payments, "all that was paid is in the report"
    assert sandbox.report()["cost"] >= plain.report()["cost"]


def test_records_with_odd_numbers_are_read_and_not_paid_again(tmp_path, plain):
    """Of versions that kept what came."""
    sandbox = Sandbox(tmp_path, pool=30)
    with sandbox.teacher():
        assert not sandbox.label()
        with sandbox.answers() as store:
            odd = zip(store.records(), [None, math.nan, "-0.1", -math.inf, 0.7, {}], strict=False)
            for (key, record), number in odd:
                record["completion"]["choices"][0]["logprobs"]["content"][0]["logprob"] = number
                record["completion"]["usage"]["prompt_tokens"] = str(record["completion"]["usage"]["prompt_tokens"])
                store.put(key, record)
        shutil.rmtree(tmp_path / paths.TEACHER)
        assert not sandbox.label()
        assert sandbox.stats()["answers"] == 60 and sandbox.report()["valid"] == 30
    assert sandbox.report()["prompt_tokens"] == plain.report()["prompt_tokens"]


@pytest.mark.parametrize(
    ("number", "others"), [(0.7, {}), (-0.1, {"b": 0.2}), (-0.1, {"b": -0.1}), (math.nan, {}), ("x", {})]
)
def test_numbers_that_are_no_log_probabilities_are_refused(number, others):
    with pytest.raises((ValueError, TypeError)):
        token_of("a", number, others)


def test_a_probability_never_leaves_the_reader_above_one():
    requests = ProgramRequests(
        IntentClassifier(["a", "b"], "Choose.", "direct"), HostedEndpoint(""), "m", 9, TeacherFormat()
    )
    header = {"token": "[[ ## label ## ]]\n", "logprob": 0.0}
    for number in (0.7, 5000.0, math.nan, None):
        token = {"token": "a", "logprob": number, "top_logprobs": []}
        choice = {"message": {"content": "[[ ## label ## ]]\na\n\n"}, "logprobs": {"content": [header, token]}}
        assert requests.read({"choices": [choice]}).probabilities == {}
    twice = [{"token": "b", "logprob": -1.0}, {"token": "b", "logprob": -2.0}]
    assert token_of("a", -1.0, twice)["top_logprobs"] == twice, "two tokens may be written alike"
    rounded = token_of("a", 1e-7, {"a": 1e-7, "b": None, "c": math.nan})
    assert rounded == {"token": "a", "logprob": 0.0, "top_logprobs": [{"token": "a", "logprob": 0.0}]}


@pytest.mark.parametrize(
    ("usage", "prompt", "completion"),
    [
        (None, 0, 0),
        ([], 0, 0),
        ({"prompt_tokens": "12", "completion_tokens": 3.0}, 12, 3),
        ({"prompt_tokens": -1, "completion_tokens": math.inf}, 0, 0),
        ({"input_tokens": 5, "output_tokens": 6}, 5, 6),
        ({"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 90}, 10, 80),
    ],
)
def test_usage_has_numbers_or_zeros(usage, prompt, completion):
    assert usage_of({"usage": usage}) == {"prompt_tokens": prompt, "completion_tokens": completion}


@pytest.mark.parametrize(
    "answer",
    [{}, {"choices": None}, {"choices": []}, {"choices": [None]}, {"choices": [{}]}, {"choices": {"0": 1}}]
    + [{"choices": [{"message": {"content": content}}]} for content in (1, [1], [{"type": "text"}], {"a": 1})],
)
def test_what_is_no_completion_is_said_in_one_line(answer):
    with pytest.raises(UnreadableAnswer, match=r"is no chat completion: it[^\n]*$"):
        compact(answer)


@pytest.mark.parametrize(
    "body", [b"", b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}", b"\xff\xfe", b"data: {", b"[1, 2]", b"3", b'{"a"']
)
def test_a_body_that_is_no_json_object_is_a_value_error(body):
    with pytest.raises(ValueError):
        json_object(body)


@pytest.mark.parametrize(
    "body", [b'\xef\xbb\xbf{"a": 1}', b'\xef\xbb\xbf[{"a": 1}]', b'\xef\xbb\xbfdata: {"a": 1}\n\n']
)
def test_a_byte_order_mark_costs_no_answer(body):
    assert json_object(body) == {"a": 1}


def test_a_body_without_an_end_is_not_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(http_client, "MAX_BYTES", 2**20)
    sandbox = Sandbox(tmp_path, pool=30)
    with sandbox.teacher("--form", "huge"):
        assert "the answer is larger than 1 MiB" in sandbox.label()


ODD: tuple[Any, ...] = (True, 5, math.inf, "x", [], {}, [None], [[]], {"content": 5}, {"content": [None]})


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize("place", ["choices", "choice", "delta", "content", "logprobs", "usage", "event"])
def test_a_stream_of_odd_events_is_read_or_kept_as_it_came(place, odd):
    """A part that is left out could make another label: `refund` of `refund_not_showing_up`."""
    choices = [
        {"index": 0, "delta": {"content": part}, "logprobs": None, "finish_reason": "stop"} for part in ("refund", "_x")
    ]
    event: Any = {"choices": [choices[1]], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}
    where = {"choice": (event["choices"], 0), "content": (choices[1]["delta"], "content")}
    where |= {name: (choices[1], name) for name in ("delta", "logprobs")} | {"usage": (event, "usage")}
    if place == "event":
        event = odd
    else:
        holder, name = where.get(place, (event, place))
        holder[name] = odd
    lines = [f"data: {json.dumps(each)}\n\n" for each in ({"choices": choices[:1]}, event)]
    try:
        content = compact(json_object("".join(lines).encode()))["choices"][0]["message"]["content"]
    except (ValueError, UnreadableAnswer):
        assert place not in ("logprobs", "usage")
    else:
        wanted = {"logprobs": "refund_x", "usage": "refund_x", "content": f"refund{odd}"}
        assert content == wanted.get(place, "refund"), "nothing was left out"


@pytest.mark.parametrize("number", [-5, 1e308, "1e400", "NaN", 10**30, None, [], "x"])
def test_a_number_of_tokens_that_can_be_none_is_estimated(number):
    assert usage_of({"usage": {"prompt_tokens": number, "completion_tokens": 7}}) == {
        "prompt_tokens": 0,
        "completion_tokens": 7,
    }
