"""What a teacher is asked: the rows, and the program that asks."""

from dataclasses import dataclass

from stages.parts.data.rows import Query
from stages.parts.run import paths
from stages.parts.run.files import read_json, read_jsonl
from stages.parts.run.params import Params
from stages.parts.task.program import IntentClassifier
from stages.parts.teachers.choice import chosen
from stages.parts.teachers.rows import JoinedRows, Rows, StoredRows


@dataclass(frozen=True)
class Questions:
    """`pool` (what was chosen of it), `test` and `gold` are asked, in this order; a fitted teacher learns from `gold` and `reviewed`."""

    labels: list[str]
    program: IntentClassifier
    pool: Rows
    test: Rows
    gold: list[Query]
    reviewed: list[Query]

    @property
    def rows(self) -> Rows:
        return JoinedRows(self.pool, self.test, self.gold)


def read_questions(params: Params) -> Questions:
    """From data/splits; raises UserError where it is not there."""
    labels = read_json(paths.LABELS)
    gold, reviewed = read_jsonl(paths.GOLD), read_jsonl(paths.REVIEWED)
    pool, test = StoredRows(paths.POOL), StoredRows(paths.TEST)
    # The teacher always reasons: it is asked once, and its reasons let the student's style change without asking again.
    program = IntentClassifier(labels, params.program.instructions, "chain_of_thought", read_json(paths.DESCRIPTIONS))
    settings = params.teacher
    return Questions(labels, program, chosen(pool, settings.rows, settings.choose, params.seed), test, gold, reviewed)
