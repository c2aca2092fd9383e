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
from stages.parts.run.files import open_text, read_json, write_json
from stages.parts.run.params import load_params
from stages.parts.run.provenance import now
from stages.parts.task.labels import clean_label

CONTROL = "label"  # the name of the control that holds the label


def labelling_config(labels: list[str]) -> str:
    """Return the project's labelling interface (https://labelstud.io/guide/setup)."""
    choices = "".join(f"<Choice value={quoteattr(label)}/>" for label in labels)
    control = f'<Choices name="{CONTROL}" toName="text" choice="single">{choices}</Choices>'
    return f'<View><Text name="text" value="$text"/>{control}</View>'


def task(doubt: Doubt) -> dict[str, Any]:
    """Return a row as a task with the teacher's label as a prediction (https://labelstud.io/guide/task_format)."""
    row = doubt.row
    result = {"from_name": CONTROL, "to_name": "text", "type": "choices", "value": {"choices": [row["label"]]}}
    prediction = {"model_version": "teacher", "score": row["confidence"], "result": [result]}
    return {
        "data": {"id": row["id"], "text": row["text"], "was": row["label"], **extra_columns(row)},
        "predictions": [prediction],
    }


def decisions_of(tasks: Any, labels: list[str]) -> list[Decision]:
    """Return the last submitted label of each task in an export; raise UserError for one that this run does not know.

    Only the control CONTROL counts: comments, ratings and other controls are passed over. A task that was skipped, or
    in which that control is empty, has no decision.
    """
    if not isinstance(tasks, list):
        raise UserError("the file is no list of tasks: export the project as JSON, not JSON-MIN")
    found = []
    for number, exported in enumerate(tasks, start=1):
        try:
            choices = []
            for annotation in sorted(exported["annotations"], key=submitted):
                of_controls = {
                    each.get("from_name"): each for each in annotation["result"] if each["type"] == "choices"
                }
                if of_controls and CONTROL not in of_controls and not annotation.get("was_cancelled"):
                    raise UserError(
                        f"task {number} has no control {CONTROL!r} but {', '.join(map(str, of_controls))}: use the "
                        "labelling interface that `export` prints"
                    )
                if CONTROL in of_controls and not annotation.get("was_cancelled"):
                    choices.append((of_controls[CONTROL]["value"]["choices"], submitted(annotation) or now()))
            if not choices:
                continue
            (names, when), data = choices[-1], exported["data"]
            if len(names) != 1:
                raise UserError(f"task {number} has {len(names)} choices: it needs one")
            found.append(Decision(str(data["id"]), clean_label(names[0]), str(data.get("was", "")), when))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise UserError(
                f"task {number} is not as Label Studio exports it (JSON, not JSON-MIN) for tasks of this command"
            ) from None
        if found[-1].label not in labels:
            raise UserError(
                f"task {number}: {found[-1].label!r} is none of this run's {len(labels)} labels; nothing was imported"
            )
    return found


def submitted(annotation: dict[str, Any]) -> str:
    """Return when an annotation was submitted, in ISO 8601; empty if the export does not say."""
    return annotation.get("updated_at") or annotation.get("created_at") or ""


def read_export(path: Path) -> Any:
    try:
        with open_text(path, "utf-8-sig") as file:
            return json.load(file)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name the export") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): export the project as JSON") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.parts.review.label_studio", description=__doc__.splitlines()[0]
    )
    parser.add_argument("what", choices=["export", "import"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=100, help="how many to export (default: 100)")
    given = parser.parse_args()
    with command("label studio"):
        labels = read_json(paths.LABELS)
        if given.what == "export":
            tasks = [task(doubt) for doubt in rows_to_review(load_params(), given.rows)]
            write_json(given.file, tasks)
            print(f"{len(tasks)} tasks in {given.file}; the project's labelling interface:\n{labelling_config(labels)}")
        else:
            decisions = decisions_of(read_export(given.file), labels)
            add_decisions(paths.DECISIONS, decisions)
            print(f"{len(decisions)} decisions in {paths.DECISIONS}: `dvc repro` learns from them")


if __name__ == "__main__":
    main()
