"""`make tune-teacher` against a teacher whose prompt matters: DSPy's own optimisers over HTTP, nothing paid twice, the
stage behind it.
"""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from importlib.util import find_spec
from typing import Any

import dspy
import pytest

from stages.parts.data.rows import Row
from stages.parts.engines.budget import Spending
from stages.parts.engines.endpoint import HostedEndpoint
from stages.parts.engines.requests import ProgramRequests
from stages.parts.run import paths
from stages.parts.run.files import read_json, write_json
from stages.parts.task.features import Nearest
from stages.parts.task.program import IntentClassifier, predictor, using
from stages.parts.task.prompt import TeacherFormat
from stages.parts.tuning.comparison import Score, choice, folds
from stages.parts.tuning.optimisers import with_all_labels
from tests.teachers.dspys_requests import Recorder
from tests.teachers.sandbox import LABELS, Sandbox
from tests.teachers.simulated_teacher import INSIGHT

DESCRIPTIONS = {label: f"What {label.replace('_', ' ')} means." for label in LABELS}
PROMPT = paths.PROMPTS / "api.json"


@pytest.fixture
def sandbox(tmp_path) -> Sandbox:
    sandbox = Sandbox(tmp_path, pool=30, test=5, gold=60)
    sandbox.set("tune", folds=3, optimiser_calls=80, examples=4)
    return sandbox


def report(sandbox: Sandbox) -> dict[str, Any]:
    return read_json(sandbox.folder / paths.TUNING_REPORT)


def loaded(sandbox: Sandbox) -> IntentClassifier:
    """The chosen program, as DSPy alone loads it."""
    program = IntentClassifier(LABELS, "", "chain_of_thought")
    program.load(sandbox.folder / PROMPT)
    return program


@pytest.mark.slow
@pytest.mark.parametrize(
    ("taught", "chosen"),
    [("descriptions", "descriptions"), ("examples", "examples"), ("instruction", "gepa")],
    ids=lambda value: value,
)
def test_the_prompt_that_helps_is_chosen_and_the_stage_uses_it(sandbox, taught, chosen):
    if taught == "descriptions":
        write_json(sandbox.folder / paths.DESCRIPTIONS, DESCRIPTIONS)
    faults = ("429=0.03", "500=0.02", "cut=0.01")
    with sandbox.teacher("--accuracy", "0.6", "--taught", taught, "--fault", *faults) as sent:
        assert not sandbox.tune()
        stats, first = sandbox.stats(), report(sandbox)
        assert first["chosen"] == chosen and first["candidates"]["plain"]["beaten_by"]
        assert first["candidates"][chosen]["less_first"]["p"] < 0.001 and first["candidates"][chosen]["low"] > 0.7
        assert (first["answers"], first["cost"]) == (stats["distinct"], round(stats["distinct_dollars"], 6))
        assert stats["answers"] == stats["distinct"]
        prompt = (sandbox.folder / PROMPT).read_bytes()
        assert not sandbox.tune()
        assert sandbox.stats()["requests"] == stats["requests"], "a second run sends nothing"
        assert report(sandbox) == first and (sandbox.folder / PROMPT).read_bytes() == prompt

        sent.clear()
        assert not sandbox.label()
    program, rows = (
        loaded(sandbox),
        {row["text"]: row for path in (paths.POOL, paths.TEST, paths.GOLD) for row in sandbox.rows(path)},
    )
    demos = {(demo["query"], demo["label"]) for demo in predictor(program).demos}
    assert sandbox.report()["prompt"] == chosen and len(sent) >= 35
    for body in sent:
        system, *shown, last = body["messages"]
        query = last["content"].split("\n")[1]
        assert system["content"].endswith(predictor(program).signature.instructions.splitlines()[-1])
        if chosen == "examples":
            queries = [turn["content"].split("[[ ## query ## ]]\n")[1].split("\n")[0] for turn in shown[::2]]
            assert len(queries) == 4 and query not in queries and set(queries) <= {query for query, _ in demos}
        else:
            wanted = TeacherFormat().format(predictor(program).signature, [], {"query": query})
            assert [(turn["role"], turn["content"]) for turn in body["messages"]] == [
                (turn["role"], turn["content"]) for turn in wanted
            ]
        assert query in rows
    assert len({body["messages"][0]["content"] for body in sent}) == 1, "one prefix for all"
    if chosen == "examples":
        assert demos == {(row["text"], row["label"]) for row in sandbox.rows(paths.GOLD)}
    if chosen == "gepa":  # which has learned from the gold rows: they test nothing any more
        assert INSIGHT in predictor(program).signature.instructions
        assert sandbox.report()["confused"] is None and "gold_accuracy" not in sandbox.report()
    else:
        assert sandbox.report()["gold_accuracy"] > 0.7


def test_of_equal_prompts_the_cheapest_is_kept_and_sends_what_was_sent_without(sandbox):
    with sandbox.teacher() as sent:
        assert not sandbox.label()
        untuned = sorted(json.dumps(body) for body in sent)
        assert not sandbox.tune()
        assert report(sandbox)["chosen"] == "plain" and not report(sandbox)["candidates"]["plain"]["beaten_by"]
        sent_before = sandbox.stats()["requests"]
        assert not sandbox.label()
        assert sandbox.stats()["requests"] == sent_before and untuned
    assert sandbox.report()["prompt"] == "plain"


@pytest.mark.slow
def test_the_command_prints_what_it_found(sandbox):
    sandbox.set("tune", candidates=["plain", "examples"])
    with sandbox.teacher("--accuracy", "0.6", "--taught", "examples"):
        command = [sys.executable, "-m", "stages.parts.tuning"]
        done = subprocess.run(
            command, cwd=sandbox.folder, env=sandbox.environment, text=True, capture_output=True, check=True
        )
    lines = done.stdout.splitlines()
    assert lines[1].startswith("plain ") and lines[2].startswith("examples ") and "$" in lines[2]
    assert (
        lines[-1].startswith("chosen: examples: it beats all others. Written to data/prompts/api.json")
        and "Traceback" not in done.stderr
    )


def test_a_budget_is_not_passed_not_even_by_an_optimiser_and_a_raised_one_goes_on(sandbox):
    sandbox.set("tune", candidates=["plain", "gepa"])
    with sandbox.teacher("--accuracy", "0.6", "--taught", "instruction"):
        for budget, limit in (
            (10_000, "tokens of runtime.budget_tokens 10,000 are spent"),
            (22_000, "22,000 are spent"),
        ):
            sandbox.set("runtime", budget_tokens=budget)
            complaint = sandbox.tune()
            assert (
                limit in complaint
                and "run `make tune-teacher` again, the answers so far are kept" in complaint
                and "\n" not in complaint
            )
            assert budget - 3_000 < sandbox.stats()["prompt_tokens"] + sandbox.stats()["completion_tokens"] <= budget
            assert not (sandbox.folder / PROMPT).exists() and not (sandbox.folder / paths.TUNING_REPORT).exists()
        assert sandbox.stats()["answers"] > 60, "the second is GEPA's"
        sandbox.set("runtime", budget_tokens=None)
        assert not sandbox.tune()
        assert (
            report(sandbox)["chosen"] == "gepa"
            and sandbox.stats()["answers"] == sandbox.stats()["distinct"] == report(sandbox)["answers"]
        )


def test_kept_answers_count_in_the_budget_before_a_new_one_is_paid_for(sandbox):
    """Those of a prompt that comes later, too: reached in their turn, they would be spent on top of the budget."""

    def spent() -> int:
        return sandbox.stats()["prompt_tokens"] + sandbox.stats()["completion_tokens"]

    with sandbox.teacher("--accuracy", "0.6", "--taught", "instruction"):
        sandbox.set("tune", candidates=["examples"])
        assert not sandbox.tune()
        budget = spent() + 4_000
        sandbox.set("tune", candidates=["gepa", "examples"])
        sandbox.set("runtime", budget_tokens=budget)
        assert f"of runtime.budget_tokens {budget:,} are spent" in sandbox.tune()
        assert budget - 3_000 < spent() <= budget
        sandbox.set("runtime", budget_tokens=1_000_000)
        assert not sandbox.tune()
        counted = report(sandbox)
        sandbox.set("runtime", budget_tokens=None)
        assert not sandbox.tune() and report(sandbox) == counted
        assert counted["answers"] == sandbox.stats()["distinct"] == sandbox.stats()["answers"]


@pytest.mark.slow
def test_kill_9_and_ctrl_c_cost_what_was_in_flight_and_change_no_result(sandbox, tmp_path_factory):
    other = tmp_path_factory.mktemp("whole")
    whole = Sandbox(other, pool=30, test=5, gold=60)
    for each in (sandbox, whole):
        each.set("tune", folds=3, optimiser_calls=80, candidates=["plain", "gepa"])
    options = ("--accuracy", "0.6", "--taught", "instruction")
    # which a shell's background jobs, and all that they start, ignore
    heed_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with whole.teacher(*options):
        assert not whole.tune()
    with sandbox.teacher(*options, "--latency-ms", "500"):
        # requests: in GEPA's first part, with many to come
        for how, after in ((signal.SIGKILL, 61), (signal.SIGINT, 1)):
            before = sandbox.stats()["requests"]
            command = [sys.executable, "-m", "stages.parts.tuning"]
            process = subprocess.Popen(
                command,
                cwd=sandbox.folder,
                env=sandbox.environment,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=heed_sigint,
            )
            while sandbox.stats()["requests"] < before + after and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(how)
            printed = process.communicate(timeout=60)[1]
            assert (
                process.returncode == (-9 if how is signal.SIGKILL else 130) and not (sandbox.folder / PROMPT).exists()
            )
        assert printed == "tune-teacher: stopped; the answers so far are kept, and another run goes on with them\n"
        assert not sandbox.tune()
        assert (
            sandbox.stats()["answers"] - sandbox.stats()["distinct"] <= 2 * sandbox.params["runtime"]["max_in_flight"]
        )
    assert report(sandbox) == report(whole)
    assert (sandbox.folder / PROMPT).read_bytes() == (other / PROMPT).read_bytes()


def test_a_wrong_key_is_one_line_after_a_few_requests(sandbox):
    sandbox.key = "wrong"
    with sandbox.teacher():
        complaint = sandbox.tune()
        assert complaint.startswith("the endpoint refuses the key in TEACHER_API_KEY") and "\n" not in complaint
        assert sandbox.stats()["requests"] <= 20


def test_what_can_not_be_tuned_is_one_line(sandbox):
    sandbox.set("tune", folds=40)
    assert "has 60 rows: too few to tell prompts apart, which takes 80" in sandbox.tune()
    if find_spec("optuna") is None:
        sandbox.set("tune", candidates=["plain", "miprov2"])
        assert "miprov2 needs Optuna" in sandbox.tune()
    sandbox.params["profile"] = "embedded"
    sandbox.set("tune")
    assert (
        sandbox.tune() == "the linear teacher of profile embedded has no prompt: choose another profile in params.yaml"
    )


def change(*keys: str, to: Any):
    def changed(state: dict[str, Any]) -> None:
        place: Any = state
        for key in keys[:-1]:
            place = place[int(key) if isinstance(place, list) else key]
        place[keys[-1]] = to

    return changed


CLASSIFY = "classify.predict"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda state: state.clear(), "classify.predict: Field required"),
        (
            change("metadata", "recipe", to="magic"),
            "metadata.recipe: Input should be 'plain', 'descriptions', 'examples', 'gepa' or 'miprov2'",
        ),
        (change("metadata", "retrieve", to=0), "metadata.retrieve: Input should be greater than 0"),
        (
            change("metadata", "labels", to=LABELS[:2]),
            "was tuned for other labels: run `make tune-teacher` again, or remove the file",
        ),
        (change("metadata", "model", to="openai/other"), "was tuned for another model"),
        (change(CLASSIFY, "demos", to="none"), "classify.predict.demos: Input should be a valid list"),
        (
            change(CLASSIFY, "demos", "0", "label", to="mortgage"),
            "a demonstration has the unknown label 'mortgage'",
        ),
        (change(CLASSIFY, "lm", to={"model": "other"}), "classify.predict.lm: Input should be None"),
        (
            change(CLASSIFY, "signature", "instructions", to="Classify."),
            "its instructions do not name the label card_arrival",
        ),
        (change(CLASSIFY, "signature", "fields", to=[]), "is a program with other fields"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it_and_sends_nothing(tmp_path, spoil, says):
    sandbox = Sandbox(tmp_path, pool=5)
    program = IntentClassifier(LABELS, sandbox.params["program"]["instructions"], "chain_of_thought", {})
    predictor(program).demos = [dspy.Example(query=f"query {label}", label=label) for label in LABELS]
    metadata = {
        "recipe": "examples",
        "retrieve": 2,
        "model": "openai/gpt-4o-mini",
        "labels": LABELS,
        "descriptions": {},
    }
    versions = {"instructions": sandbox.params["program"]["instructions"], "dependency_versions": {}}
    state = {**program.dump_state(), "metadata": {**metadata, **versions}}
    write_json(sandbox.folder / PROMPT, state)
    with sandbox.teacher():
        assert not sandbox.label()
        sent_before = sandbox.stats()["requests"]
        spoil(state)
        write_json(sandbox.folder / PROMPT, state)
        complaint = sandbox.label()
        assert complaint.startswith("data/prompts/api.json") and says in complaint and "\n" not in complaint
        (sandbox.folder / PROMPT).write_text('{"torn')
        assert sandbox.label().startswith("data/prompts/api.json is not JSON")
        assert sandbox.stats()["requests"] == sent_before
        (sandbox.folder / PROMPT).unlink()
        assert not sandbox.label()
        assert sandbox.report()["prompt"] is None


def test_nearest_demonstrations_are_sent_as_dspy_would_send_them():
    program = IntentClassifier(LABELS, "Classify.", "chain_of_thought")
    demos = [
        dspy.Example(query="My card got declined", reasoning="It says declined.", label="declined_card_payment"),
        dspy.Example(query="where is my new card", label="card_arrival"),
        dspy.Example(query="the rate of euros", reasoning="It says rate.", label="exchange_rate"),
    ]
    predictor(program).demos = demos
    program.nearest = Nearest(demos, 2)
    recorder = Recorder()
    requests = ProgramRequests(program, HostedEndpoint(""), "model", 400, TeacherFormat())
    for query in ("My card was declined", "where is my new card", "[[ ## label ## ]]\nwhere is it"):
        with (
            using(dspy.LM("openai/model", engine=recorder, cache=False, num_retries=0)),
            pytest.raises(Exception, match="enough"),
        ):
            program(query=query)
        theirs = recorder.sent.pop()
        system, *turns = requests.body(query)["messages"]
        assert system["content"] == theirs.system and len(turns) == 5
        assert [(turn["role"], turn["content"]) for turn in turns] == [
            (message.role, message.text) for message in theirs.messages
        ]
    assert program.nearest("My card was declined")[0].label == "declined_card_payment"
    assert "where is my new card" not in {demo.query for demo in program.nearest("where is my new card")}, (
        "a row never shows its own label"
    )


def score(recipe, right: int, dollars: float | None, tokens: int = 0, rows: int = 100, first: int = 0) -> Score:
    hits = [first <= row < first + right for row in range(rows)]
    return Score(recipe, hits, Counter(), Spending(rows, tokens, 0, dollars))


def test_the_cheapest_that_none_beats_is_chosen():
    plain, better, best = score("plain", 80, 1.0), score("examples", 83, 3.0), score("gepa", 86, 2.0)
    assert choice([plain, better]) == "plain", "three rows alone are no proof (p 0.083)"
    assert choice([plain, better, best]) == "gepa", "six are, and examples, which none beats, cost more"
    assert choice([best, score("miprov2", 86, 2.0)]) == "gepa", "of equal ones the first"
    assert choice([score("examples", 80, None, 900), score("plain", 80, None, 400)]) == "plain", (
        "by tokens where no price is known"
    )
    assert choice([plain, score("gepa", 80, 0.5, first=20)]) == "gepa"


def test_each_row_is_in_one_part_and_labels_are_spread_over_all():
    gold = [Row(id=str(number), text=f"{number}", label=LABELS[number % 5]) for number in range(53)]
    parts = folds(gold, 5, seed=0)
    assert sorted(number for part in parts for number in part) == list(range(53))
    assert all(set(Counter(gold[number]["label"] for number in part).values()) <= {1, 2, 3} for part in parts)
    assert folds(gold, 5, seed=0) == parts != folds(gold, 5, seed=1)


def test_a_written_prompt_names_all_labels():
    assert with_all_labels("Choose card_arrival or pending_top_up.", ["card_arrival", "pending_top_up"]).endswith(
        "top_up."
    )
    assert (
        with_all_labels("Choose well.", ["card_arrival", "pending_top_up"])
        == "Choose well. The intents are:\n- card_arrival\n- pending_top_up"
    )
