"""What a teacher is asked: the rows, and the program that asks."""

from dataclasses import dataclass, field, replace

from stages.parts.data.rows import Row
from stages.parts.run import paths
from stages.parts.run.files import read_json, read_jsonl
from stages.parts.run.params import LinearTeacherSettings, Params, PromptRecipe
from stages.parts.task.program import IntentClassifier
from stages.parts.teachers.prompt_file import load_prompt, prompt_path
from stages.parts.teachers.row_choice import chosen
from stages.parts.teachers.rows import JoinedRows, RowSource, StoredRows


@dataclass(frozen=True)
class Questions:
    """`pool` (what was chosen of it), `test` and `gold` are asked, in this order; a fitted teacher learns from `gold`
    and `reviewed`. `recipe`: how the prompt was tuned, if it was."""

    labels: list[str]
    program: IntentClassifier
    pool: RowSource
    test: RowSource
    gold: list[Row]
    reviewed: list[Row]
    descriptions: dict[str, str] = field(default_factory=dict)
    recipe: PromptRecipe | None = None

    @property
    def rows(self) -> RowSource:
        return JoinedRows(self.pool, self.test, self.gold)


def read_questions(params: Params) -> Questions:
    """From data/splits, with the tuned prompt where there is one; raises UserError where rows are missing, or the
    prompt is no good.
    """
    questions, settings, path = untuned_questions(params), params.teacher, prompt_path(params.profile)
    if isinstance(settings, LinearTeacherSettings) or not path.exists():
        return questions
    wanted = {
        "labels": questions.labels,
        "instructions": params.program.instructions,
        "descriptions": questions.descriptions,
    }
    program, recipe = load_prompt(path, questions.program, {"model": settings.model, **wanted})
    return replace(questions, program=program, recipe=recipe)


def untuned_questions(params: Params) -> Questions:
    """The same with the labels and their descriptions as the prompt."""
    labels = read_json(paths.LABELS)
    gold, reviewed = read_jsonl(paths.GOLD), read_jsonl(paths.REVIEWED)
    pool, test = StoredRows(paths.POOL), StoredRows(paths.TEST)
    descriptions = read_json(paths.DESCRIPTIONS)
    # The teacher always reasons: it is asked once, and its reasons let the student's style change without asking again.
    program = IntentClassifier(labels, params.program.instructions, "chain_of_thought", descriptions)
    settings = params.teacher
    return Questions(
        labels, program, chosen(pool, settings.rows, settings.choose, params.seed), test, gold, reviewed, descriptions
    )
