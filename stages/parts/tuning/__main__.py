"""Compare prompts for the teacher on the gold rows; write the cheapest that none beats to data/prompts/PROFILE.json.

python -m stages.parts.tuning      (`make tune-teacher`)
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from stages.parts.numbers.render import percent, points
from stages.parts.run import paths
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.files import write_json
from stages.parts.run.params import LanguageModelSettings, Params, PromptRecipe, load_params
from stages.parts.teachers.inputs import untuned_inputs
from stages.parts.teachers.prompt_file import Origin, prompt_path, save_prompt
from stages.parts.teachers.teacher import open_teacher
from stages.parts.tuning.comparison import Score, choice, compared, cross_fitted
from stages.parts.tuning.optimisers import check_installed
from stages.parts.tuning.recipes import LEARNS, PromptMaker
from stages.parts.tuning.session import open_session

# McNemar's test separates two prompts if one alone is right on at least four rows, and the other alone on none.
MIN_GOLD = 20


def tune(params: Params) -> dict[str, Any]:
    """Write the chosen program and the report; returns the report.

    Raises UserError if there is nothing to tune, the teacher does not answer, or the budget would be exceeded.
    """
    settings = params.teacher
    if not isinstance(settings, LanguageModelSettings):
        raise UserError(
            f"the {settings.kind} teacher of profile {params.profile} has no prompt: choose another profile in "
            f"params.yaml"
        )
    check_installed(params.tune.candidates)
    inputs = untuned_inputs(params)
    gold, fewest = inputs.gold, max(MIN_GOLD, 2 * params.tune.folds)
    if len(gold) < fewest:
        raise UserError(f"{paths.GOLD} has {len(gold)} rows: too few to tell prompts apart, which takes {fewest}")
    with open_teacher(params, inputs) as teacher, open_session(teacher, params.runtime) as session:
        maker = PromptMaker(params, inputs, session)

        def score(recipe: PromptRecipe) -> Score:
            return cross_fitted(maker, recipe, gold, params.tune.folds, params.seed)

        if session.thread.client.budget.limited:
            with session.thread.client.stored_only():
                for recipe in maker.candidates():
                    with suppress(UserError):  # an answer is missing
                        score(recipe)
        scores = [score(recipe) for recipe in maker.candidates()]
        chosen = choice(scores)
        with session.step(f"{chosen}, from all gold rows", maker.expected_answers(chosen, len(gold))):
            program = maker.program(chosen, gold)
        spending = session.spending
    origin = Origin(
        recipe=chosen,
        retrieve=params.tune.examples if chosen == "examples" else None,
        model=settings.model,
        labels=inputs.labels,
        instructions=params.program.instructions,
        descriptions=inputs.descriptions,
    )
    save_prompt(program, origin, prompt_path(params.profile))
    report = {
        "profile": params.profile,
        "model": settings.model,
        "gold": len(gold),
        "reviewed": len(inputs.reviewed),
        "folds": params.tune.folds,
        "candidates": compared(scores),
        "chosen": chosen,
        "answers": spending.answers,
        "prompt_tokens": spending.prompt_tokens,
        "completion_tokens": spending.completion_tokens,
        "cost": None if spending.dollars is None else round(spending.dollars, 6),
    }
    write_json(paths.TUNING_REPORT, report)
    return report


def table(report: Mapping[str, Any]) -> str:
    """Return the report as a table, with the choice and its reason."""
    candidates: Mapping[str, Mapping[str, Any]] = report["candidates"]
    first = next(iter(candidates))
    lines = [
        f"{'prompt':14}{'right':>8}{'95 % interval':>18}{f'less {first}, points':>28}{'p':>8}{'per 1,000 rows':>24}"
    ]
    for name, found in candidates.items():
        less = found["less_first"]
        between = f"{percent(found['low'])} to {percent(found['high'])}"
        difference = (
            f"{points(less['difference'])} ({points(less['low'])} to {points(less['high'])})" if name != first else ""
        )
        p = f"{less['p']:.3f}" if name != first else ""
        price = f"{found['tokens_per_1000']:,} tokens"
        if found["dollars_per_1000"] is not None:
            price += f", ${found['dollars_per_1000']:.2f}"
        lines.append(f"{name:14}{percent(found['accuracy']):>8}{between:>18}{difference:>28}{p:>8}{price:>24}")
    for name, found in candidates.items():
        if found["failed"]:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in found["failed"].items())
            lines.append(f"{name}: rows without a label count as wrong ({reasons})")
    chosen = report["chosen"]
    unbeaten = [name for name, found in candidates.items() if not found["beaten_by"]]
    why = (
        "it beats all others"
        if len(unbeaten) == 1
        else f"the cheapest of {', '.join(unbeaten)}, which none beats significantly"
    )
    cost = f"{report['prompt_tokens'] + report['completion_tokens']:,} tokens"
    if report["cost"] is not None:
        cost += f", ${report['cost']:.2f}"
    path = prompt_path(report["profile"])
    private = "; it may contain texts of gold rows" if chosen in LEARNS else ""
    lines.append(
        f"on {report['gold']} gold rows, each labelled with a prompt that has not learned from it; all "
        f"{report['answers']:,} answers: {cost}"
    )
    lines.append(f"chosen: {chosen}: {why}. Written to {path}{private}; look at it, commit it, and `dvc repro` uses it")
    return "\n".join(lines)


def main() -> None:
    with command("tune-teacher", stopped="stopped; the answers so far are kept, and another run goes on with them"):
        print(table(tune(load_params())))


if __name__ == "__main__":
    main()
