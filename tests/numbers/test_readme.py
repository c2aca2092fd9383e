"""The README's numbers are those of the files in reports/."""

import shutil

import pytest

from stages.parts.numbers.readme import CORPORA, END, START, write_results
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, write_json
from tests.conftest import ROOT

SEEDS = ROOT / paths.SEEDS


def test_the_readme_is_what_the_command_writes(tmp_path):
    copy = shutil.copy(ROOT / "README.md", tmp_path / "README.md")
    write_results(copy, SEEDS)
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
    write_results(readme, tmp_path)
    text = readme.read_text()
    assert text.startswith(f"before 12.3\n{START}\n") and text.endswith(f"\n{END}\nafter\n") and "99.9" not in text
    assert "| **tuned student** | **12.3 %** ± 5.7 | **12.3 %** ± 5.7 |" in text
    assert text.count("+1.4 (\N{MINUS SIGN}0.4 to +2.5)") == 2


@pytest.mark.parametrize("lost", [START, END])
def test_a_readme_without_a_marker_is_left_alone(tmp_path, lost):
    readme = tmp_path / "README.md"
    readme.write_text(f"{START}\n{END}\n".replace(lost, ""))
    before = readme.read_text()
    with pytest.raises(UserError, match="lacks the line"):
        write_results(readme, SEEDS)
    assert readme.read_text() == before
