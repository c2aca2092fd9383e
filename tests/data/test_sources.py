import http.server
import sys
import threading
from functools import partial

import datasets
import pandas as pd
import pytest

from stages.filter import most_frequent, rows_of, treat_other_labels
from stages.parts.data import benchmarks
from stages.parts.data.folder import read_labels
from stages.parts.data.left_out import leave_out
from stages.parts.data.tables import read_table
from stages.parts.run.errors import UserError
from stages.parts.run.params import HubData
from stages.parts.task.labels import clean_label
from tests.conftest import ROOT, run

REFERENCE_ORDER = """
card_payment_fee_charged direct_debit_payment_not_recognised balance_not_updated_after_cheque_or_cash_deposit
wrong_amount_of_cash_received cash_withdrawal_charge transaction_charged_twice declined_cash_withdrawal
transfer_fee_charged balance_not_updated_after_bank_transfer transfer_not_received_by_recipient request_refund
card_payment_not_recognised card_payment_wrong_exchange_rate extra_charge_on_statement
wrong_exchange_rate_for_cash_withdrawal refund_not_showing_up reverted_card_payment
cash_withdrawal_not_recognised activate_my_card pending_card_payment cancel_transfer beneficiary_not_allowed
card_arrival declined_card_payment pending_top_up
""".split()


def test_labels_are_cleaned_counted_and_ordered():
    names = pd.Series(
        [clean_label(name) for name in ["Refund_not_showing_up", "reverted card payment?", "b", "b", "a", "a"]]
    )
    assert most_frequent(names, 4) == ["a", "b", "refund_not_showing_up", "reverted_card_payment"]
    with pytest.raises(UserError, match="4 labels, fewer than top_n=5"):
        most_frequent(names, 5)


def benchmark(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> pd.DataFrame:
    parts = {"train": train, "test": test}
    return pd.DataFrame(
        [(row, text, label, part) for part, rows in parts.items() for row, (text, label) in enumerate(rows, start=1)],
        columns=["row", "text", "label", "part"],
    )


def test_what_the_filter_drops_anyway_stops_nothing():
    many = [(f"text {number}", "a") for number in range(100)]
    dropped = [("x", "b"), ("x", "c"), ("text 1", "b")]
    kept, left_out = leave_out(
        rows_of(benchmark([*many, *dropped], [("y", "a"), ("x", "c"), ("z", "only here")]), ["a"])
    )
    assert list(kept.text) == [text for text, _ in many] + ["y"] and not any(left_out.values())


def test_the_rest_is_dropped_but_for_test_rows_or_stays_under_a_label_of_its_own():
    rows = benchmark([("x", "a"), ("y", "b"), ("z", "c")], [("u", "a"), ("v", "c"), ("w", "only here"), ("x", "c")])
    kept, labels = treat_other_labels(rows, ["a", "b"], "drop")
    kept, left_out = leave_out(rows_of(kept, labels))
    assert labels == ["a", "b"] and not left_out["two_labels"]
    assert list(zip(kept.text, kept.part, strict=True)) == [
        *[("x", "train"), ("y", "train")],
        *[("u", "test"), ("v", "out_of_scope"), ("w", "out_of_scope")],  # the other x is in train
    ]
    assert kept.label[kept.part == "out_of_scope"].isna().all()
    kept, labels = treat_other_labels(rows[:-1], ["a", "b"], "none_of_these")
    kept, _ = leave_out(rows_of(kept, labels))
    assert labels == ["a", "b", "none_of_these"] and list(kept.label) == [
        "a",
        "b",
        "none_of_these",
        "a",
        "none_of_these",
        "none_of_these",
    ]
    assert treat_other_labels(rows[:2], ["a", "b"], "none_of_these")[1] == ["a", "b"]  # nothing is left over


def test_a_few_contradictions_of_a_benchmark_are_left_out_and_many_stop_the_run():
    many = [(f"text {number}", "a") for number in range(300)]
    kept, left_out = leave_out(
        rows_of(benchmark([*many, ("text 1", "b"), ("y", "b")], [("y", "b"), ("z", "a")]), ["a", "b"])
    )
    assert left_out == {"two_labels": 2, "in_test": 1, "in_gold_or_test": 0, "repeated": 0} and len(kept) == 299 + 2
    with pytest.raises(UserError, match=r"the test file, row 1: has this text with another label"):
        leave_out(rows_of(benchmark(many, [("text 1", "b")]), ["a", "b"]))


def test_banking77_filters_to_the_reference_rows_and_order(banking77):
    tables = {part: read_table(banking77 / f"{part}.csv", "text", "category") for part in ("train", "test")}
    labels = most_frequent(tables["train"].label, 25)
    assert labels == REFERENCE_ORDER
    rows = pd.concat([table.assign(part=part) for part, table in tables.items()])
    kept, left_out = leave_out(rows_of(rows, labels))
    assert list(kept.part.value_counts()) == [4171, 1000] and not any(left_out.values())


@pytest.fixture
def web(tmp_path):
    """A web server over a folder."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_download_is_whole_and_the_pinned_file_or_not_there(web, tmp_path):
    folder, url = web
    (folder / "rows.csv").write_text("text,category\nhi,a\n")
    wanted = tmp_path / "cache" / "rows.csv"
    with pytest.raises(UserError, match="not the file that is pinned"):
        benchmarks.download(f"{url}/rows.csv", wanted, "0" * 64)
    with pytest.raises(UserError, match="could not be fetched"):
        benchmarks.download(f"{url}/missing.csv", wanted, "0" * 64)
    with pytest.raises(UserError, match="could not be fetched"):
        benchmarks.download("http://127.0.0.1:9/rows.csv", wanted, "0" * 64)
    assert not list(wanted.parent.iterdir())
    benchmarks.download(f"{url}/rows.csv", wanted, benchmarks.file_sha256(folder / "rows.csv"))
    assert wanted.read_text() == "text,category\nhi,a\n"


def test_the_hub_takes_any_data_set(tmp_path, monkeypatch):
    """Its class numbers become names; splits, slices and configurations are `datasets`' own."""
    names = datasets.ClassLabel(names=["Card arrival?", "lost_card"])
    for part, intents in (("train", [0, 1, 0, 1]), ("test", [0, 1, 0, 1]), ("validation", [0, -1, None, 1])):
        features = datasets.Features(
            {"query": datasets.Value("string"), "intent": names, "other": datasets.Value("int64")}
        )
        table = datasets.Dataset.from_dict(
            {"query": [f"{part} {n}" for n in range(4)], "intent": intents, "other": [1] * 4}, features
        )
        table.to_parquet(tmp_path / "set" / f"{part}-00000-of-00001.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    place = {"repository": str(tmp_path / "set"), "revision": "0" * 40, "configuration": None}
    columns = {"text_column": "query", "label_column": "intent"}
    tables = benchmarks.read_hub(HubData(**place, **columns, train="train[:50%]", test="test"))
    assert (
        list(tables["train"].text) == ["train 0", "train 1"]
        and list(tables["test"].label) == ["card_arrival", "lost_card"] * 2
    )
    for change, says in (
        ({"text_column": "text"}, "has no column 'text' but query, intent, other: set raw.hub.text_column"),
        ({"label_column": "other"}, "rows 1, 2, 3, 4: other is a int, not a string"),
        ({"test": "validation"}, "rows 2, 3: intent is missing"),
        ({"test": "nothing"}, "split nothing at 0000.* could not be loaded"),
        ({"repository": str(tmp_path / "nowhere")}, "could not be loaded from the hub"),
    ):
        with pytest.raises(UserError, match=says):
            benchmarks.read_hub(HubData(**{**place, **columns, "train": "train", "test": "test", **change}))


PLACE = {"configuration": None, "train": "train", "test": "test", "text_column": "text", "label_column": "label"}


def test_a_data_set_that_is_a_script_is_one_clear_line(tmp_path, monkeypatch):
    script = tmp_path / "script"
    script.mkdir()
    (script / "script.py").write_text("import datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="RuntimeError: Dataset scripts are no longer supported") as caught:
        benchmarks.read_hub(HubData(repository=str(script), revision="0" * 40, **PLACE))
    assert "\n" not in str(caught.value)


@pytest.mark.slow  # the hub's client tries for 23 seconds, and says so
def test_a_hub_that_fails_is_one_clear_line(tmp_path):
    # Nothing listens at this address, which the hub's client reaches in its own way.
    code = (
        "from stages.parts.data.benchmarks import read_hub; from stages.parts.run.params import HubData\n"
        "from stages.parts.run.commands import command\n"
        f"with command('raw'): read_hub(HubData(repository='mteb/banking77', revision='{'0' * 40}', **{PLACE}))"
    )
    done = run(
        tmp_path,
        *(sys.executable, "-c", code),
        check=False,
        **{
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(tmp_path),
        },
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "could not be loaded from the hub (" in done.stderr.splitlines()[-1]


def test_the_sample_corpus_is_what_it_says():
    """25 intents, at least 60 training and 15 test queries each, all different, no near-duplicate across the two
    parts.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    train, test = (pd.read_csv(ROOT / f"data/sample/{part}.csv") for part in ("train", "test"))
    assert sorted(train.category.unique()) == sorted(test.category.unique()) == sorted(REFERENCE_ORDER)
    assert train.category.value_counts().min() >= 60 and test.category.value_counts().min() >= 15
    assert sorted(read_labels(ROOT / "data/sample/labels.csv")) == sorted(REFERENCE_ORDER)
    spelled = [" ".join(text.lower().split()) for text in [*train.text, *test.text]]
    assert len(set(spelled)) == len(spelled)
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(4, 4), use_idf=False, binary=True).fit_transform(spelled)
    closest = (grams[len(train) :] @ grams[: len(train)].T).max(axis=1).toarray().ravel()
    assert closest.max() < 0.8, list(test.text[closest >= 0.8])


def test_no_sample_query_is_from_banking77(banking77):
    sample = {
        " ".join(text.lower().split())
        for part in ("train", "test")
        for text in pd.read_csv(ROOT / f"data/sample/{part}.csv").text
    }
    real = {
        " ".join(text.lower().split())
        for part in ("train", "test")
        for text in pd.read_csv(banking77 / f"{part}.csv").text
    }
    assert not sample & real
