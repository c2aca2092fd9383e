"""CSV files to classify: what is read is what was written, or the file is refused in one line."""

import pytest

from serve.batch.csv_file import read_rows
from stages.parts.run.errors import UserError
from stages.parts.run.files import write_csv


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [["a\rb", "NA"], ["", ""], ['"x",\r\ny', "007"], ["\u2028", " blanks "]]
    write_csv(tmp_path / "rows.csv", ["text", "id"], rows)
    assert list(read_rows(tmp_path / "rows.csv", "text")) == [["text", "id"], *rows]
    (tmp_path / "blank.csv").write_text("text\nhi\n\nho\n")
    assert list(read_rows(tmp_path / "blank.csv", "text")) == [["text"], ["hi"], [""], ["ho"]], "a row for each answer"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"text,n,n\nhi,1,2\n", "has a column twice in its header (text, n, n): rename one"),
        (b"text,,\nhi,1,2\n", "has a column without a name"),
        (b"text;n\nhi;1\n", "has semicolons or tabs between its columns"),
        (b"text\none\rtwo\n", "a row has a carriage return outside quotes"),
        (b'text\n"open\nhi\n', "a row is not CSV (unexpected end of data)"),
        (b"text\n\xff\n", "is not a CSV file in UTF-8"),
        (b"", "it is empty"),
    ],
)
def test_a_file_that_would_lose_or_gain_rows_is_refused(tmp_path, content, says):
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(read_rows(tmp_path / "rows.csv", "text"))
    assert says in str(caught.value) and "\n" not in str(caught.value)
