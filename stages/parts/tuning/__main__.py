"""Compare prompts for the teacher on the gold rows, and write the cheapest that none beats: data/prompts/PROFILE.json.
`make tune-teacher`

python -m stages.parts.tuning
"""

from collections.abc import Mapping
from typing import Any

from stages.parts.numbers.render import percent, points
from stages.parts.run import paths
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.files import write_json
from stages.parts.run.params import LanguageModelSettings, Params, load_params
from stages.parts.teachers.prompt_file import Origin, prompt_path, save_prompt
from stages.parts.teachers.questions import untuned_questions
from stages.parts.teachers.teacher import teacher_of
from stages.parts.tuning.comparison import choice, compared, cross_fitted
from stages.parts.tuning.optimisers import check_installed
from stages.parts.tuning.recipes import LEARNS, Recipes
from stages.parts.tuning.session import session

# McNemar's test tells two prompts apart where six rows are right with one alone, and none with the other alone
FEWEST_GOLD = 20


def tune(params: Params) -> dict[str, Any]:
    """Write the chosen program and the report; gives the report. Raises UserError where there is nothing to tune, the
    teacher does not answer, or the budget would be passed."""
    settings = params.teacher
    if not isinstance(settings, LanguageModelSettings):
        raise UserError(
            f"the {settings.kind} teacher of profile {params.profile} has no prompt: choose another profile in "
            f"params.yaml"
        )
    check_installed(params.tune.candidates)
    questions = untuned_questions(params)
    gold = questions.gold
    if len(gold) < max(FEWEST_GOLD, 2 * params.tune.folds):
        raise UserError(
            f"{paths.GOLD} has {len(gold)} rows: too few to tell prompts apart, which takes "
            f"{max(FEWEST_GOLD, 2 * params.tune.folds)}"
        )
    with teacher_of(params, questions) as teacher, session(teacher, params.runtime) as asked:
        recipes = Recipes(params, questions, asked)
        scores = [
            cross_fitted(recipes, recipe, gold, params.tune.folds, params.seed) for recipe in recipes.candidates()
        ]
        chosen = choice(scores)
        with asked.step(f"{chosen}, of all gold rows", recipes.expected_answers(chosen, len(gold))):
            program = recipes.program(chosen, gold)
        spent = asked.spent
    origin = Origin(
        recipe=chosen,
        retrieve=params.tune.examples if chosen == "examples" else None,
        model=settings.model,
        labels=questions.labels,
        instructions=params.program.instructions,
        descriptions=questions.descriptions,
    )
    save_prompt(program, origin, prompt_path(params.profile))
    report = {
        "profile": params.profile,
        "model": settings.model,
        "gold": len(gold),
        "reviewed": len(questions.reviewed),
        "folds": params.tune.folds,
        "candidates": compared(scores, params.seed),
        "chosen": chosen,
        "answers": spent.answers,
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "cost": None if spent.dollars is None else round(spent.dollars, 6),
    }
    write_json(paths.TUNING_REPORT, report)
    return report


def shown(report: Mapping[str, Any]) -> str:
    """The report as a table and what was chosen."""
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
            lines.append(f"{name}: rows without a label, which count as wrong ({reasons})")
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
    private = "; it may hold texts of gold rows" if chosen in LEARNS else ""
    lines.append(
        f"of {report['gold']} gold rows, each answered by what had not learned from it; all {report['answers']:,} "
        f"answers: {cost}"
    )
    lines.append(
        f"chosen: {chosen}: {why}. Written to {path}{private}; look at it, commit it, and `dvc repro` asks with it"
    )
    return "\n".join(lines)


def main() -> None:
    with command("tune-teacher", stopped="stopped; the answers so far are kept, and another run goes on with them"):
        print(shown(tune(load_params())))


if __name__ == "__main__":
    main()
