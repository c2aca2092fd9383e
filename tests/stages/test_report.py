"""The report's page, made by the stages themselves, in a real browser at a phone's and a desktop's width."""

import json
import re
import shutil
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import yaml
from playwright.sync_api import Page

from stages import report
from stages.parts.numbers.advice import advice
from stages.parts.numbers.arms import arm_rows, best_linear
from stages.parts.numbers.by_label import confusion_shares
from stages.parts.numbers.metrics import Metrics
from stages.parts.numbers.render import dollars
from stages.parts.numbers.statistics import difference_interval, mcnemar
from stages.parts.run import paths
from stages.parts.run.files import read_json, write_json
from tests.browser import browser_page
from tests.stages.finished_run import finish_run


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        return finish_run(folder, patch)


@pytest.fixture
def finished(original, tmp_path, monkeypatch) -> Path:
    """A finished run's folder of the test's own, and the place it works in."""
    folder = shutil.copytree(original, tmp_path / "run")
    monkeypatch.chdir(folder)
    return folder


def first_label(page: Page) -> str:
    return page.locator("#labels tbody tr:visible summary").first.inner_text()


@pytest.mark.slow
def test_the_page_tells_the_run_and_its_controls_work(finished):
    page_file = finished / "reports/index.html"
    text = page_file.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!#)[^"']+""", text), "the page is not self-contained"
    metrics = read_json(paths.METRICS)
    with browser_page("file:", viewport={"width": 390, "height": 844}, color_scheme="dark") as page:
        for width, scheme in product((390, 1280), ("dark", "light")):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            page.goto(page_file.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == width, (
                "the page itself must not scroll sideways"
            )
            assert page.locator(".do").inner_text() == "Serve the linear model: python -m serve --model linear"
            assert page.locator("#contenders tbody tr").count() == len(metrics["contenders"])

            served = page.locator("#arms tr.served")
            assert f"{100 * metrics['served']['accuracy']:.1f}" in served.inner_text() and served.count() == 1
            assert page.locator("#arms tbody tr").count() == len(metrics["interval"])
            assert "p < 0.001" in page.locator("#arms tr", has_text="most frequent label").inner_text()
            assert page.locator("figure svg").count() == 7
            ink, behind = page.evaluate(
                "['body', '.card'].map(s => getComputedStyle(document.querySelector(s))).map((c, i) => i ? "
                "c.backgroundColor : c.color)"
            )
            assert (max(map(int, re.findall(r"\d+", behind))) < 60) == (scheme == "dark") and ink != behind
            assert page.evaluate("getComputedStyle(document.querySelector('#coverage text')).fill") == ink

            recall = pd.read_csv(paths.BY_LABEL).set_index("label").recall
            for label in recall.index:
                diagonal = page.locator(f"#confusion td[title='{label} predicted as {label}']")
                assert diagonal.inner_text() == f"{100 * recall[label]:.0f}" and diagonal.is_visible()
            by_f1 = pd.read_csv(paths.BY_LABEL).sort_values("f1").label
            page.get_by_role("button", name="F1").click()
            assert first_label(page) == by_f1.iloc[0]
            page.get_by_role("button", name="F1").click()
            assert first_label(page) == by_f1.iloc[-1] and page.locator(
                "th[aria-sort=descending]"
            ).inner_text().startswith("F1")
            page.get_by_label("Search labels and queries").fill(page.locator("#labels li").first.text_content().upper())
            assert (
                page.locator("#labels tbody tr:visible").count() == 1
                and "1 of 4 labels" in page.locator("#shown").inner_text()
            )
            page.locator("#labels summary:visible").click()
            page.locator("#labels details[open] li").first.wait_for()


@pytest.mark.slow
def test_of_77_labels_the_confusion_keeps_its_names_in_view(finished, monkeypatch):
    """A phone shows a corner of them at a time."""
    names = [f"label_of_a_rather_long_name_{number:02}" for number in range(77)]
    shares = confusion_shares(names, [*names[1:], names[0]], names)
    monkeypatch.setattr(report, "confusion_shares", lambda *_: shares)
    report.main()
    with browser_page("file:") as page:
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            page.goto((finished / "reports/index.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == width
            frame, cell = page.locator(".matrix"), page.get_by_title(f"{names[69]} predicted as {names[70]}")
            cell.scroll_into_view_if_needed()
            around, shown = frame.bounding_box(), cell.bounding_box()
            of_row = page.locator("#confusion tbody th", has_text=re.compile("69$")).bounding_box()
            of_column = page.locator("#confusion thead th", has_text=names[70]).bounding_box()
            assert around["x"] <= of_row["x"] < shown["x"] < around["x"] + around["width"] and of_row["y"] == shown["y"]
            assert (
                around["y"] <= of_column["y"] < shown["y"] < around["y"] + around["height"]
                and of_column["x"] == shown["x"]
            )


def test_a_query_is_text_on_the_page_whatever_it_holds(finished):
    rows = [json.loads(line) for line in paths.TEST.read_text().splitlines()]
    evil = "<img src=x onerror=alert(1)></script>"
    paths.TEST.write_text("".join(json.dumps({**row, "text": evil}) + "\n" for row in rows))
    report.main()
    text = (paths.REPORTS / "index.html").read_text()
    assert "<img" not in text and "&lt;img src=x" in text and text.count("</script>") == 1


@pytest.mark.parametrize("names", [["1", "2", "3", "4"], ["true", "false", "null", "n/a"]])
def test_labels_that_look_like_numbers_or_gaps_are_names(finished, names):
    before, others = (
        pd.read_csv(paths.BY_LABEL).drop(columns="label"),
        dict(zip(read_json(paths.LABELS), names, strict=True)),
    )
    write_json(paths.LABELS, names)
    pd.read_csv(paths.PREDICTIONS, dtype=str).replace(others).to_csv(paths.PREDICTIONS, index=False)
    report.main()
    after = pd.read_csv(paths.BY_LABEL, dtype={"label": str}, keep_default_na=False)
    assert list(after.label) == names and after.drop(columns="label").equals(before)


def test_what_was_not_measured_is_left_out(finished):
    """A run without the pool's true labels, and reports of a teacher that knows its bill."""
    metrics = read_json(paths.METRICS)
    del metrics["teacher"]
    for block in ("interval", "arms", "served_less", "test"):
        del metrics[block]["linear_true"]
    write_json(paths.METRICS, metrics)
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["profiles"]["embedded"]["teacher"] = params["profiles"]["api"]["teacher"]
    Path("params.yaml").write_text(yaml.safe_dump(params))
    confused = [{"actual": "lost_card", "predicted": "card_arrival", "count": 3, "rows": 4}]
    known = {"gold_accuracy": 0.775, "confused": confused, "repeated": {"rows": 50, "two_labels": 3}}
    known |= {"cost": 1.5, "answers": 200}
    write_json(paths.TEACHER_REPORT, {**read_json(paths.TEACHER_REPORT), **known})
    report.main()
    text = (paths.REPORTS / "index.html").read_text()
    assert "all true labels" not in text and "labels are right" not in text
    assert text.count("$7,500.00") == 2, "among the contenders and among all arms"
    assert "of 50 pool rows that the teacher labelled twice, 3 (6.0\u00a0%) got two labels." in text
    assert "right on 77.5\u00a0%." in text and "<b>lost_card</b> with <b>card_arrival</b> (3 of 4)" in text


def test_an_experiment_is_called_one(finished):
    assert "labelled by a model, not by people" in (paths.REPORTS / "data_card.md").read_text()
    write_json(paths.SFT_REPORT, {**read_json(paths.SFT_REPORT), "labels": "true"})
    metrics = {**read_json(paths.METRICS), "labels": "true"}
    write_json(paths.METRICS, metrics)
    report.main()
    page, model, data = ((paths.REPORTS / name).read_text() for name in ("index.html", "model_card.md", "data_card.md"))
    assert all("EXPERIMENT" in text for text in (page, model, data))
    assert "not by people" not in data and data.count("people (the sealed labels)") == 2


@pytest.mark.parametrize(
    ("labels", "best"), [("teacher", "linear_teacher"), ("checked", "linear_cleaned"), ("true", "linear_true")]
)
def test_the_student_has_to_beat_what_learned_the_same_labels(labels, best):
    accuracies = {"linear_gold": 0.9, "linear_cleaned": 0.6, "linear_teacher": 0.7, "linear_true": 0.8}
    assert (
        best_linear([{"arm": arm, "accuracy": accuracy} for arm, accuracy in accuracies.items()], labels)["arm"] == best
    )


def test_a_threshold_that_no_test_row_reaches_is_not_called_none(finished):
    metrics, pair = read_json(paths.METRICS), read_json(paths.SIDECAR)
    metrics["served"] |= {"threshold": 0.998, "answered": 0.0, "precision": None}
    write_json(paths.METRICS, metrics)
    write_json(paths.SIDECAR, {**pair, "labels": [*pair["labels"], "none_of_these"]})
    assert "The model has no label for them" in paths.MODEL_CARD.read_text()
    report.main()
    page, card = (path.read_text() for path in (paths.REPORTS / "index.html", paths.MODEL_CARD))
    for text in (page, card):
        assert "No threshold is used" not in text and f"none of the {metrics['test']['n']} test rows reaches it" in text
    assert "The model has no label for them" not in card and "`none_of_these` is meant for them" in card


@pytest.mark.parametrize(
    ("low", "says"),
    [(0.01, "is better: +5.0 points (95 % interval +1.0 to +9.0)"), (-0.02, "is not shown to be better")],
)
def test_the_first_lines_name_the_choice_its_command_and_the_best(finished, low, says):
    metrics = read_json(paths.METRICS)
    chosen, best = (metrics["contenders"][name] for name in ("linear", "teacher"))
    best["less"], chosen["less"] = None, {"low": low, "high": 0.09, "p": 0.5}
    chosen["accuracy"]["accuracy"], best["accuracy"]["accuracy"] = 0.75, 0.8
    metrics["contenders"]["decoder"]["less"] = chosen["less"]
    pays = report.read_run().break_even
    found = advice(Metrics.model_validate(metrics), pays)
    assert found.verdict == "Serve the linear model:" and found.command == "python -m serve --model linear"
    assert f"The best on test, the teacher, {says}" in found.reasons[1] and "the cheapest" in found.reasons[2]
    assert "nothing to earn back" in found.reasons[3]

    of_best = metrics | {"serve": "teacher"}
    assert advice(Metrics.model_validate(of_best), pays).reasons[1] == "No contender is right more often."
    chosen["precision"] = None
    assert "abstain on all" in advice(Metrics.model_validate(metrics), pays).reasons[0]


def test_every_contender_is_on_one_scale(finished):
    run = report.read_run()
    metrics, found = run.metrics, run.metrics.contenders
    assert list(found) == ["linear", "decoder", "teacher"] and sum(each.less is None for each in found.values()) == 1
    linear, decoder = found["linear"], found["decoder"]
    assert linear.accuracy.accuracy == metrics.test.linear_cleaned and linear.memory_mb and linear.start_s
    assert linear.rows_per_second and run.prices["linear"] == pytest.approx(1e6 / linear.rows_per_second * 0.10 / 3600)
    assert decoder.accuracy.accuracy == metrics.served.accuracy and decoder.precision == metrics.served.precision
    assert found["teacher"].answered is None and run.prices["teacher"] == 0
    rows = pd.read_csv(paths.PREDICTIONS)
    assert linear.answered == pytest.approx((rows.linear_confidence >= 0.7).mean())
    assert list(pd.read_csv(paths.CONFUSION).predicted) == list(rows.linear_cleaned)
    page = (paths.REPORTS / "index.html").read_text()
    assert page.count("(serve this)") == 1 and "python -m serve --model linear</code>" in page
    assert str(advice(metrics, run.break_even)) in paths.MODEL_CARD.read_text()


def test_students_and_linear_models_cost_an_hour_of_their_own_machines(finished):
    """Eight H100s cost 250 times what two cores do: one price for both would call a GPU's student cheap."""
    metrics = Metrics.model_validate(read_json(finished / "reports/metrics.json"))
    on_cpu, on_gpus = (arm_rows(metrics, 0.1, price) for price in (0.1, 25.0))
    times = {row["arm"]: dear["cost"] / row["cost"] for row, dear in zip(on_cpu, on_gpus, strict=True) if row["cost"]}
    assert {arm for arm, factor in times.items() if factor == pytest.approx(250)} == {
        arm for arm in times if arm.startswith(("base_", "tuned_"))
    }
    assert times["linear_teacher"] == 1


def test_small_amounts_keep_two_digits_that_count():
    assert [dollars(amount) for amount in (12345.678, 12.345, 0.1, 0.0123, 0.0000281)] == [
        "$12,345.68",
        "$12.35",
        "$0.10",
        "$0.012",
        "$0.000028",
    ]


def test_paired_tests_know_equal_from_different():
    first = [True] * 80 + [False] * 20
    assert mcnemar(first, first) == 1 and difference_interval(first, first) == pytest.approx((-0.037, 0.037), abs=1e-3)
    one_more = [*first[:80], True, *first[81:]]
    assert mcnemar(first, one_more) == pytest.approx(0.317, abs=1e-3)  # one row either way proves nothing
    ten_more = [True] * 90 + [False] * 10
    assert mcnemar(first, ten_more) == pytest.approx(0.00157, rel=0.01)
    low, high = difference_interval(ten_more, first)
    assert 0 < low < 0.1 < high
