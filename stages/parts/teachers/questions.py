"""What a teacher is asked: the rows, and the program that asks."""

from dataclasses import dataclass

from stages.parts.data.rows import Query
from stages.parts.run import paths
from stages.parts.run.files import read_json, read_jsonl
from stages.parts.run.params import Params
from stages.parts.task.program import IntentClassifier
from stages.parts.teachers.choice import chosen


@dataclass(frozen=True)
class Questions:
    """`pool` (what was chosen of it), `test` and `gold` are asked, in this order; a fitted teacher learns from `gold` and `reviewed`."""

    labels: list[str]
    program: IntentClassifier
    pool: list[Query]
    test: list[Query]
    gold: list[Query]
    reviewed: list[Query]

    @property
    def rows(self) -> list[Query]:
        return [*self.pool, *self.test, *self.gold]


def read_questions(params: Params) -> Questions:
    """From data/splits; raises UserError where it is not there."""
    labels = read_json(paths.LABELS)
    gold, reviewed, pool, test = (read_jsonl(path) for path in (paths.GOLD, paths.REVIEWED, paths.POOL, paths.TEST))
    # The teacher always reasons: it is asked once, and its reasons let the student's style change without asking again.
    program = IntentClassifier(labels, params.program.instructions, "chain_of_thought", read_json(paths.DESCRIPTIONS))
    settings = params.teacher
    return Questions(labels, program, chosen(pool, settings.rows, settings.choose, params.seed), test, gold, reviewed)
