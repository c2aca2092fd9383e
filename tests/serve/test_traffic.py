"""After an answer: the teacher, rows and audits, through the real command. The engine is a stub that is 60 % sure of
every query; the teacher is simulated, behind OpenAI's protocol.
"""

import asyncio
import sqlite3
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import requests
from prometheus_client import CollectorRegistry

from serve.answer_cache import AnswerCache
from serve.traffic import SHADOWS_AT_ONCE, Standards, Traffic, TrafficMetrics
from stages.parts.numbers.baselines import fitted_baseline
from stages.parts.run import paths
from stages.parts.run.files import read_jsonl, write_json, write_jsonl
from stages.parts.run.machine import free_port
from stages.parts.run.params import load_params
from stages.parts.students.linear import read_linear, write_linear
from stages.parts.students.prediction import CalibratedPrediction, QueryClassifier
from stages.parts.traffic.escalation import Escalation, TeacherAnswer
from stages.parts.traffic.store import TrafficStore
from tests.conftest import ROOT, run
from tests.serve.shop import (
    LABELS,
    Shop,
    ended,
    hire_teacher,
    make_shop,
    serving,
    start,
    start_engine,
    student_calibration,
    teaching,
    until,
    wait_until,
)

LABELS = list(LABELS)
AUDITS, CHECKS = (f'watch_observations{{watch="{name}"}}' for name in ("audit", "teacher"))
pytestmark = pytest.mark.slow  # each starts the service, the stub and the teacher
TRUTH = {f"query {number}": LABELS[number % len(LABELS)] for number in range(200)}
PREDICTION = CalibratedPrediction(LABELS[0], 0.9, None, [], None, "student")
PRICED = {"prompt": 1000.0, "completion": 0.0}  # dollars for a million tokens: a query costs some cents


def make_traffic_shop(folder, threshold: float, **serve: object) -> tuple[Shop, int]:
    """A shop whose profile has a hosted teacher, and the teacher's port."""
    shop = make_shop(folder, threshold=threshold, **serve)
    port = hire_teacher(shop, LABELS, TRUTH, PRICED)
    held_out = {"by": "teacher", "label": LABELS[0], "probabilities": {LABELS[0]: 0.99}, "confidence": None}
    write_jsonl(folder / paths.HELD_OUT, [{"id": str(number), **held_out} for number in range(300)])
    return shop, port


@contextmanager
def whole_shop(folder, threshold: float, *teacher: str, **serve: object) -> Iterator[tuple[str, str, Shop]]:
    """The service's URL, the teacher's, and the shop."""
    shop, port = make_traffic_shop(folder, threshold, **serve)
    with (
        ended(start_engine(shop)),
        teaching(shop, port, *teacher) as teacher_url,
        serving(shop, TEACHER_API_KEY="key") as url,
    ):
        yield url, teacher_url, shop


def classified(url: str, query: str) -> dict:
    response = requests.post(f"{url}/classify_intent", json={"query": query}, timeout=30)
    assert response.status_code == 200, response.text
    return response.json()


def metric(url: str, name: str) -> float:
    lines = requests.get(f"{url}/metrics", timeout=5).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def served_rows(shop: Shop) -> list[tuple]:
    with sqlite3.connect(shop.folder / paths.TRAFFIC) as file:
        return file.execute(
            "SELECT text, label, abstained, answered_by, teacher_label, dollars FROM served ORDER BY number"
        ).fetchall()


def test_the_teacher_answers_what_the_student_is_unsure_of_and_the_row_is_kept(tmp_path):
    unsure = {"when_unsure": "teacher", "keep": "doubtful"}
    with whole_shop(tmp_path / "shop", 0.9, **unsure) as (url, teacher_url, shop):
        for text, label in list(TRUTH.items())[:20]:
            answer = classified(url, text)
            assert (answer["label"], answer["answered_by"], answer["abstained"]) == (label, "teacher", None)
            assert answer["price_usd"] > 0
        again = classified(url, "query 3")  # from the cache
        assert again["label"] == TRUTH["query 3"]
        assert requests.get(f"{teacher_url}/stats", timeout=5).json()["answers"] == 20
        rows = served_rows(shop)
        assert [row[:5] for row in rows[:20]] == [
            (text, label, None, "teacher", label) for text, label in list(TRUTH.items())[:20]
        ]
        assert metric(url, "teacher_dollars_today") == pytest.approx(sum(row[5] for row in rows[:20]))


def test_a_teacher_in_trouble_is_never_an_error_to_a_client(tmp_path):
    trouble = ["--fault", "500=0.3", "429=0.2", "hang=0.1", "html=0.1"]
    unsure = {"when_unsure": "teacher", "teacher_timeout_s": 0.5}
    with whole_shop(tmp_path / "shop", 0.9, *trouble, **unsure) as (url, _, shop):
        started = time.monotonic()
        with ThreadPoolExecutor(16) as clients:
            answers = list(clients.map(lambda text: classified(url, text), TRUTH))
        assert time.monotonic() - started < 60
        by = [answer["answered_by"] for answer in answers]
        assert by.count("teacher") > 0 and by.count("student") > 0
        for (_, label), answer in zip(TRUTH.items(), answers, strict=True):
            assert answer["abstained"] if answer["answered_by"] == "student" else answer["label"] == label
        assert metric(url, "teacher_failures_total") == by.count("student")
        assert not (shop.folder / paths.TRAFFIC).exists() or served_rows(shop) == []  # keep: none


def test_a_day_budget_holds_over_a_restart(tmp_path):
    shop, port = make_traffic_shop(tmp_path / "shop", 0.9, when_unsure="teacher", budget_usd_per_day=2.0)
    with ended(start_engine(shop)), teaching(shop, port) as teacher_url:
        for _ in range(2):
            with serving(shop, TEACHER_API_KEY="key") as url:
                by = [classified(url, text)["answered_by"] for text in TRUTH]
                assert metric(url, "teacher_dollars_today") <= 2.0
                assert by[-1] == "student"
        stats = requests.get(f"{teacher_url}/stats", timeout=5).json()
    assert 0 < stats["answers"] < 50


def test_no_answer_is_paid_twice_and_no_row_is_lost_when_the_service_is_killed(tmp_path):
    shop, port = make_traffic_shop(tmp_path / "shop", 0.9, when_unsure="teacher", keep="all")
    answered: list[str] = []
    with ended(start_engine(shop)), teaching(shop, port) as teacher_url:
        for _ in range(3):
            own_port = free_port()
            service = start(shop, "serve", "--port", str(own_port), TEACHER_API_KEY="key")
            url = f"http://127.0.0.1:{own_port}"
            wait_until(f"{url}/readyz")

            def send(text: str, url: str = url) -> None:
                try:
                    requests.post(f"{url}/classify_intent", json={"query": text}, timeout=5).raise_for_status()
                    answered.append(text)
                except requests.RequestException:
                    pass

            with ThreadPoolExecutor(8) as clients:
                before = len(answered)
                sent = [clients.submit(send, text) for text in TRUTH if text not in answered]
                until(lambda before=before: len(answered) >= before + 10)
                service.kill()
                for each in sent:
                    each.cancel()
            service.wait()
        stats = requests.get(f"{teacher_url}/stats", timeout=5).json()
    assert set(answered) <= {row[0] for row in served_rows(shop)}
    assert stats["answers"] - stats["distinct"] <= 3 * 8  # those in flight at a kill


def test_audits_run_in_the_background_and_raise_the_alarm_on_disagreement_alone(tmp_path):
    with whole_shop(tmp_path / "shop", 0.5, audit=1.0, keep="all") as (url, _, shop):
        answers = {text: classified(url, text) for text in list(TRUTH)[:60]}
        assert {answer["answered_by"] for answer in answers.values()} == {"student"}
        until(lambda: metric(url, AUDITS) >= 20)
        # The stub's labels have nothing to do with the truth, so the student agrees by chance.
        assert metric(url, 'watch_alarm{watch="audit"}') == 1 and metric(url, 'watch_expected{watch="audit"}') > 0.98
        rows = served_rows(shop)
        assert [row[3] for row in rows] == ["student"] * 60 and sum(row[4] is not None for row in rows) >= 20
        audits = metric(url, AUDITS)
    with ended(start_engine(shop)), serving(shop, TEACHER_API_KEY="key") as url:
        assert metric(url, AUDITS) >= audits and metric(url, 'watch_alarm{watch="audit"}') == 1, "after a restart"

    like_student = [{"text": text, "label": answer["label"]} for text, answer in answers.items()]
    shop, port = make_traffic_shop(tmp_path / "agreeing", 0.5, audit=1.0)
    write_jsonl(shop.folder / "truth.jsonl", like_student)
    with ended(start_engine(shop)), teaching(shop, port), serving(shop, TEACHER_API_KEY="key") as url:
        for text in answers:
            classified(url, text)
            until(lambda: metric(url, "teacher_answers_total") == metric(url, AUDITS))
        until(lambda: metric(url, AUDITS) >= 50)
        assert metric(url, 'watch_alarm{watch="audit"}') == 0 and metric(url, 'watch_share{watch="audit"}') == 1


def test_each_student_has_audits_of_its_own_and_those_in_flight_at_a_swap_count_for_none(tmp_path):
    async def agreements() -> None:
        with TrafficStore(tmp_path / "served.sqlite", 1, 100) as store:
            answers: list[asyncio.Future[TeacherAnswer]] = []

            class Slow:
                async def query(self, _: str) -> TeacherAnswer:
                    answers.append(asyncio.get_running_loop().create_future())
                    return await answers[-1]

            settings = load_params(ROOT / "params.yaml").serve.model_copy(update={"audit": 1.0})
            metrics = TrafficMetrics(CollectorRegistry())
            served = Traffic(
                settings, store, cast(Escalation, Slow()), AnswerCache("", 0), Standards("old", 0.9), metrics
            )

            async def audited(model: str, swap: str | None = None) -> tuple[int, int]:
                await served.after("query", replace(PREDICTION, model=model))
                await asyncio.sleep(0)
                if swap:
                    served.swap(Standards(swap, 0.8))
                answers[-1].set_result(TeacherAnswer(LABELS[1], None, None))
                await asyncio.gather(*served.audits)
                assert served.audit_watch
                return served.audit_watch.detector.observed, len(store.observations("audit", model))

            assert await audited("old") == (1, 1)
            assert await audited("old", swap="new") == (0, 1)
            assert await audited("new") == (1, 1)
            served.swap(Standards("old", 0.9))
            assert (
                served.audit_watch
                and served.audit_watch.detector.observed == 1
                and served.audit_watch.detector.rate == 0.9
            )

    asyncio.run(agreements())


def test_a_silent_change_of_the_teacher_raises_an_alarm_that_outlives_a_restart(tmp_path):
    shop, port = make_traffic_shop(tmp_path / "shop", 0.9, check_teacher=4_000_000)  # a day: 46 a second
    before = [
        {
            "id": text,
            "text": text,
            "label": label,
            "reasoning": "",
            "valid": True,
            "confidence": None,
            "probabilities": {},
        }
        for text, label in TRUTH.items()
    ]
    write_jsonl(shop.folder / paths.TEACHER_LABELS, before)
    with ended(start_engine(shop)):
        with teaching(shop, port), serving(shop, TEACHER_API_KEY="key") as url:
            until(lambda: metric(url, CHECKS) >= 100)
            assert (metric(url, 'watch_share{watch="teacher"}'), metric(url, 'watch_alarm{watch="teacher"}')) == (1, 0)
        with teaching(shop, port, "--accuracy", "0.7"), serving(shop, TEACHER_API_KEY="key") as url:
            assert metric(url, CHECKS) >= 100, "those before the restart count"
            until(lambda: metric(url, 'watch_alarm{watch="teacher"}') == 1)
            assert metric(url, CHECKS) < 2_000
        with serving(shop, TEACHER_API_KEY="key") as url:
            assert metric(url, 'watch_alarm{watch="teacher"}') == 1


def write_shadow(folder: Path) -> None:
    """A linear student with its calibration beside, which has learned the truth."""
    fitted = fitted_baseline(list(TRUTH.items()), 0)
    assert fitted
    write_linear(fitted, LABELS, folder)
    write_json(folder.with_name("linear_calibration.json"), student_calibration(folder))
    held_out = {"by": "hand", "label": LABELS[0], "probabilities": {LABELS[0]: 0.99}}
    write_jsonl(folder.with_name("linear_held_out.jsonl"), [{"id": str(number), **held_out} for number in range(9)])


def test_a_shadow_predicts_what_is_served_and_nobody_gets_its_answers(tmp_path):
    shop, port = make_traffic_shop(tmp_path / "shop", 0.9, when_unsure="teacher", keep="all", shadow="next/linear")
    (shop.folder / "next").mkdir()
    write_shadow(shop.folder / "next/linear")
    held_out = {"by": "hand", "label": LABELS[0], "probabilities": {LABELS[1]: 0.99}}
    write_jsonl(
        shop.folder / paths.HELD_OUT,
        [*read_jsonl(shop.folder / paths.HELD_OUT), *({"id": str(number), **held_out} for number in range(9))],
    )
    student = read_linear(shop.folder / "next/linear")
    assert student
    texts = list(TRUTH)[:40]
    with ended(start_engine(shop)), teaching(shop, port), serving(shop, TEACHER_API_KEY="key") as url:
        for text in texts:
            assert classified(url, text)["answered_by"] == "teacher"
            until(lambda: metric(url, "shadowed_total") == texts.index(text) + 1)  # noqa: B023
        assert metric(url, 'shadowed_total{outcome="failed"}') == 0
    with TrafficStore(shop.folder / paths.TRAFFIC, 1, 10**6) as store:
        rows = store.shadowed()
        assert [row.shadow.label for row in rows] == student.predict(texts)
        assert not any(row.student.answers for row in rows), "the student's own prediction, not the teacher's answer"
        assert [row.teacher_label for row in rows] == [TRUTH[text] for text in texts]
        found = run(shop.folder, sys.executable, "-m", "stages.parts.traffic", "compare", PYTHONPATH=str(ROOT)).stdout
        assert "answered by the student 0.0% of 40" in found and "gold: right 0.0% of 9 (student), 100.0% of 9" in found
        store.purge()
        assert store.shadowed() == [], "what shadows said of a row goes with it"


def test_a_shadow_that_fails_touches_no_answer(tmp_path):
    class Broken:
        model = "broken"

        async def predict(self, query: str) -> CalibratedPrediction:
            raise MemoryError

    async def answers() -> list[CalibratedPrediction]:
        with TrafficStore(tmp_path / "served.sqlite", 1, 100) as store:
            settings = load_params(ROOT / "params.yaml").serve.model_copy(update={"keep": "all"})
            metrics = TrafficMetrics(CollectorRegistry())
            served = Traffic(
                settings, store, None, AnswerCache("", 0), Standards(""), metrics, cast(QueryClassifier, Broken())
            )
            found = [await served.after(str(number), PREDICTION) for number in range(20)]
            await asyncio.gather(*served.shadowing)
            assert store.shadowed() == [] and len(store) == 20
            assert metrics.shadowed.labels("failed")._value.get() == SHADOWS_AT_ONCE
            assert metrics.shadowed.labels("left_out")._value.get() == 20 - SHADOWS_AT_ONCE
            return found

    assert asyncio.run(answers()) == [PREDICTION] * 20


def test_a_text_that_no_label_fits_is_kept_and_not_sent_to_the_teacher(tmp_path):
    """The teacher would name one of the labels, too."""
    outside = replace(PREDICTION, abstained="out_of_scope")

    async def answer() -> CalibratedPrediction:
        with TrafficStore(tmp_path / "served.sqlite", 1, 100) as store:
            changes = {"when_unsure": "teacher", "keep": "doubtful"}
            settings = load_params(ROOT / "params.yaml").serve.model_copy(update=changes)
            metrics = TrafficMetrics(CollectorRegistry())
            served = Traffic(settings, store, None, AnswerCache("", 0), Standards("student"), metrics)
            found = await served.after("a poem, please", outside)
            assert [row.abstained for row in store.rows()] == ["out_of_scope"]
            return found

    assert asyncio.run(answer()) == outside


def test_with_all_of_it_off_there_is_no_store_and_no_teacher(tmp_path):
    shop = make_shop(tmp_path / "shop", threshold=0.9)  # no data at all, and no key for a teacher
    with ended(start_engine(shop)), serving(shop) as url:
        answer = classified(url, "query 1")
        assert answer["abstained"] and answer["answered_by"] == "student" and answer["price_usd"] is None
    assert not (shop.folder / "data").exists()
