"""The README's numbers are those of the files in reports/."""

import shutil

import pytest

from stages.parts.numbers.readme import (
    CORPORA,
    END,
    END_OF_MENU,
    MENU,
    PEER_NAMES,
    PEERS,
    PROMISE,
    START,
    write_results,
)
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, write_json
from tests.conftest import ROOT

REPORTS = ROOT / paths.REPORTS
SPREAD = {"mean": 0.1234, "deviation": 0.0567}


def written(tmp_path, files: dict[str, object]) -> str:
    """The README's text after the command, from metrics.json and other reports."""
    metrics = read_json(REPORTS / "metrics.json")
    for name, content in {"metrics.json": metrics, **files}.items():
        write_json(tmp_path / "reports" / name, content)
    readme = tmp_path / "README.md"
    readme.write_text(f"before 12.3\n{MENU}\n99.9 %\n{END_OF_MENU}\n{START}\n99.9 %\n{END}\nafter\n")
    write_results(readme, tmp_path / "reports")
    text = readme.read_text()
    assert text.startswith(f"before 12.3\n{MENU}\n") and text.endswith(f"\n{END}\nafter\n") and "99.9" not in text
    return text


def test_the_readme_is_what_the_command_writes(tmp_path):
    copy = shutil.copy(ROOT / "README.md", tmp_path / "README.md")
    write_results(copy, REPORTS)
    assert copy.read_text() == (ROOT / "README.md").read_text(), "run `make readme`"


def test_one_run_is_shown_best_first(tmp_path):
    metrics = read_json(REPORTS / "metrics.json")
    metrics["interval"]["teacher"] = {"accuracy": 0.9876, "low": 0.97, "high": 0.99, "n": 734}
    rows = [line for line in written(tmp_path, {"metrics.json": metrics}).splitlines() if " to " in line]
    rows = [line for line in rows if line.startswith("| ")]
    assert rows[0] == "| teacher, from 100 gold rows | 98.8 % | 97.0 to 99.0 |" and len(rows) > 2


def contender(accuracy: float, **figures: object) -> dict[str, object]:
    names = (
        "less temperature threshold precision calibration_error calibration_p p95_ms rows_per_second file_mb start_s"
    )
    measure = {"accuracy": accuracy, "low": 0.7, "high": 0.9, "n": 734}
    return {"accuracy": measure, "macro_f1": 0.8, **dict.fromkeys(names.split()), **figures}


def test_the_menu_has_what_can_be_served_with_its_command_and_the_results_do_not_repeat_it(tmp_path):
    metrics = read_json(REPORTS / "metrics.json")
    unmeasured = {"p50_ms": None, "memory_mb": None, "answered": None}
    metrics |= {
        "serve": "encoder",
        "contenders": {
            "encoder": contender(0.876, answered=0.553, p50_ms=2.13, memory_mb=1234.5, rows_per_second=9885),
            "decoder": contender(0.7, **unmeasured),
            "teacher": contender(0.9, **unmeasured),
        },
    }
    text = written(tmp_path, {"metrics.json": metrics})
    menu, results = text.split(END_OF_MENU)
    rows = [line for line in menu.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| **encoder student** | 87.6 % | 55 % | 2.1 | 1,234 | $0.0028 | `python -m serve --model encoder` |",
        "| decoder | 70.0 % | 0 % | - | - | - | `python -m serve --model decoder` |",
    ]
    assert "teacher, from 100" in results and "encoder student |" not in results.split("Certifying")[0]


def test_seeds_lead_if_they_were_measured_with_published_figures_beside_the_same_labels(tmp_path):
    assert "make seeds" not in written(tmp_path, {})
    accuracy = dict.fromkeys(("base_plain", "teacher", "linear_teacher", "linear_gold", "linear_true"), SPREAD)
    less = {"mean": 0.0142, "low": -0.0038, "high": 0.025}
    run = {"seeds": [0, 1], "served": SPREAD, "accuracy": accuracy, "served_less_linear": less}
    sample, banking, all_labels = CORPORA.values()
    with_encoder = {**run, "accuracy": accuracy | {"encoder": SPREAD}}
    text = written(tmp_path, {f"seeds/{sample}": with_encoder, f"seeds/{banking}": run})
    assert text.index("make seeds") < text.index("seed 0") and "77 labels" not in text and "Published" not in text
    assert "| encoder student | 12.3 % ± 5.7 | - |" in text and "| seeds | 2 | 2 |" in text
    assert "| decoder student | 12.3 % ± 5.7 | 12.3 % ± 5.7 |" in text
    assert text.count("+1.4 (\N{MINUS SIGN}0.4 to +2.5)") == 2
    text = written(tmp_path, {f"seeds/{all_labels}": run})
    assert text.index("| seeds |") < text.index("Published for 77 labels") < text.index("seed 0")


def test_other_libraries_stand_beside_the_encoder_student(tmp_path):
    measured = {name: {"accuracy": 0.1 * (number + 5)} for number, name in enumerate(PEER_NAMES)}
    text = written(tmp_path, {PEERS: {"test_rows": 734, "peers": measured}})
    assert "734 test rows with other libraries: encoder student 50.0 %, SetFit on 100 gold rows 60.0 %" in text


def test_the_promise_is_told_as_it_was_measured(tmp_path):
    rule = {"coverage": 0.683, "precision": 0.9654, "broken": 7, "draws": 40}
    run = {"corpus": "banking77", "gold_rows": 100, "swapped": False, "rules": {"new": rule}}
    text = written(tmp_path, {PROMISE: {"wanted": 0.9, "runs": [run, {**run, "swapped": True}]}})
    assert text.count("7 of 40 draws fall short") == 1 and "answers 68 % of the queries, 96.5 % rightly" in text


@pytest.mark.parametrize("lost", [MENU, END_OF_MENU, START, END])
def test_a_readme_without_a_marker_is_left_alone(tmp_path, lost):
    readme = tmp_path / "README.md"
    readme.write_text(f"{MENU}\n{END_OF_MENU}\n{START}\n{END}\n".replace(lost, ""))
    before = readme.read_text()
    with pytest.raises(UserError, match="lacks the line"):
        write_results(readme, REPORTS)
    assert readme.read_text() == before
