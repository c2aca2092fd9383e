"""Drift and the page of traffic, through the real command."""

import random
from pathlib import Path

import pytest
import requests

from stages.parts.numbers.choice import ServedChoice
from stages.parts.run import paths
from stages.parts.run.files import read_jsonl, write_json, write_jsonl
from stages.parts.students.local import HELD_OUT, beside, load_local
from tests.browser import browser_page
from tests.serve.shop import Shop, make_shop, serving, until
from tests.serve.test_local import write_encoder
from tests.serve.test_promotion import promotion
from tests.serve.test_traffic import metric

pytestmark = pytest.mark.slow
WORDS = "card top-up payment transfer cash refund fee rate account shop where when why lost new old my the".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ALARM, OBSERVATIONS = (f'watch_{name}{{watch="drift"}}' for name in ("alarm", "observations"))


def usual(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=8))


def strange(draw: random.Random) -> str:
    return "".join(draw.choices(LETTERS, k=40))


def write_familiar(scratch: Path, student: Path, seed: int) -> None:
    """An encoder student whose held-out rows are like `usual` queries, with what it says of them."""
    write_encoder(scratch, student, seed)
    draw = random.Random(seed)
    texts = [usual(draw) for _ in range(400)]
    near = load_local(student).local.read(texts).familiarity
    assert near is not None
    row = read_jsonl(beside(student, HELD_OUT))[0]
    held_out = [{**row, "id": text, "familiarity": each} for text, each in zip(texts, near.tolist(), strict=True)]
    write_jsonl(beside(student, HELD_OUT), held_out)


def drifting_shop(folder: Path) -> Shop:
    """A service that notices drift."""
    shop = make_shop(folder / "run", model="auto", drift=True)
    write_familiar(folder, shop.folder / paths.ENCODER, 0)
    write_json(shop.folder / paths.SERVED, ServedChoice(serve="encoder", why="", profile="embedded").model_dump())
    return shop


def send(url: str, queries: list[str]) -> None:
    for start in range(0, len(queries), 200):
        body = {"queries": queries[start : start + 200]}
        requests.post(f"{url}/classify_intent/batch", json=body, timeout=30, headers=KEY).raise_for_status()


KEY = {"Authorization": f"Bearer {'k' * 20}"}


def test_queries_of_another_kind_raise_an_alarm_and_the_usual_ones_do_not(tmp_path):
    shop, draw = drifting_shop(tmp_path), random.Random(1)
    with serving(shop) as url:
        send(url, [usual(draw) for _ in range(3_000)])
        send(url, ["the same again"] * 1_000)
        assert metric(url, ALARM) == 0 and 2_900 < metric(url, OBSERVATIONS) <= 3_001
        assert abs(metric(url, "query_distance") - metric(url, "query_distance_expected")) < 0.02
        near = metric(url, "query_distance")
    with serving(shop) as url:
        assert 2_900 < metric(url, OBSERVATIONS) <= 3_001, "after a restart"
        send(url, [strange(draw) for _ in range(400)])
        assert metric(url, ALARM) == 1 and metric(url, "query_distance") > near
        assert "so near to the learned texts" not in (shop.folder / "log").read_text()
        assert "are as near to the learned texts as" in (shop.folder / "log").read_text()
    with serving(shop) as url, browser_page(url) as page:
        page.goto(f"{url}/traffic")
        row = page.get_by_role("row", name="queries near the learned texts: alarm")
        assert "%" in row.inner_text() and "of 3,400" not in row.inner_text()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_page_of_traffic_shows_nothing_without_the_key(tmp_path):
    shop = drifting_shop(tmp_path)
    with serving(shop, SERVE_API_KEYS="k" * 20) as url:
        send(url, ["hello", "where is my card"])
        text = requests.get(f"{url}/traffic", timeout=5).text
        assert "hello" not in text and requests.get(f"{url}/metrics", timeout=5).status_code == 401
        with browser_page(url) as page:
            page.goto(f"{url}/traffic")
            page.get_by_label("API key").fill("wrong")
            page.get_by_role("button", name="Show").click()
            assert "API key" in page.get_by_role("alert").inner_text()
            page.get_by_label("API key").fill("k" * 20)
            page.get_by_role("button", name="Show").click()
            page.get_by_role("row", name="queries 2").wait_for()


def test_a_student_without_familiarity_is_served_with_drift_off(tmp_path):
    shop = drifting_shop(tmp_path)
    file = beside(shop.folder / paths.ENCODER, HELD_OUT)
    write_jsonl(file, [row | {"familiarity": None} for row in read_jsonl(file)])
    with serving(shop) as url:
        send(url, ["hello"])
        assert "serve.drift is off" in (shop.folder / "log").read_text()
        assert OBSERVATIONS not in requests.get(f"{url}/metrics", timeout=5).text


def test_a_promoted_student_is_watched_by_itself_and_the_one_before_goes_on_where_it_was(tmp_path):
    shop, draw = drifting_shop(tmp_path), random.Random(2)
    write_familiar(tmp_path, shop.folder / "next/encoder", 1)
    with serving(shop) as url:
        send(url, [usual(draw) for _ in range(100)])
        assert metric(url, OBSERVATIONS) == 100
        assert promotion(shop, "promote", "next/encoder").returncode == 0
        until(lambda: metric(url, OBSERVATIONS) == 0)
        send(url, [usual(draw) for _ in range(30)])
        assert metric(url, OBSERVATIONS) == 30
        assert promotion(shop, "rollback").returncode == 0
        until(lambda: metric(url, OBSERVATIONS) == 100)
