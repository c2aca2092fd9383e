import http.server
import threading
from functools import partial

import pandas as pd
import pytest

from stages.filter import most_frequent, queries
from stages.parts.data import banking77 as pinned
from stages.parts.data import sources
from stages.parts.run.errors import UserError
from stages.parts.task.labels import clean_label
from tests.conftest import ROOT

REFERENCE_ORDER = """card_payment_fee_charged direct_debit_payment_not_recognised balance_not_updated_after_cheque_or_cash_deposit
wrong_amount_of_cash_received cash_withdrawal_charge transaction_charged_twice declined_cash_withdrawal transfer_fee_charged
balance_not_updated_after_bank_transfer transfer_not_received_by_recipient request_refund card_payment_not_recognised
card_payment_wrong_exchange_rate extra_charge_on_statement wrong_exchange_rate_for_cash_withdrawal refund_not_showing_up
reverted_card_payment cash_withdrawal_not_recognised activate_my_card pending_card_payment cancel_transfer beneficiary_not_allowed
card_arrival declined_card_payment pending_top_up""".split()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"text,category\n", "has a header but no rows"),
        (b"query,category\nhi,a\n", "has no column 'text' but query, category: set raw.text_column"),
        (b"text,label\nhi,a\n", "has no column 'category' but text, label: set raw.label_column"),
        (b"text,category\nhi,a\n   ,b\n", "row 2: text is empty"),
        (b"text,category\nhi,\n", "row 1: category is empty"),
        (b"text,category\nh\xe9,a\n", "is not UTF-8"),
        (b'text,category\n"open,a\n', "is not CSV"),
        (b"text,category\na,b,c,d\ne,f\ng,h,i,j,k\n", "is not CSV"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, content, says):
    file = tmp_path / "rows.csv"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        sources.read_csv(file, "text", "category")
    assert says in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_texts_come_through_as_written(tmp_path):
    rows = [('He said "no",\nthen left', "a"), ("NA", "None"), ("007", "1.0"), ("\u2028 émoji 💳 \\", "b")]
    sources.write_csv(tmp_path / "rows.csv", rows)
    assert sources.read_csv(tmp_path / "rows.csv", "text", "category") == rows
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "rows.csv").read_bytes())
    assert sources.read_csv(tmp_path / "bom.csv", "text", "category") == rows


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        ([("x", "a"), ("x", "b")], [("y", "a")], "one text has the labels a and b: 'x'"),
        ([("x", "a")], [("x", "a")], "1 test texts are also training rows"),
        ([("x", "a")], [("y", "a"), ("z", "c")], "labels without a training row: c"),
    ],
)
def test_rows_that_would_spoil_the_numbers_are_refused(train, test, says):
    with pytest.raises(UserError, match=says):
        sources.check(train, test)


def test_labels_are_cleaned_counted_and_ordered():
    names = [clean_label(name) for name in ["Refund_not_showing_up", "reverted card payment?", "b", "b", "a", "a"]]
    assert most_frequent(names, 4) == ["a", "b", "refund_not_showing_up", "reverted_card_payment"]
    with pytest.raises(UserError, match="4 labels, fewer than top_n=5"):
        most_frequent(names, 5)
    kept = queries([("x", "A"), ("x", "a"), ("y", "c")], ["a"])
    assert [(row["text"], row["label"]) for row in kept] == [("x", "a")]


def test_banking77_filters_to_the_reference_rows_and_order(banking77):
    rows = {part: sources.read_csv(banking77 / f"{part}.csv", "text", "category") for part in ("train", "test")}
    sources.check(rows["train"], rows["test"])
    assert {part: pinned.rows_sha256(part_rows) for part, part_rows in rows.items()} == pinned.BANKING77_ROWS_SHA256
    labels = most_frequent([clean_label(label) for _, label in rows["train"]], 25)
    assert labels == REFERENCE_ORDER
    assert (len(queries(rows["train"], labels)), len(queries(rows["test"], labels))) == (4171, 1000)


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
        pinned.download(f"{url}/rows.csv", wanted, "0" * 64)
    with pytest.raises(UserError, match="could not be fetched"):
        pinned.download(f"{url}/missing.csv", wanted, "0" * 64)
    with pytest.raises(UserError, match="could not be fetched"):
        pinned.download("http://127.0.0.1:9/rows.csv", wanted, "0" * 64)
    assert not list(wanted.parent.iterdir())
    pinned.download(f"{url}/rows.csv", wanted, pinned.file_sha256(folder / "rows.csv"))
    assert wanted.read_text() == "text,category\nhi,a\n"


def test_the_hub_loader_takes_datasets_own_form_and_checks_the_rows(tmp_path, monkeypatch):
    for part in ("train", "test"):
        pd.DataFrame({"text": [f"{part} one"], "label": [0], "label_text": ["a"]}).to_json(
            tmp_path / f"{part}.jsonl", orient="records", lines=True
        )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="rows are not Banking77's"):
        pinned.banking77_from_hub(str(tmp_path), None)
    pins = {part: pinned.rows_sha256([(f"{part} one", "a")]) for part in ("train", "test")}
    monkeypatch.setattr(pinned, "BANKING77_ROWS_SHA256", pins)
    assert pinned.banking77_from_hub(str(tmp_path), None) == {part: [(f"{part} one", "a")] for part in pins}


def test_the_sample_corpus_is_what_it_says():
    """25 intents, at least 60 training and 15 test queries each, all different, no near-duplicate across the two parts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    train, test = (pd.read_csv(ROOT / f"data/sample/{part}.csv") for part in ("train", "test"))
    assert sorted(train.category.unique()) == sorted(test.category.unique()) == sorted(REFERENCE_ORDER)
    assert train.category.value_counts().min() >= 60 and test.category.value_counts().min() >= 15
    spelled = [" ".join(text.lower().split()) for text in [*train.text, *test.text]]
    assert len(set(spelled)) == len(spelled)
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(4, 4), use_idf=False, binary=True).fit_transform(spelled)
    closest = (grams[len(train) :] @ grams[: len(train)].T).max(axis=1).toarray().ravel()
    assert closest.max() < 0.8, list(test.text[closest >= 0.8])


def test_no_sample_query_is_from_banking77(banking77):
    sample = {" ".join(text.lower().split()) for part in ("train", "test") for text in pd.read_csv(ROOT / f"data/sample/{part}.csv").text}
    real = {" ".join(text.lower().split()) for part in ("train", "test") for text in pd.read_csv(banking77 / f"{part}.csv").text}
    assert not sample & real
