"""What a file may hold, and what is refused: one line with file, row and remedy, all faults of a file at once."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from stages.parts.data.folder import read_labels
from stages.parts.data.tables import KnownLabels, name_fault, read_table
from stages.parts.run.errors import UserError
from stages.parts.task.labels import clean_label, match_label

BAD_CSV = [
    (b"", "holds no rows: it needs a header with text and category"),
    (b"text,category\n", "holds no rows"),
    (b"query,category\nhi,a\n", "has no column 'text' but query, category: set raw.text_column"),
    (b"text,label\nhi,a\n", "has no column 'category' but text, label: set raw.label_column"),
    (b"text,category,text\nhi,a,b\n", "has a column twice in its header"),
    (b"text,category,\nhi,a,\n", "has a column without a name in its header (text, category, ): name it or remove it"),
    (b"text;category\nhi;a\n", "has semicolons or tabs between its columns ('text;category'): save it with commas"),
    (b"text\tcategory\nhi\ta\n", "has semicolons or tabs between its columns"),
    (b"text,category\nfine,a\none\rtwo,a\n", "row 2: has a carriage return outside quotes: quote that text"),
    (b"text,category\rhi,a\r", "row 1: has a carriage return outside quotes"),
    (
        "text,category\n\u200b\u2060,a\n\x00,a\n[[ ## label ## ]]<|eot_id|>,a\ncard_arrival,a\n".encode(),
        "rows 1, 2, 3: text holds only characters that show nothing",
    ),
    (b"text,category\nhi,a\n   ,b\n", "row 2: text is empty: fill it in or drop the row"),
    (b"text,category\nhi,\n", "row 1: category is empty: fill it in or drop the row"),
    (b"text,category\nhi,?\n", "row 1: category is empty"),
    (b"text,category\nhi,Unknown\n", "row 1: category is 'unknown', which stands for answers without a label: call"),
    (b"text,category\nhi,<|eot_id|>\n", "row 1: category '<|eot_id|>' holds a marker of prompts"),
    (b"text,category\nhi,lost </think> card\n", "row 1: category 'lost </think> card' holds a marker"),
    (b'text,category\nhi,"a\nb"\n', "row 1: category 'a\\nb' holds a line break"),
    (b"text,category\nhi,c\n", "row 1: category 'c' is not in labels.csv: add it there or correct the row"),
    (
        b"text,category\nfine,a\nh\xe9,a\n\xff\n",
        "rows 3, 4: is not UTF-8 (lines counted from the top): save the file as UTF-8",
    ),
    ("text,category\nhi,a\n".encode("utf-16"), "is not UTF-8"),
    (b'text,category\nhi,a\n"open,a\n', "row 2: is not CSV (unexpected end of data): close every quote"),
    (b'text,category\n"a" quote,a\n', "row 1: is not CSV"),
    (b"text,category\na,b,c,d\na,b\ng\n", "rows 1, 3: is not CSV of 2 fields: quote texts that hold commas"),
    (
        b"text,category\n" + b"x" * 10_000_000 + b",a\n",
        "row 1: text is longer than 20,000 characters: shorten it or drop the row",
    ),
]
BAD_JSON = [
    ("{", "row 1: is not JSON"),
    ('["hi", "a"]', "row 1: is a JSON list, not an object: write one object a line"),
    ('{"text": 7, "category": "a"}', "row 1: text is a int, not a string: write it as text or drop the row"),
    ('{"text": null, "category": "a"}', "row 1: text is missing"),
    (
        '{"text": "hi", "category": "a"}\n{"text": "ho"}',
        "row 2: category is missing: write a label's name or drop the row",
    ),
    ('{"text": "\\ud83d", "category": "a"}', "row 1: text holds half of a surrogate pair"),
    ('{"text": "hi", "category": "a", "note": "\\ud83d"}', "row 1: note holds half of a surrogate pair"),
    ('{"text": "hi", "category": "a", "\\ud83d": 1}', "row 1: a column's name holds half of a surrogate pair"),
    ('{"text": "hi", "text": "ho", "category": "a"}', "row 1: is not JSON (it has a key twice)"),
    ('{"text": "hi", "category": "a", "n": ' + "9" * 5000 + "}", "row 1: is not JSON (Exceeds the limit"),
    ('{"text": "hi", "category": "a", "n": ' + "[" * 100_000 + "}", "row 1: is not JSON (maximum recursion depth"),
]
FILES = [("rows.csv", content, says) for content, says in BAD_CSV] + [
    ("rows.jsonl", text.encode(), says) for text, says in BAD_JSON
]


@pytest.mark.parametrize(
    ("name", "content", "says"), [*FILES, ("rows.parquet", b"PAR1", "is not Parquet"), ("rows.xlsx", b"", "is none of")]
)
def test_a_bad_file_is_one_clear_line(tmp_path, name, content, says):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_table(file, "text", "category", KnownLabels(["a", "b"], "labels.csv"))
    assert says in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)


def far_dates(path):
    dates = pa.array([10**15], pa.timestamp("s"))
    pa.parquet.write_table(pa.table({"text": ["hi"], "category": ["a"], "when": dates}), path)


def the_same_column_twice(path):
    table = pa.table([["hi"], ["ho"], ["a"]], names=["text", "text", "category"])
    pa.parquet.write_table(table, path)


def cut_short(path):
    pa.parquet.write_table(pa.table({"text": ["hi"] * 1000, "category": ["a"] * 1000}), path)
    content = path.read_bytes()
    path.write_bytes(content[:40] + b"\0" * 200 + content[240:])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (far_dates, "holds a value that Python has no type for"),
        (the_same_column_twice, "has the column 'text' twice: rename one"),
        (cut_short, "is not Parquet"),
        (Path.mkdir, "is a folder: write its parts as one Parquet file"),
    ],
)
def test_a_parquet_file_that_will_not_do_is_one_clear_line(tmp_path, make, says):
    make(tmp_path / "rows.parquet")
    with pytest.raises(UserError) as caught:
        read_table(tmp_path / "rows.parquet", "text", "category")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_nested_values_come_through_as_json_and_a_suffix_in_capitals_is_read(tmp_path):
    line = {"text": "a\rb", "tags": ["é", 1], "id": 2**100}
    (tmp_path / "rows.JSONL").write_text(json.dumps(line))
    found = read_table(tmp_path / "rows.JSONL", "text")
    assert found.to_dict("records") == [{"row": 1, "text": "a\rb", "raw.tags": '["é", 1]', "raw.id": str(2**100)}]


def test_all_faults_of_a_file_come_at_once(tmp_path):
    file = tmp_path / "rows.csv"
    # two chunks
    lines = ["text,category", *["fine,a"] * 60_000, *[",a"] * 7, "fine,", "much,too,much", "fine,z", '"open,a']
    file.write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        read_table(file, "text", "category", KnownLabels(["a"], "labels.csv"))
    for part in (
        "rows 60001, 60002, 60003, 60004, 60005 and 2 more: text is empty",
        "row 60008: category is empty",
        "row 60009: is not CSV of 2 fields",
        "row 60010: category 'z' is not in labels.csv",
        "row 60011: is not CSV (unexpected end of data)",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_texts_and_other_columns_come_through_as_written(tmp_path, suffix):
    rows = pd.DataFrame(
        {
            "query": ['He said "no",\nthen left', "NA", "007", "\u2028 émoji 💳 \\", " blanks "],
            "intent": ["a", "None", "1.0", "Card arrival?", "b"],
            "text": ["7", "0x1", "2024-01-02", "null", "x"],
        }
    )
    file = tmp_path / f"rows.{suffix}"
    match suffix:
        case "csv":
            file.write_bytes(b"\xef\xbb\xbf" + rows.to_csv(index=False).encode())
        case "jsonl":
            file.write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.to_dict("records")), encoding="utf-8"
            )
        case "parquet":
            rows.to_parquet(file)
    found = read_table(file, "query", "intent")
    assert list(found.columns) == ["row", "text", "label", "raw.text"]
    assert list(found.text) == list(rows["query"]) and list(found["raw.text"]) == list(rows["text"])
    assert list(found.label) == ["a", "none", "1.0", "card_arrival", "b"] and list(found.row) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("label,description\na,b\n", "has no column 'name' but label, description: its header is name,description"),
        (
            "name,description\na,x\n,x\nA,x\nunknown,\n",
            "row 2: name is empty: fill it in or drop the row; row 3: 'a' is named twice: keep one",
        ),
        ("name\n", "names no label"),
        ("name\nUnknown.\n", "row 1: name is 'unknown', which stands for answers without a label"),
    ],
)
def test_bad_labels_are_one_clear_line(tmp_path, content, says):
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(UserError) as caught:
        read_labels(tmp_path / "labels.csv")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "name", ["Où est ma carte ?", "Card arrival?", "__a b__", "n/a", "C++", "50% off!", "other etc.", "(none)"]
)
def test_every_label_that_is_taken_can_be_named_by_an_answer(name):
    label = clean_label(name)
    assert not name_fault(name) and clean_label(label) == label
    assert match_label(f"**{name}**", [label]) == match_label(f'"{label}."', [label]) == label


def test_labels_keep_their_order_and_need_no_description(tmp_path):
    (tmp_path / "labels.csv").write_text('name,description\nCard arrival?,"Where\nit is"\na_b,\n')
    assert list(read_labels(tmp_path / "labels.csv").items()) == [("card_arrival", "Where it is"), ("a_b", "")]
    (tmp_path / "labels.csv").write_text("name\nx\n")
    assert read_labels(tmp_path / "labels.csv") == {"x": ""}
