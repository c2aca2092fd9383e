"""Labelling through the real stage, against a teacher that fails in every way: nothing lost, nothing paid twice."""

import json
import random
import shutil
import sqlite3
import subprocess
import time
from collections import Counter
from contextlib import closing
from typing import Any

import dspy
import pytest

from stages.parts.data.rows import Row
from stages.parts.engines import batch_api
from stages.parts.engines.caching_client import was_cut
from stages.parts.engines.endpoint import HostedEndpoint
from stages.parts.engines.requests import Failure, Outcome, Prediction, ProgramRequests
from stages.parts.run import paths
from stages.parts.run.files import json_text, read_jsonl, write_jsonl
from stages.parts.task.program import IntentClassifier, using
from stages.parts.task.prompt import TeacherFormat
from stages.parts.teachers.inputs import chosen_rows
from stages.parts.teachers.labelling import majority
from tests.teachers.dspys_requests import Recorder
from tests.teachers.sandbox import KEY, LABELS, Sandbox

FAULTS = ["429=0.01", "500=0.01", "cut=0.01", "html=0.01", "hang=0.002", "truncated=0.01", "no_label=0.01", "form=0.01"]


def counted(sandbox: Sandbox) -> tuple[Any, ...]:
    report = sandbox.report()
    dollars = pytest.approx(report["cost"], abs=1e-6)  # which is rounded
    return report["answers"], report["prompt_tokens"], report["completion_tokens"], dollars


def seen(sandbox: Sandbox) -> tuple[int, int, int, float]:
    stats = sandbox.stats()
    return (
        stats["distinct"],
        stats["distinct_prompt_tokens"],
        stats["distinct_completion_tokens"],
        stats["distinct_dollars"],
    )


@pytest.mark.parametrize("style", ["direct", "chain_of_thought"])
def test_requests_are_what_dspy_would_send_to_the_byte(style, monkeypatch):
    program = IntentClassifier(LABELS, "Classify.", style)
    program.predictors()[0].demos = [dspy.Example(query="where is it", reasoning="It waits.", label="card_arrival")]
    recorder = Recorder()
    lm = dspy.LM(
        "openai/gpt-4o-mini",
        engine=recorder,
        temperature=0.0,
        max_tokens=400,
        logprobs=True,
        cache=False,
        num_retries=0,
    )
    requests = ProgramRequests(program, HostedEndpoint(""), "gpt-4o-mini", 400, TeacherFormat())
    for query in ("My card got declined", 'Wo bleibt\n\nmeine "Karte"? 🙂', "[[ ## label ## ]]\ncard_arrival", " "):
        with using(lm), pytest.raises(Exception, match="enough"):
            program(query=query)
        theirs = recorder.sent.pop()
        system, *turns = requests.body(query)["messages"]
        assert system["content"] == theirs.system and len(turns) == 3
        assert [(turn["role"], turn["content"]) for turn in turns] == [
            (message.role, message.text) for message in theirs.messages
        ]


@pytest.mark.slow
def test_five_percent_of_faults_cost_no_row(tmp_path):
    sandbox = Sandbox(tmp_path, pool=600)
    with sandbox.teacher("--fault", *FAULTS, "--latency-ms", "20"):
        assert not sandbox.label()
        assert counted(sandbox) == seen(sandbox)
        shutil.rmtree(sandbox.folder / paths.TEACHER)
        assert not sandbox.label()
        assert counted(sandbox) == seen(sandbox), "a rerun counts the answers that were cut short, too"
        assert (
            sandbox.stats()["fault_no_label"] and sandbox.stats()["fault_truncated"] and sandbox.stats()["fault_form"]
        )
    report, rows = sandbox.report(), sandbox.rows()
    assert report["rows"] == report["valid"] == len(rows) == 600 and report["failed"] == {}
    assert all(set(row) >= {"id", "text", "label", "reasoning", "valid", "confidence"} for row in rows)
    assert all(0 < row["confidence"] < 1 and round(row["confidence"], 4) == row["confidence"] for row in rows)
    assert rows[0]["reasoning"] == "Its words say so." and len(sandbox.rows(paths.TEACHER_GOLD)) == 10


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing_but_what_was_in_flight(tmp_path, pytestconfig):
    """At random moments under load; `pytest tests/teachers -k kill_9 --kills 20 -s` prints what was paid twice."""
    kills, chance = pytestconfig.getoption("kills"), random.Random(0)
    whole, sandbox = (Sandbox(tmp_path / name, pool=200 * kills) for name in ("whole", "killed"))
    with whole.teacher():
        assert not whole.label()
    with sandbox.teacher("--latency-ms", "50"):
        for _ in range(kills):
            sandbox.label_and_kill(chance.randint(1, 150))
        assert not (sandbox.folder / paths.TEACHER_LABELS).exists()
        assert not sandbox.label()
        assert counted(sandbox) == seen(sandbox)
        again, in_flight = (
            sandbox.stats()["answers"] - sandbox.stats()["distinct"],
            sandbox.params["runtime"]["max_in_flight"],
        )
        print(f"{kills} kills, {sandbox.stats()['distinct']} rows, {again} answers paid twice")
        assert again <= kills * in_flight
    assert sandbox.bytes() == whole.bytes()


def test_what_was_answered_is_never_requested_again(tmp_path):
    sandbox = Sandbox(tmp_path, pool=60)
    with sandbox.teacher():
        assert not sandbox.label()
        first, sent_before = sandbox.bytes(), sandbox.stats()["requests"]
        sandbox.set("lora", r=8)
        shutil.rmtree(sandbox.folder / paths.TEACHER)
        assert not sandbox.label()
        assert sandbox.stats()["requests"] == sent_before and sandbox.bytes() == first
        sandbox.set("program", instructions="Choose.")
        assert not sandbox.label()
        assert sandbox.stats()["requests"] == 2 * sent_before


def test_more_tokens_repeat_only_what_was_cut(tmp_path):
    sandbox = Sandbox(tmp_path, pool=200)
    sandbox.set("teacher", max_tokens=50)
    with sandbox.teacher("--fault", "truncated=0.05"):
        assert not sandbox.label()
    with sandbox.answers() as store:
        for key, record in store.records()[:7]:  # as if twice the tokens had not been enough either
            record["completion"]["choices"][0] |= {"finish_reason": "length", "message": {"content": "[[ ## reas"}}
            store.put(key, {**record, "max_tokens": 200})
        cut = sum(was_cut(record["completion"]) for _, record in store.records())
    sandbox.set("teacher", max_tokens=400)
    with sandbox.teacher():
        assert not sandbox.label()
        assert sandbox.stats()["requests"] == cut < 12
    assert sandbox.report()["valid"] == 200


@pytest.mark.parametrize(
    ("options", "key", "says"),
    [
        ((), "wrong", "the endpoint refuses the key in TEACHER_API_KEY: Incorrect API key provided."),
        (("--model", "other"), KEY, "the endpoint has no such model or path: The model `gpt-4o-mini` does not exist"),
        (("--credit", "0"), KEY, "the endpoint says that no credit is left: You exceeded your current quota"),
        (
            ("--refuse", "top_logprobs"),
            KEY,
            "no request succeeds: the endpoint answered 400: Unsupported parameter: 'top_logprobs'",
        ),
    ],
)
def test_what_no_request_can_mend_stops_the_run_at_once(tmp_path, options, key, says):
    sandbox = Sandbox(tmp_path, pool=400)
    sandbox.key = key
    with sandbox.teacher(*options):
        complaint = sandbox.label()
        assert complaint.startswith(says) and "\n" not in complaint
        assert sandbox.stats()["requests"] <= 20
        assert not (sandbox.folder / paths.TEACHER_LABELS).exists()
        if "--refuse" in options:  # and what the user can do about it
            sandbox.set("teacher", options={"top_logprobs": None, "logprobs": None})
            assert not sandbox.label()
            assert {row["confidence"] for row in sandbox.rows()} == {None}


def test_requests_to_a_vendor_go_through_the_companys_proxy(tmp_path, monkeypatch):
    sandbox = Sandbox(tmp_path, pool=20)
    sandbox.set("teacher", api_base="http://vendor.invalid/v1")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{sandbox.port}")
    with sandbox.teacher():
        assert not sandbox.label()
        assert sandbox.stats()["answers"] == 50


def test_credit_that_runs_out_half_way_keeps_what_was_paid(tmp_path):
    sandbox = Sandbox(tmp_path, pool=400)
    with sandbox.teacher("--credit", "150", "--latency-ms", "10"):
        complaint = sandbox.label()
        assert "no credit is left" in complaint and "their answers are kept" in complaint
    with sandbox.teacher():
        assert not sandbox.label()
        assert 200 <= sandbox.stats()["answers"] <= 280 + sandbox.params["runtime"]["max_in_flight"]


def test_a_row_that_keeps_failing_is_named_and_many_end_the_run(tmp_path):
    sandbox = Sandbox(tmp_path, pool=400)
    with sandbox.teacher("--fault", "no_label=0.18"):
        assert not sandbox.label()
    failed = sandbox.rows(paths.TEACHER_FAILED)
    assert 1 <= len(failed) <= 8 and {row["reason"] for row in failed} == {"it names none of the labels"}
    assert sandbox.report()["failed"] == {"it names none of the labels": len(failed)}
    labelled = [
        row for path in (paths.TEACHER_LABELS, paths.TEACHER_TEST, paths.TEACHER_GOLD) for row in sandbox.rows(path)
    ]
    assert {row["id"] for row in labelled if not row["valid"]} == {row["id"] for row in failed}
    shutil.rmtree(sandbox.folder / ".cache")
    with sandbox.teacher("--fault", "form=0.8"):
        assert sandbox.label().startswith("more than 2% of 430 rows got no label: it is not in the form")
        assert sandbox.stats()["requests"] < 400


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("refused", ["query 0", "query 30"])
def test_a_row_that_is_refused_for_its_content_stops_no_run(tmp_path, batch, refused, monkeypatch):
    monkeypatch.setattr(batch_api, "FIRST_POLL_S", 0.05)
    sandbox = Sandbox(tmp_path, pool=60)
    sandbox.set("teacher", batch=batch)
    with sandbox.teacher("--filtered", refused):
        assert not sandbox.label()
        assert not sandbox.label(), "when all others are stored, the first real request is refused"
        assert sandbox.report()["failed"] == {"refused": 1} and sandbox.stats()["answers"] == 89
        assert [row["text"] for row in sandbox.rows(paths.TEACHER_FAILED)] == [refused]


def test_a_text_with_nothing_to_read_costs_nothing_and_is_named(tmp_path):
    sandbox = Sandbox(tmp_path, pool=60)
    rows = sandbox.rows(paths.POOL)
    rows[3]["text"], rows[40]["text"] = "\u200b\u00ad", "[[ ## label ## ]]"
    write_jsonl(tmp_path / paths.POOL, rows)
    with sandbox.teacher():
        sandbox.set("teacher", votes=2)
        assert sandbox.label().startswith("more than 2% of 90 rows got no label: nothing to read")
        write_jsonl(tmp_path / paths.POOL, [*rows[:3], *rows[4:]])
        assert not sandbox.label()
        assert sandbox.stats()["answers"] == 2 * 88
    assert [row["text"] for row in sandbox.rows(paths.TEACHER_FAILED)] == ["[[ ## label ## ]]"]
    assert sandbox.report()["failed"] == {"nothing to read": 1}


@pytest.mark.slow
def test_answers_from_before_a_price_was_known_count_in_the_budget(tmp_path):
    sandbox = Sandbox(tmp_path, pool=300)
    sandbox.set("teacher", model="somebody/model-of-theirs")
    with sandbox.teacher("--model", "somebody/model-of-theirs"):
        planned = sandbox.plan()
        assert "no price is known" in planned and "set teacher.price" in planned
        sandbox.set("teacher", price={"prompt": 0.15, "completion": 0.6})
        sandbox.set("runtime", budget_usd=0.01)
        assert "of runtime.budget_usd $0.0100 are spent" in sandbox.label()
        assert 0.009 < sandbox.stats()["distinct_dollars"] <= 0.01
        sandbox.set("runtime", budget_usd=None)
        assert not sandbox.label()
        assert counted(sandbox) == seen(sandbox)


def test_a_budget_is_not_passed_and_a_raised_one_goes_on(tmp_path):
    sandbox = Sandbox(tmp_path, pool=300)
    with sandbox.teacher("--latency-ms", "5"):
        sandbox.set("runtime", budget_usd=0.01)
        complaint = sandbox.label()
        assert "of runtime.budget_usd $0.0100 are spent" in complaint and "of 330 rows are labelled" in complaint
        assert 0.009 < sandbox.stats()["distinct_dollars"] <= 0.01
        sandbox.set("runtime", budget_usd=None, budget_tokens=70_000)
        assert "of runtime.budget_tokens 70,000 are spent" in sandbox.label()
        assert 65_000 < sandbox.stats()["prompt_tokens"] + sandbox.stats()["completion_tokens"] <= 70_000
        sandbox.set("runtime", budget_tokens=None)
        assert not sandbox.label()
        assert counted(sandbox) == seen(sandbox)
        assert sandbox.stats()["answers"] == sandbox.stats()["distinct"] == 330


@pytest.mark.parametrize("limit", ["budget_usd", "budget_tokens"])
def test_a_budget_counts_the_stored_answers_of_all_rows_before_it_pays_for_new_ones(tmp_path, limit):
    sandbox = Sandbox(tmp_path, pool=300)
    with sandbox.teacher():
        assert not sandbox.label()
        report = sandbox.report()
        [path] = (tmp_path / ".cache/answers").glob("*.sqlite")
        with closing(sqlite3.connect(path)) as store, store:
            store.execute("DELETE FROM answers WHERE rowid <= 100")  # about the first rows, which come first again
        total = report["cost"] if limit == "budget_usd" else report["prompt_tokens"] + report["completion_tokens"]
        sandbox.set("runtime", **{limit: type(total)(0.75 * total)})
        assert f"of runtime.{limit}" in sandbox.label()
        assert 330 < sandbox.stats()["answers"] < 330 + 20
        sandbox.set("runtime", **{limit: None})
        assert not sandbox.label()
        assert counted(sandbox) == seen(sandbox) and sandbox.stats()["answers"] == 430


@pytest.mark.slow
def test_an_overloaded_teacher_gets_fewer_requests_at_a_time(tmp_path):
    sandbox = Sandbox(tmp_path, pool=300)
    sandbox.set("runtime", max_in_flight=64)
    with sandbox.teacher("--latency-ms", "50", "--places", "10", "--retry-after-s", "0.2"):
        assert not sandbox.label()
        stats = sandbox.stats()
        assert stats["answers"] == 330 and stats["answered_429"] < 100
    assert sandbox.report()["failed"] == {}


@pytest.mark.slow
def test_a_second_run_has_to_wait_and_requests_a_minute_are_limited(tmp_path):
    sandbox = Sandbox(tmp_path, pool=40)
    sandbox.set("runtime", requests_per_minute=120)
    with sandbox.teacher():
        started = time.monotonic()
        first = subprocess.Popen(
            sandbox.command, cwd=sandbox.folder, env=sandbox.environment, stderr=subprocess.DEVNULL
        )
        while sandbox.stats()["requests"] == 0:
            assert first.poll() is None
            time.sleep(0.05)
        assert sandbox.label() == "another run is querying gpt-4o-mini: wait for it, its answers are shared"
        assert sandbox.stats()["requests"] <= 1 + 2 * (time.monotonic() - started)
        first.kill()
        first.wait()


@pytest.mark.slow
def test_a_batch_is_half_the_price_and_a_killed_run_finds_its_batch_again(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_api, "FIRST_POLL_S", 0.05)
    (tmp_path / "whole").mkdir()
    whole = Sandbox(tmp_path / "whole", pool=200)
    with whole.teacher():
        assert not whole.label()
    (tmp_path / "batch").mkdir()
    sandbox = Sandbox(tmp_path / "batch", pool=200)
    sandbox.set("teacher", batch=True)
    with sandbox.teacher("--batch-polls", "3"):
        process = subprocess.Popen(
            sandbox.command, cwd=sandbox.folder, env=sandbox.environment, stderr=subprocess.DEVNULL
        )
        while not sandbox.stats().get("batches"):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait()
        assert not sandbox.label()
        stats = sandbox.stats()
        assert stats["batches"] == 1 and stats["requests"] == 0 and stats["answers"] == stats["distinct"] == 230
    assert {name: data for name, data in sandbox.bytes().items() if name != "teacher.json"} == {
        name: data for name, data in whole.bytes().items() if name != "teacher.json"
    }
    assert sandbox.report()["cost"] == pytest.approx(whole.report()["cost"] / 2, abs=1e-6)
    shutil.rmtree(sandbox.folder / ".cache")
    with sandbox.teacher("--fault", "500=0.2"):  # what a batch leaves open is sent_before one by one
        assert not sandbox.label()
        assert sandbox.stats()["requests"] > 20 and sandbox.report()["valid"] == 200


def test_a_batch_outlives_trouble_long_lines_and_other_peoples_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_api, "FIRST_POLL_S", 0.05)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)
    monkeypatch.setattr(batch_api, "RETRIES", 1)
    sandbox = Sandbox(tmp_path, pool=20)
    sandbox.set("teacher", batch=True)
    with sandbox.teacher("--batch-trouble", "2"):  # so each call fails for good once
        for _ in range(8):
            if not (complaint := sandbox.label()):
                break
            assert (
                "overloaded" in complaint
                and "their answers are kept" not in complaint
                and "the answers so far are kept" in complaint
            )
        assert not complaint
        assert sandbox.stats()["batches"] == 1 and sandbox.stats()["answers"] == 50
    shutil.rmtree(sandbox.folder / ".cache")
    with sandbox.teacher("--batch-others", "150", "--batch-line-bytes", "700000"):
        with monkeypatch.context() as patch:  # killed between the batch's start and the note of its name
            patch.setattr(batch_api.Batches, "ended", None)
            with pytest.raises(TypeError):
                sandbox.label()
        with sandbox.answers("*.batches.sqlite") as jobs:
            [(key, job)] = jobs.records()
            jobs.put(key, {**job, "batch": None})
        assert not sandbox.label()
        assert sandbox.stats()["batches"] == 1 and sandbox.stats()["answers"] == 50 and sandbox.report()["valid"] == 20


def test_a_batch_that_is_repeated_for_what_was_cut_keeps_its_answers_and_both_prices(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_api, "FIRST_POLL_S", 0.05)
    sandbox = Sandbox(tmp_path, pool=40)
    sandbox.set("teacher", batch=True)
    with sandbox.teacher():
        assert not sandbox.label()
        cost, sent_before = sandbox.report()["cost"], sandbox.stats()
        with sandbox.answers() as store:
            for key, record in store.records()[:5]:
                record["completion"]["choices"][0]["finish_reason"] = "length"
                store.put(key, record)
        sandbox.set("teacher", max_tokens=1600)
        assert not sandbox.label()
        again = sandbox.stats()
        assert again["requests"] == 0 and again["batches"] == 2 and again["answers"] == sent_before["answers"] + 5
        assert sandbox.report()["answers"] == again["answers"] and cost < sandbox.report()["cost"] < 1.2 * cost


def test_a_batch_keeps_to_the_budget_and_says_what_is_wrong_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_api, "FIRST_POLL_S", 0.05)
    sandbox = Sandbox(tmp_path, pool=300)
    sandbox.set("teacher", batch=True)
    with sandbox.teacher():
        sandbox.key = "wrong"
        assert sandbox.label().startswith("the endpoint refuses the key in TEACHER_API_KEY")
        sandbox.key = KEY
        sandbox.set("runtime", budget_tokens=60_000)
        assert "of runtime.budget_tokens 60,000 are spent" in sandbox.label()
        stats = sandbox.stats()
        assert stats["batches"] > 1 and 50_000 < stats["prompt_tokens"] + stats["completion_tokens"] <= 60_000
        sandbox.set("runtime", budget_tokens=None)
        assert not sandbox.label()
        assert (
            sandbox.stats()["answers"] == sandbox.stats()["distinct"] == 330
            and counted(sandbox)[:3] == seen(sandbox)[:3]
        )


@pytest.mark.slow
def test_the_plan_comes_near_what_the_run_costs_and_nothing_is_paid_twice(tmp_path):
    sandbox = Sandbox(tmp_path, pool=400)
    with sandbox.teacher("--latency-ms", "50"):
        planned = sandbox.plan()
        sent_before = sandbox.stats()["distinct"]
        rows = {
            line[:15].strip(): [word.replace(",", "") for word in line[15:].split()]
            for line in planned.splitlines()[:4]
        }
        assert sent_before == 20 and rows["pool"][0] == "400" and int(rows["together"][1]) == 430 - sent_before
        before = seen(sandbox)
        assert not sandbox.label()
        assert sandbox.stats()["distinct"] == 430 == sandbox.stats()["answers"]
        cost = [after - then for after, then in zip(seen(sandbox), before, strict=True)]
        for found, estimate in zip(cost[1:3], rows["together"][2:4], strict=True):
            assert int(estimate) == pytest.approx(found, rel=0.05)
        assert rows["together"][4] == f"${cost[3]:.2f}"
        again = sandbox.plan()
        assert "       0" in again and sandbox.stats()["answers"] == 430


def test_a_plan_without_usage_says_that_the_price_is_estimated(tmp_path):
    sandbox = Sandbox(tmp_path, pool=100)
    with sandbox.teacher("--form", "no_usage"):
        estimated = sandbox.plan()
    assert "gpt-4o-mini reports no usage: tokens and price are estimated from the length of texts" in estimated
    assert "$0.00" not in estimated.splitlines()[1]
    shutil.rmtree(tmp_path / ".cache")
    with sandbox.teacher():
        assert "reports no usage" not in sandbox.plan()


@pytest.mark.parametrize("how", ["cover", "random"])
def test_fewer_rows_can_be_labelled(tmp_path, how):
    sandbox = Sandbox(tmp_path, pool=300)
    sandbox.set("teacher", rows=40, choose=how)
    with sandbox.teacher():
        assert not sandbox.label()
        assert sandbox.stats()["distinct"] == 40 + 30
    rows = sandbox.rows()
    assert len({row["id"] for row in rows}) == 40 == sandbox.report()["rows"]
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows), "in the pool's order"


def test_rows_that_cover_the_pool_leave_no_kind_of_text_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # away from the vectors of a run in the checkout
    kinds = ["where is my card", "refund for a purchase", "change the pin code", "exchange rate of euros"]
    # 8 rows of each rare kind
    pool = [Row(id=str(number), text=f"{kinds[min(number % 50, 3)]} please") for number in range(400)]
    assert {row["text"] for row in chosen_rows(pool, 4, "cover", 0)} == {f"{kind} please" for kind in kinds}
    assert len(chosen_rows(pool, 4, "random", 0)) == 4 and chosen_rows(pool, 400, "cover", 0) == pool


def test_votes_are_answers_of_their_own_and_their_share_is_the_confidence(tmp_path):
    sandbox = Sandbox(tmp_path, pool=150, gold=40)
    sandbox.set("teacher", options={"logprobs": None, "top_logprobs": None})
    with sandbox.teacher("--sampled", "--accuracy", "1.0"):
        sandbox.set("teacher", votes=5)
        assert not sandbox.label()
        assert sandbox.stats()["distinct"] == 5 * 210 == sandbox.report()["answers"]
    rows, truth = (
        sandbox.rows(),
        {row["id"]: row["label"] for row in map(json.loads, (tmp_path / "truth.jsonl").read_text().splitlines())},
    )
    assert {row["confidence"] for row in rows} <= {0.2, 0.4, 0.6, 0.8, 1.0} and len(
        {row["confidence"] for row in rows}
    ) > 1
    unanimous = [row["label"] == truth[row["id"]] for row in rows if row["confidence"] == 1.0]
    assert sum(unanimous) / len(unanimous) > sum(row["label"] == truth[row["id"]] for row in rows) / len(rows) - 0.01
    assert 0.9 <= sandbox.report()["gold_accuracy"] <= 1.0 and 0 <= sandbox.report()["gold_brier"] < 0.1


def test_some_rows_are_labelled_a_second_time_within_the_budget_and_paid_once(tmp_path):
    sandbox = Sandbox(tmp_path, pool=150)
    sandbox.set("teacher", repeat=60, options={"temperature": 1.0})
    with sandbox.teacher("--sampled") as sent:
        assert not sandbox.label()
        assert len(sent) == 180 + 60 == sandbox.report()["answers"]
        found = sandbox.report()["repeated"]
        texts = Counter(body["messages"][-1]["content"] for body in sent)
        assert sorted(texts.values()) == [1] * 120 + [2] * 60
        assert found["rows"] == 60 and 0 < found["two_labels"] < 30
        before = sandbox.bytes()
        assert not sandbox.label() and len(sent) == 240, "both answers are kept"
        assert sandbox.bytes() == before
        sandbox.set("runtime", budget_tokens=before_tokens(sandbox) + 1)
        sandbox.set("teacher", repeat=80)
        assert not sandbox.label(), "the labels are complete without them"
        assert sandbox.report()["repeated"]["rows"] == 60 and len(sent) == 240
    steady = Sandbox(tmp_path / "steady", pool=40)
    steady.set("teacher", repeat=50)
    with steady.teacher():
        assert not steady.label()
        assert steady.report()["repeated"] == {"rows": 40, "two_labels": 0}


def before_tokens(sandbox: Sandbox) -> int:
    report = sandbox.report()
    return int(report["prompt_tokens"] + report["completion_tokens"])


def test_options_win_over_the_temperature_of_votes_and_a_seed_is_needed(tmp_path):
    sandbox = Sandbox(tmp_path, pool=20)
    with sandbox.teacher() as sent:
        for options, temperature in (({}, 0.7), ({"temperature": 1.0}, 1.0), ({"temperature": None}, None)):
            sent.clear()
            sandbox.set("teacher", votes=3, options=options)
            assert not sandbox.label()
            assert {body.get("temperature") for body in sent} == {temperature} and len(sent) == 150
        sent_before = sandbox.stats()["requests"]
        sandbox.set("teacher", options={"seed": None})
        assert sandbox.label().startswith("teacher.votes: votes differ by their seed")
        sandbox.set("teacher", options={"temperature": 0})
        assert sandbox.label().startswith("teacher.votes: votes at temperature 0 are alike")
        assert sandbox.stats()["requests"] == sent_before
    sandbox.set("teacher", options={"top_p": 0.9})
    with sandbox.teacher("--refuse", "seed"):
        complaint = sandbox.label()
        assert "'seed' is not supported" in complaint and "teacher.votes above 1 sends a seed" in complaint
        sandbox.set("teacher", votes=1)
        assert not sandbox.label()


def test_votes_elect_a_label_and_failed_ones_do_not_count():
    def vote(label: str, failure: Failure | None = None, **shares: float) -> Outcome:
        return Outcome(Prediction(label, shares, reasoning=f"because {label}"), failure)

    answer = majority([vote("b"), vote("a"), vote("unknown", Failure("odd", "")), vote("a")])
    assert (answer.prediction.label, answer.prediction.reasoning) == ("a", "because a")
    assert answer.prediction.probabilities == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    assert majority([vote("a", a=0.5, b=0.5), vote("b", b=0.9, a=0.1)]).prediction.label == "b", "of a tie the likelier"
    failed = vote("unknown", Failure("odd", "what it wrote"))
    assert majority([failed, failed]) is failed


def test_rows_that_came_with_a_teachers_label_are_not_paid_for(tmp_path):
    sandbox = Sandbox(tmp_path, pool=20)
    pool = tmp_path / paths.POOL
    rows = read_jsonl(pool)
    write_jsonl(pool, [row | ({"teacher_label": LABELS[0]} if number < 15 else {}) for number, row in enumerate(rows)])
    with sandbox.teacher() as sent:
        assert not sandbox.label()
        assert len(sent) == 5 + 20 + 10  # the others of the pool, test and gold
    labels = read_jsonl(tmp_path / paths.TEACHER_LABELS)
    assert [row["label"] for row in labels[:15]] == [LABELS[0]] * 15 and all(row["valid"] for row in labels)
    assert [row["confidence"] is None for row in labels] == [True] * 15 + [False] * 5
    report = sandbox.report()
    assert (report["given"], report["answers"]) == (15, 35)

    for path in (paths.POOL, paths.GOLD, paths.TEST):  # whole answers, as `make relabel` keeps them
        rows = read_jsonl(tmp_path / path)
        answer = json_text({"label": LABELS[1], "reasoning": "why", "probabilities": {LABELS[1]: 0.6, LABELS[0]: 0.1}})
        write_jsonl(tmp_path / path, [row | {"teacher_answer": answer} for row in rows])
    with sandbox.teacher() as sent:
        assert not sandbox.label()
        assert not sent
    [first, *_] = read_jsonl(tmp_path / paths.TEACHER_LABELS)
    assert (first["label"], first["reasoning"], first["confidence"]) == (LABELS[1], "why", 0.6)
    assert first["probabilities"] == {LABELS[0]: 0.1, LABELS[1]: 0.6}
