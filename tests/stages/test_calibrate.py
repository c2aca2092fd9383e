"""Which contender `calibrate` chooses on dev rows."""

import pytest

from stages.calibrate import choice
from stages.parts.numbers.calibration import Calibration

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
    assert name == chosen and reason.endswith(why) and f"encoder {encoder / DEV:.1%}" in reason


def test_a_contender_that_abstains_on_everything_is_no_choice_unless_all_do():
    rows = {"linear": agreed(280), "decoder": agreed(280)}
    never, sometimes = calibration(None), calibration()
    assert choice({"linear": never, "decoder": sometimes}, rows)[0] == "decoder"
    assert choice({"linear": never, "decoder": never}, rows)[0] == "linear"
