"""The review: what is asked first, decisions that survive, and the page in a real browser."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from stages.parts.data.decisions import Decision, add_decisions, read_decisions, take_back
from stages.parts.data.rows import TeacherLabel, row_id
from stages.parts.review.desk import Desk
from stages.parts.review.label_studio import decisions_of, read_export, task
from stages.parts.review.queue import Doubt, diverse_order, doubts
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import write_json, write_jsonl
from stages.parts.run.machine import free_port
from tests.browser import browser_page
from tests.conftest import ROOT

LABELS = ["card_arrival", "lost_card", "top_up"]
WORDS = {
    "card_arrival": "my new card has not arrived yet",
    "lost_card": "i lost my card somewhere",
    "top_up": "top up my account with money",
}


def labelled(text: str, label: str, confidence: float | None = 0.9, valid: bool = True) -> TeacherLabel:
    shares = {label: confidence} if confidence is not None else {}
    return TeacherLabel(
        id=row_id(text), text=text, label=label, reasoning="", valid=valid, confidence=confidence, probabilities=shares
    )


def rows(confidence: float | None = 0.9) -> list[TeacherLabel]:
    return [labelled(f"{WORDS[label]} {number}", label, confidence) for label in LABELS for number in range(12)]


def test_a_wrong_label_comes_first_and_its_look_alikes_do_not_fill_the_queue(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # away from the vectors of a run in the checkout
    wrong = [labelled(f"i lost my card on the way {number}", "top_up", 0.5) for number in range(6)]
    other = labelled("how do i top up by cheque", "card_arrival", 0.5)
    queue = diverse_order(doubts([*rows(), *wrong, other], [], seed=0), 2, seed=0)
    assert {one.row["label"] for one in queue} == {"top_up", "card_arrival"}, "six rows are one question"
    # A teacher that gives no confidence: the linear model alone finds them. An answer that names no label is as
    # doubtful as can be.
    silent = [{**row, "confidence": None, "probabilities": {}} for row in [*rows(), *wrong, other]]
    found = {
        one.row["text"]: one for one in doubts([*silent, labelled("?", "nonsense", None, valid=False)], [], seed=0)
    }
    assert found["?"].doubt == 1 and found[other["text"]].doubt > max(found[row["text"]].doubt for row in rows())
    # Labels that gold shows to be given for others are doubtful however sure the teacher is.
    sure = doubts(rows(1.0), ["top_up"], seed=0)
    assert min(one.doubt for one in sure if one.row["label"] == "top_up") > max(
        one.doubt for one in sure if one.row["label"] != "top_up"
    )


def test_decisions_are_kept_at_once_can_be_edited_by_hand_and_are_checked(tmp_path):
    path = tmp_path / "review/decisions.csv"
    desk = Desk([Doubt(row, 0.5, row["label"]) for row in rows()[:3]], LABELS, path)
    first, second, third = (one.row for one in desk.waiting)
    desk.decide(first["id"], "lost_card")
    assert read_decisions(path, LABELS)[first["id"]].label == "lost_card"
    with pytest.raises(UserError, match="another row is shown"):
        desk.decide(first["id"], "top_up")  # a second window
    desk.skip(second["id"])
    desk.decide(third["id"], "top_up")
    assert desk.state()["row"]["id"] == second["id"], "a skipped row comes back"
    desk.undo()
    assert set(read_decisions(path, LABELS)) == {first["id"]} and desk.state()["row"]["id"] == third["id"]
    desk.undo()
    assert desk.state()["row"]["id"] == second["id"] and desk.state()["left"] == 2

    # as a person types it, without the last columns and line end
    path.write_text(path.read_text() + f"{third['id']},Card Arrival")
    with pytest.raises(UserError, match="changed meanwhile"):
        desk.undo()
    add_decisions(path, [Decision(third["id"], "top_up", "", "")])
    assert read_decisions(path, LABELS)[third["id"]].label == "top_up", "the last word counts"
    path.write_bytes(b"\xef\xbb\xbfid,text,label\r\n")  # of a spreadsheet, with a column of its own
    decision = Decision(third["id"], "top_up", "card_arrival", "")
    path.write_bytes(path.read_bytes() + f"{second['id']},two\u2028lines to Unicode,top_up\r\n".encode())
    add_decisions(path, [Decision(first["id"], "lost_card", "top_up", ""), decision])
    assert read_decisions(path, LABELS)[second["id"]].label == "top_up"
    assert {each.label for each in read_decisions(path, LABELS).values()} == {"lost_card", "top_up"}, (
        "not what the teacher had said"
    )
    take_back(path, decision)
    assert set(read_decisions(path, LABELS)) == {first["id"], second["id"]}
    path.write_bytes("id,label\nx,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8"):
        read_decisions(path, LABELS)
    path.write_text("id,label\n,top_up\nx,other\ny,other\n")
    with pytest.raises(UserError, match=r"rows 2, 3: 'other' is none of this run's 3 labels.*row 1: it has no id"):
        read_decisions(path, LABELS)


def test_label_studio_gets_tasks_and_its_export_comes_back(tmp_path):
    exported = [task(Doubt(row, 0.5, row["label"])) for row in rows()[:3]]
    assert json.loads(json.dumps(exported))[0]["predictions"][0]["result"][0]["value"] == {"choices": ["card_arrival"]}
    choice = [{"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": ["lost_card"]}}]
    done = [
        {
            **exported[0],
            "annotations": [{"result": choice, "was_cancelled": False, "created_at": "2026-11-21T10:00:00Z"}],
        }
    ]
    skipped = [
        {**exported[1], "annotations": [{"result": choice, "was_cancelled": True}]},
        {**exported[2], "annotations": []},
    ]
    assert decisions_of(done + skipped, LABELS) == [
        Decision(rows()[0]["id"], "lost_card", "card_arrival", "2026-11-21T10:00:00Z")
    ]
    # Comments, ratings and earlier answers stand beside the label, and change nothing.
    rating = {"from_name": "quality", "to_name": "text", "type": "rating", "value": {"rating": 4}}
    comment = {"from_name": "note", "to_name": "text", "type": "textarea", "value": {"text": ["unsure"]}}
    urgent = {"from_name": "urgent", "to_name": "text", "type": "choices", "value": {"choices": ["yes"]}}
    annotated = {**done[0]["annotations"][0], "result": [rating, urgent, comment, *choice]}
    earlier = {"result": [{**choice[0], "value": {"choices": ["top_up"]}}], "updated_at": "2026-11-20T10:00:00Z"}
    beside = [{**exported[0], "annotations": [annotated, earlier]}]
    assert decisions_of(beside, LABELS) == decisions_of(done, LABELS)
    assert not decisions_of([{**exported[0], "annotations": [{"result": [rating, comment]}]}], LABELS)
    with pytest.raises(UserError, match="task 1 has no control 'label' but urgent"):
        decisions_of([{**exported[0], "annotations": [{"result": [urgent]}]}], LABELS)
    two = [{**choice[0], "value": {"choices": ["lost_card", "top_up"]}}]
    with pytest.raises(UserError, match="task 1 has 2 choices"):
        decisions_of([{**exported[0], "annotations": [{"result": two}]}], LABELS)
    for content in (b"\xff", b"{", b"[" * 100_000, b"3"):
        (tmp_path / "export.json").write_bytes(content)
        with pytest.raises(UserError):
            decisions_of(read_export(tmp_path / "export.json"), LABELS)
    with pytest.raises(UserError, match="task 1: 'lost_card' is none"):
        decisions_of(done, ["top_up"])
    with pytest.raises(UserError, match="not as Label Studio exports"):
        decisions_of([{"text": "x", "label": "y"}], LABELS)


@contextmanager
def running_review(folder: Path) -> Iterator[str]:
    """The real command on a folder with a teacher's labels."""
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    write_json(folder / paths.LABELS, LABELS)
    write_json(folder / paths.TEACHER_REPORT, {"confused": None})
    doubtful = labelled("<img src=x onerror=alert(1)> lost it", "top_up", 0.1)
    write_jsonl(folder / paths.TEACHER_LABELS, [*rows(), doubtful])
    write_jsonl(
        folder / paths.POOL,
        [{"id": doubtful["id"], "text": doubtful["text"], "raw.ticket": "T-1<b>", "raw.date": "2026-11-01"}],
    )
    port = free_port()
    command = [sys.executable, "-m", "stages.parts.review", "--rows", "3", "--port", str(port)]
    with subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout and re.match("ordering 37 rows", process.stdout.readline())
            process.stdout.readline()
            url = f"http://127.0.0.1:{port}"
            for _ in range(100):
                try:
                    requests.get(f"{url}/state", timeout=5)
                    break
                except requests.ConnectionError:
                    time.sleep(0.1)
            yield url
        finally:
            process.terminate()


@pytest.mark.slow
def test_the_page_is_worked_with_the_keyboard_alone(tmp_path):
    with running_review(tmp_path) as url:
        assert requests.get(url, headers={"Host": "evil.example"}, timeout=5).status_code == 400
        forged = requests.post(f"{url}/undo", data="{}", headers={"Content-Type": "text/plain"}, timeout=5)
        assert forged.status_code == 422, "another site's form can send no JSON"
        with browser_page(url) as page:
            page.goto(url)
            page.get_by_text("0 decided, 3 left").wait_for()
            assert "<img src=x" in page.locator("#text").inner_text(), "the doubtful row first, as text"
            assert page.locator("#own").inner_text() == "ticket: T-1<b> · date: 2026-11-01"
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            first = page.locator("#guesses button").first.inner_text().split()[-1]
            page.keyboard.press("1")
            page.get_by_text("1 decided, 2 left").wait_for()
            skipped = page.locator("#text").inner_text()
            page.keyboard.press("s")
            page.wait_for_function("before => document.querySelector('#text').textContent !== before", arg=skipped)
            page.keyboard.press("/")
            page.keyboard.type("lost_card")
            page.keyboard.press("Enter")
            page.get_by_text("2 decided, 1 left").wait_for()
            assert page.locator("#text").inner_text() == skipped
            page.keyboard.press("u")
            page.get_by_text("1 decided, 2 left").wait_for()
            page.keyboard.press("/")
            page.keyboard.type("no such label")
            page.keyboard.press("Enter")
            page.get_by_role("alert").get_by_text("'no such label' is none of the 3 labels").wait_for()
        decisions = read_decisions(tmp_path / paths.DECISIONS, LABELS)
        assert [(one.label, one.was) for one in decisions.values()] == [(first, "top_up")]
