"""Batches whose files hold what no vendor should send: no traceback, and no second payment without a word."""

import pytest

from stages.parts.engines import batch_api
from tests.teachers.sandbox import Sandbox

LOST = {  # of ten lines -> what is said of them
    "cut": "a line that can't be read (10)",
    "empty": "None (10)",
    "outputs": "the engine's answer is no chat completion: its first choice has no message, but output (10)",
}


@pytest.fixture
def sandbox(tmp_path, monkeypatch) -> Sandbox:
    monkeypatch.setattr(batch_api, "FIRST_POLL_S", 0.02)
    sandbox = Sandbox(tmp_path, pool=40)
    sandbox.set("teacher", batch=True)
    return sandbox


@pytest.mark.parametrize(
    "odd",
    "blank foreign twice events created text no_status null_error ended upper unheard".split(),
)
def test_odd_lines_and_statuses_lose_no_answer(sandbox, caplog, odd):
    with sandbox.teacher("--batch-odd", odd):
        assert not sandbox.label()
        assert sandbox.stats()["requests"] == 0 and sandbox.stats()["answers"] == 70 == sandbox.report()["answers"]
        assert sandbox.stats()["batches"] == 1
        assert sandbox.report()["cost"] == pytest.approx(sandbox.stats()["distinct_dollars"] / 2, abs=1e-6)
    assert not caplog.text


@pytest.mark.parametrize("odd", LOST)
def test_what_a_batch_loses_is_said_and_sent_one_by_one(sandbox, caplog, odd):
    with sandbox.teacher("--batch-odd", odd):
        assert not sandbox.label()
        assert sandbox.stats()["requests"] == 10 and sandbox.report()["valid"] == 40
        batch, single = 60, 10
        if odd == "outputs":  # paid in the batch, and kept as it came
            batch = 70
        assert sandbox.report()["answers"] == batch + single
        price = sandbox.stats()["distinct_dollars"] / 70
        assert sandbox.report()["cost"] == pytest.approx(price * (batch / 2 + single), rel=0.02)
    said = [record.getMessage() for record in caplog.records if "one by one" in record.getMessage()]
    assert said == [
        f"batch-0 answered 60 of 70 requests (status completed: {LOST[odd]}); the other 10 are sent one by one, "
        "at the full price"
    ]


def test_what_a_batch_loses_is_sent_only_within_the_budget(sandbox, caplog):
    with sandbox.teacher("--batch-odd", "cut"):
        sandbox.set("runtime", budget_tokens=14_000)
        complaint = sandbox.label()
        assert "of runtime.budget_tokens 14,000 are spent" in complaint and "\n" not in complaint
        assert caplog.text.count("one by one, at the full price") == sandbox.stats()["batches"]


def test_a_batch_without_a_name_is_found_in_the_list_and_one_is_started(sandbox):
    with sandbox.teacher("--batch-odd", "unnamed"):
        assert not sandbox.label()
        assert sandbox.stats()["batches"] == 1 and sandbox.stats()["requests"] == 0


def test_an_error_file_says_why(sandbox, caplog):
    with sandbox.teacher("--fault", "500=0.2"):
        assert not sandbox.label()
    assert "(status completed: internal error (" in caplog.text


def test_an_endpoint_whose_batch_api_is_down_is_one_line(sandbox, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    with sandbox.teacher("--batch-trouble", "99"):
        complaint = sandbox.label()
        assert "the endpoint answered 503: The server is overloaded." in complaint and "\n" not in complaint
