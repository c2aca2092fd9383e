"""What waits for a person's look: the teacher's rows that nobody has decided about, in the order of the queue."""

from stages.parts.data.decisions import read_decisions
from stages.parts.data.rows import extra_columns
from stages.parts.review.queue import Doubt, doubts, in_order
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, read_jsonl
from stages.parts.run.params import Params


def waiting_rows(params: Params, count: int) -> list[Doubt]:
    """The first `count` of them, with the user's other columns; raises UserError where there are none."""
    decided = read_decisions(paths.DECISIONS, read_json(paths.LABELS))
    brought = {row["id"]: extra_columns(row) for row in read_jsonl(paths.POOL)}
    rows = [row | brought.get(row["id"], {}) for row in read_jsonl(paths.TEACHER_LABELS) if row["id"] not in decided]
    if not rows:
        raise UserError(f"{paths.TEACHER_LABELS} has no row that was not decided about")
    confused = [pair["said"] for pair in read_json(paths.TEACHER_REPORT)["confused"] or ()]
    print(f"ordering {len(rows)} rows by what a look is worth", flush=True)
    return in_order(doubts(rows, confused, params.seed), count, params.seed)
