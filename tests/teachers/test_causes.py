"""What fails is named, with its cause, in one line, and soon."""

import time

import pytest

from stages.parts.run import paths
from stages.parts.teachers.causes import Causes
from tests.teachers.sandbox import Sandbox

FAULTS = {  # of every answer -> the cause, as the last line names it
    "error200": "the answer is no chat completion: Provider returned error",
    "no_choices": "the engine's answer is no chat completion",
    "memory": "the endpoint answered 500: model requires more system memory (42.1 GiB)",
    "daily": "the endpoint answered 429: Limit 200 requests per day reached.",
    "html": "the answer is no JSON; it begins with '<html>Bad gateway</html>'",
    "cut": "ClientPayloadError",
    "hang": "the engine did not answer in time",
}


@pytest.fixture
def sandbox(tmp_path) -> Sandbox:
    return Sandbox(tmp_path, pool=300, gold=60)


def check(complaint: str, cause: str) -> None:
    assert "no request succeeds: " in complaint and cause in complaint and "\n" not in complaint
    assert " times)" in complaint


@pytest.mark.parametrize("fault", FAULTS)
def test_an_endpoint_that_never_answers_ends_the_run_soon_and_the_cause_is_shown(sandbox, fault):
    sandbox.set("runtime", timeout_s=1)
    with sandbox.teacher("--fault", f"{fault}=1"):
        started = time.monotonic()
        check(sandbox.label(), FAULTS[fault])
        assert sandbox.stats()["requests"] <= 20 and time.monotonic() - started < 12
    failed = sandbox.rows(paths.TEACHER_FAILED)
    assert failed and any(FAULTS[fault] in row["message"] for row in failed)


def test_plan_and_tune_teacher_end_in_the_same_way(sandbox):
    with sandbox.teacher("--fault", "memory=1"):
        for number, command in enumerate((sandbox.plan, sandbox.tune), 1):
            check(command(), FAULTS["memory"])
            assert sandbox.stats()["requests"] <= 20 * number


def test_nobody_listening_a_wrong_path_and_a_broken_key_are_named(sandbox):
    check(sandbox.label(), "Cannot connect to host 127.0.0.1")
    with sandbox.teacher():
        sandbox.set("teacher", api_base=f"http://127.0.0.1:{sandbox.port}/api")
        assert sandbox.label().startswith("the endpoint has no such model or path: 404")
        assert sandbox.stats()["requests"] == 0
        sandbox.set("teacher", api_base=f"http://127.0.0.1:{sandbox.port}/v1/")
        sandbox.key = "key\n"
        assert not sandbox.label(), "a line end behind a key, as files and secrets have it"
        sandbox.key = "key\nof two lines"
        assert sandbox.label() == "TEACHER_API_KEY holds a blank or a character that no key has: set it anew"


@pytest.mark.parametrize(
    "api_base", ["api.vendor.example/v1", "http://vendor.example/v1/chat/completions", "https://vendor.example/v1?k=1"]
)
def test_an_address_that_is_none_is_refused_before_any_request(sandbox, api_base):
    sandbox.set("teacher", api_base=api_base)
    assert sandbox.label().startswith("params.yaml: profiles.api.teacher.api_base: ")
    assert sandbox.plan().startswith("plan: params.yaml: profiles.api.teacher.api_base: ")


def test_a_plan_of_broken_parameters_is_one_line(sandbox):
    (sandbox.folder / "params.yaml").write_text("profile: [")
    assert sandbox.plan().startswith("plan: params.yaml is not YAML") and "\n" not in sandbox.plan()


def test_a_teacher_that_never_names_a_label_is_stopped_after_a_few_rows(tmp_path):
    sandbox = Sandbox(tmp_path, pool=600)
    with sandbox.teacher("--fault", "no_label=1"):
        assert sandbox.label().startswith("the first 10 rows all got no label: it names none of the labels (")
        assert sandbox.stats()["requests"] < 200
    assert len(sandbox.rows(paths.TEACHER_FAILED)) >= 10


def test_failures_in_the_middle_of_a_run_keep_what_is_labelled(sandbox, monkeypatch):
    """An outage ends the run once it has lasted longer than a restart, not when rows have used up their retries."""
    monkeypatch.setattr("stages.parts.teachers.causes.OUTAGE_S", 0.5)
    with sandbox.teacher("--memory-after", "100"):
        complaint = sandbox.label()
    assert complaint.startswith("no request succeeds any more: the endpoint answered 500: model requires more system")
    labelled = int(complaint.split(" times); ")[1].split()[0])
    assert complaint.endswith(f"{labelled} of 380 rows are labelled, their answers are kept")
    with sandbox.teacher():
        assert not sandbox.label()
        assert labelled >= 100 and sandbox.stats()["answers"] == 380 - labelled


def test_messages_that_differ_by_numbers_alone_count_as_one_and_three_are_shown():
    causes = Causes()
    for number in range(5):
        causes.add(f"try again in {number}.5 s (request req_{number}abc4711)")
    for message in ("answered 500: no", "answered 503: no", "answered 503: no", "down"):
        causes.add(message)
    assert str(causes) == (
        "try again in 0.5 s (request req_0abc4711) (5 times); answered 500: no (once); answered 503: no (2 times); "
        "1 with other messages"
    )
