"""The README's numbers are those of the files in reports/."""

import shutil

import pytest

from stages.parts.numbers.readme import CORPORA, END, PROMISE, START, write_results
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, write_json
from tests.conftest import ROOT

SEEDS = ROOT / paths.SEEDS


def test_the_readme_is_what_the_command_writes(tmp_path):
    copy = shutil.copy(ROOT / "README.md", tmp_path / "README.md")
    write_results(copy, SEEDS, ROOT / PROMISE)
    assert copy.read_text() == (ROOT / "README.md").read_text(), "run `make readme`"


def test_a_changed_report_changes_the_block_and_nothing_around_it(tmp_path):
    for name in CORPORA.values():
        found = read_json(SEEDS / name)
        changed = {
            "served": {"mean": 0.1234, "deviation": 0.0567},
            "served_less_linear": {"mean": 0.0142, "low": -0.0038, "high": 0.025},
        }
        write_json(tmp_path / name, found | changed)
    readme = tmp_path / "README.md"
    readme.write_text(f"before 12.3\n{START}\n99.9 %\n{END}\nafter\n")
    write_results(readme, tmp_path, tmp_path / "promise.json")
    text = readme.read_text()
    assert text.startswith(f"before 12.3\n{START}\n") and text.endswith(f"\n{END}\nafter\n") and "99.9" not in text
    assert "| **tuned student** | **12.3 %** ± 5.7 | **12.3 %** ± 5.7 |" in text
    assert text.count("+1.4 (\N{MINUS SIGN}0.4 to +2.5)") == 2


def test_the_promise_is_told_as_it_was_measured(tmp_path):
    rule = {"coverage": 0.683, "precision": 0.9654, "broken": 7, "draws": 40}
    run = {"corpus": "banking77", "gold_rows": 100, "swapped": False, "rules": {"new": rule}}
    write_json(tmp_path / "promise.json", {"wanted": 0.9, "runs": [run, {**run, "swapped": True}]})
    readme = tmp_path / "README.md"
    readme.write_text(f"{START}\n{END}\n")
    write_results(readme, SEEDS, tmp_path / "promise.json")
    text = readme.read_text()
    assert text.count("7 of 40 draws fall short") == 1 and "answers 68 % of the test queries, 96.5 % of" in text


@pytest.mark.parametrize("lost", [START, END])
def test_a_readme_without_a_marker_is_left_alone(tmp_path, lost):
    readme = tmp_path / "README.md"
    readme.write_text(f"{START}\n{END}\n".replace(lost, ""))
    before = readme.read_text()
    with pytest.raises(UserError, match="lacks the line"):
        write_results(readme, SEEDS)
    assert readme.read_text() == before
