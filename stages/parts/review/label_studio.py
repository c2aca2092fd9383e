"""The review's queue as tasks of Label Studio, and its decisions from Label Studio's export.

python -m stages.parts.review.label_studio export FILE.json [--rows 100]    then import the file into a project
python -m stages.parts.review.label_studio import EXPORT.json               decisions, from the project's JSON export
"""

import argparse
import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from stages.parts.data.decisions import Decision, add_decisions
from stages.parts.data.rows import extra_columns
from stages.parts.review.queue import Doubt, rows_to_review
from stages.parts.run import paths
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, write_json
from stages.parts.run.params import load_params
from stages.parts.run.provenance import now
from stages.parts.task.labels import clean_label


def labelling_config(labels: list[str]) -> str:
    """The project's labelling interface (https://labelstud.io/guide/setup)."""
    choices = "".join(f"<Choice value={quoteattr(label)}/>" for label in labels)
    control = f'<Choices name="label" toName="text" choice="single">{choices}</Choices>'
    return f'<View><Text name="text" value="$text"/>{control}</View>'


def task(doubt: Doubt) -> dict[str, Any]:
    """A row as a task with the teacher's label as a prediction (https://labelstud.io/guide/task_format)."""
    row = doubt.row
    result = {"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": [row["label"]]}}
    prediction = {"model_version": "teacher", "score": row["confidence"], "result": [result]}
    return {
        "data": {"id": row["id"], "text": row["text"], "was": row["label"], **extra_columns(row)},
        "predictions": [prediction],
    }


def decisions_of(tasks: Any, labels: list[str]) -> list[Decision]:
    """The last submitted choice of each task in an export; raises UserError for one that this run does not know."""
    found = []
    for number, exported in enumerate(tasks, start=1):
        try:
            done = [
                annotation
                for annotation in exported["annotations"]
                if not annotation.get("was_cancelled") and annotation["result"]
            ]
            if not done:
                continue  # skipped
            label = clean_label(done[-1]["result"][0]["value"]["choices"][0])
            data, when = exported["data"], done[-1].get("created_at") or now()
            found.append(Decision(data["id"], label, data.get("was", ""), when))
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"task {number} is not as Label Studio exports it (JSON, not JSON-MIN) for tasks of this command"
            ) from None
        if label not in labels:
            raise UserError(
                f"task {number}: {label!r} is none of this run's {len(labels)} labels; nothing was imported"
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.parts.review.label_studio", description=__doc__.splitlines()[0]
    )
    parser.add_argument("what", choices=["export", "import"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=100, help="how many to export (default: 100)")
    given = parser.parse_args()
    with command("label studio", OSError, json.JSONDecodeError):
        labels = read_json(paths.LABELS)
        if given.what == "export":
            tasks = [task(doubt) for doubt in rows_to_review(load_params(), given.rows)]
            write_json(given.file, tasks)
            print(f"{len(tasks)} tasks in {given.file}; the project's labelling interface:\n{labelling_config(labels)}")
        else:
            decisions = decisions_of(json.loads(given.file.read_text(encoding="utf-8")), labels)
            add_decisions(paths.DECISIONS, decisions)
            print(f"{len(decisions)} decisions in {paths.DECISIONS}: `dvc repro` learns from them")


if __name__ == "__main__":
    main()
