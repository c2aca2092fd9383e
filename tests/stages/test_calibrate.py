"""Which contender `calibrate` chooses on dev rows, and which rows set a temperature."""

from pathlib import Path

import pytest

from stages.calibrate import calibrated_rows, calibration_of, choice, least_familiarity
from stages.parts.numbers.calibration import Calibration
from stages.parts.numbers.metrics import PromiseFigures
from stages.parts.run import paths
from stages.parts.run.files import write_json, write_jsonl
from stages.parts.run.params import Params, load_params

DEV = 300


def agreed(right: int) -> list[bool]:
    return [number < right for number in range(DEV)]


def calibration(threshold: float | None = 0.8) -> Calibration:
    return Calibration(temperature=1, threshold=threshold, wanted_precision=0.9, rows=DEV, coverage=0.5, precision=None)


@pytest.mark.parametrize(
    ("linear", "encoder", "decoder", "chosen", "why"),
    [
        (285, 286, 287, "linear", "linear is the cheapest not shown to be worse than decoder"),
        (250, 286, 287, "encoder", "encoder is the cheapest not shown to be worse than decoder"),
        (250, 260, 287, "decoder", "each cheaper one is shown to be worse than decoder"),
        (290, 260, 250, "linear", "linear is the best, and the cheapest"),
    ],
)
def test_the_cheapest_that_is_not_shown_to_be_worse(linear, encoder, decoder, chosen, why):
    rows = {"linear": agreed(linear), "encoder": agreed(encoder), "decoder": agreed(decoder)}
    name, reason = choice(dict.fromkeys(rows, calibration()), rows)
    assert name == chosen and reason.endswith(why) and f"encoder {100 * encoder / DEV:.1f}\N{NO-BREAK SPACE}%" in reason


def test_a_contender_that_abstains_on_everything_is_no_choice_unless_all_do():
    rows = {"linear": agreed(280), "decoder": agreed(280)}
    never, sometimes = calibration(None), calibration()
    assert choice({"linear": never, "decoder": sometimes}, rows)[0] == "decoder"
    assert choice({"linear": never, "decoder": never}, rows)[0] == "linear"


def temperature(params: Params, prompt: str) -> float:
    """The temperature if the student is right on all gold rows and half of the others, and 0.8 sure of each."""
    write_json(paths.TEACHER_REPORT, {"prompt": prompt})
    gold = {f"g{number}": "a" for number in range(100)}
    write_jsonl(paths.TEACHER_GOLD, [{"id": row, "label": "a"} for row in gold])
    shares = {"a": 0.8, "b": 0.2}
    dev = [("ab"[number % 2], "teacher", 1.0, f"d{number}") for number in range(100)]
    rows = [*dev, *(("a", "hand", None, row) for row in gold)]
    keys = ("label", "by", "confidence", "id")
    write_jsonl(Path("held_out.jsonl"), [dict(zip(keys, row, strict=True)) | {"probabilities": shares} for row in rows])
    return calibrated_rows(params, Path("held_out.jsonl"), gold)[1]


def test_gold_rows_that_the_student_learned_set_no_temperature(tmp_path, monkeypatch):
    params = load_params()
    hosted = params.model_copy(update={"profile": "api"})
    monkeypatch.chdir(tmp_path)
    doubtful = temperature(params, "given")
    assert doubtful > 5, "half of the dev rows are wrong"
    assert temperature(hosted, "examples") == pytest.approx(doubtful)
    assert temperature(hosted, "given") < 1.5, "its gold rows are as new to it as any"


def test_gold_rows_say_what_is_in_scope_whatever_the_pool_holds():
    strange = [{"by": "teacher", "label": "a", "familiarity": 0.1}] * 300
    outside = [{"by": "hand", "label": "none_of_these", "familiarity": 0.0}] * 20
    gold = [{"by": "hand", "label": "a", "familiarity": 0.5 + number / 200} for number in range(100)]
    least = least_familiarity([*strange, *outside, *gold])
    assert sum(row["familiarity"] < least for row in gold) == 3
    assert least_familiarity([row | {"familiarity": None} for row in gold]) is None
    assert least_familiarity([{"by": "hand", "label": "a"}]) is None, "a decoder's row says nothing of it"


def test_served_rows_whose_labels_have_no_confidence_leave_the_gold_rows_their_say(tmp_path, monkeypatch):
    params = load_params()
    monkeypatch.chdir(tmp_path)
    write_json(paths.TEACHER_REPORT, {"prompt": "given", "gold_accuracy": 0.9})
    gold = {f"g{number}": "a" for number in range(100)}
    write_jsonl(paths.TEACHER_GOLD, [{"id": row, "label": "a", "confidence": 0.9} for row in gold])

    def promised(*confidences: float | None) -> PromiseFigures | None:
        dev = [
            {"id": f"d{number}", "label": "a", "by": "teacher", "confidence": confidences[number % len(confidences)]}
            for number in range(200)
        ]
        shares = {"probabilities": {"a": 0.8, "b": 0.2}, "familiarity": None}
        by_hand = [{"id": row, "label": "a", "by": "hand", "confidence": None} for row in gold]
        write_jsonl(Path("held_out.jsonl"), [row | shares for row in [*dev, *by_hand]])
        return calibration_of(params, gold, Path("held_out.jsonl")).promise

    some = promised(0.9, None)
    assert some and some.kept and some.coverage == 1
    assert promised(None) is None, "nothing says where the gold rows' confidence lies among the dev rows'"
