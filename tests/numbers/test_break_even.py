"""The break-even against values computed by hand, and what the report says of it."""

import pytest
import yaml

from stages.parts.numbers.advice import break_even_sentences
from stages.parts.numbers.break_even import TRAINING, Spent, break_even, machine_dollars
from stages.parts.run.params import Params, parse_params
from stages.report import teacher_query_dollars
from tests.conftest import ROOT

DAY = "2026-11-29"
HOSTED = {"answers": 2000, "cost": 4.0}


def params_of(profile: str, **teacher: object) -> Params:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["profile"] = profile
    values["profiles"][profile]["teacher"] |= teacher
    return parse_params(values)


def test_a_student_that_answers_three_of_four_queries_has_to_earn_its_labels_and_its_training():
    """The teacher's query costs 0.2 cents, the student's 0.05, a quarter cost both: a query saves 0.1 cent."""
    found = break_even(0.002, 0.0005, 0.75, Spent(8.0, 2.0), DAY)
    assert found.teacher_per_thousand == pytest.approx(2) and found.student_per_million == pytest.approx(500)
    assert found.escalated == 0.25 and found.saved_per_million == pytest.approx(1000)
    assert found.queries == pytest.approx(10_000, abs=1)
    said = " ".join(break_even_sentences(found, "encoder student"))
    assert "$2.00 from the teacher" in said and "Labelling cost $8.00, training cost $2.00" in said
    assert f"after {found.queries:,} queries, if the teacher answers the 25.0\u00a0%" in said and DAY in said


@pytest.mark.parametrize(
    ("teacher", "student", "answered"),
    [(0.001, 0.002, 1.0), (0.001, 0.001, 1.0), (0.001, 0.0001, 0.0), (0.001, 0.0006, 0.5), (1.0, 0.0, 0.0)],
)
def test_a_dear_student_or_one_that_always_abstains_never_pays(teacher, student, answered):
    found = break_even(teacher, student, answered, Spent(1.0, 1.0), DAY)
    assert found.queries is None and found.saved_per_million <= 0
    [_, said] = break_even_sentences(found, "decoder")
    with_both = 1e6 * (student + (1 - answered) * teacher)
    assert "never pays" in said and f"${with_both:,.2f}; ${1e6 * teacher:,.2f} from the teacher alone" in said


def test_without_a_bill_there_is_nothing_to_earn_back_and_without_a_price_nothing_is_known():
    free, unknown = (break_even(price, 1e-8, 0.9, Spent(0.0, 0.01), DAY) for price in (0.0, None))
    assert free.queries is None and unknown.queries is None and unknown.saved_per_million is None
    [of_free], [of_unknown] = (break_even_sentences(found, "linear model") for found in (free, unknown))
    assert "nothing to earn back" in of_free and "not known" in of_unknown and "never" not in of_free + of_unknown


def test_what_was_not_measured_is_said():
    found = break_even(0.002, 0.0, 1.0, Spent(4.0, None), DAY)
    assert found.queries == 2000 and "what training cost was not measured" in break_even_sentences(found, "decoder")[1]


def test_a_hosted_query_costs_its_votes_at_full_price_whatever_the_run_paid_in_batches():
    assert teacher_query_dollars(params_of("api"), HOSTED, 60) == pytest.approx(0.002)
    assert teacher_query_dollars(params_of("api", votes=3), HOSTED, 60) == pytest.approx(0.006)
    assert teacher_query_dollars(params_of("api", batch=True), HOSTED, 60) == pytest.approx(0.004)
    assert teacher_query_dollars(params_of("api"), {"answers": 2000, "cost": None}, 60) is None


def test_a_teacher_on_gpus_costs_their_time_and_a_linear_one_nothing():
    gpus = params_of("llama")
    assert teacher_query_dollars(gpus, {"answers": 1000, "cost": None}, 3600) == pytest.approx(
        gpus.report.gpu_price_per_hour / 1000
    )
    assert teacher_query_dollars(gpus, {"answers": 1000, "cost": None}, None) is None
    assert teacher_query_dollars(params_of("embedded"), {"rows": 10}, 3600) == 0


def test_the_price_of_stages_is_known_if_each_was_timed():
    seconds = dict.fromkeys(TRAINING, 36.0)
    assert machine_dollars(seconds, TRAINING, 10.0) == pytest.approx(0.1 * len(TRAINING))
    del seconds["lora"]
    assert machine_dollars(seconds, TRAINING, 10.0) is None
