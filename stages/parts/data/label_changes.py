"""Labels that were added, renamed, split or merged since a run, and the teacher's answers that outlive the change.

The column `was` of labels.csv holds a label's former names, separated by semicolons: one name for a rename, several for
a merge; two labels with the same former name split it. FOLDER/answered.jsonl holds what `make relabel` keeps: a line
with the labels that it was written for, then one teacher's answer a line.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stages.parts.data.rows import TeacherLabel
from stages.parts.data.tables import Faults, records
from stages.parts.run.errors import UserError
from stages.parts.run.files import iter_jsonl, json_text, write_jsonl
from stages.parts.task.labels import clean_label

ANSWERED = "answered.jsonl"


@dataclass(frozen=True)
class LabelChanges:
    """What the labels of a run became: `successors` of each of them, and the labels `added` without a predecessor."""

    successors: dict[str, list[str]]
    added: list[str]

    def now(self, label: str) -> str | None:
        """Return what a former label is called; None if it was split or removed."""
        found = self.successors.get(label, [])
        return found[0] if len(found) == 1 else None

    def carried(self, answer: TeacherLabel) -> TeacherLabel | None:
        """Return an answer in the names of now, with probabilities of merged labels added; None if it can't be kept."""
        label = self.now(answer["label"])
        if not answer["valid"] or label is None:
            return None
        probabilities: dict[str, float] = {}
        for former, probability in answer["probabilities"].items():
            if name := self.now(former):
                probabilities[name] = round(probabilities.get(name, 0.0) + probability, 4)
        return {**answer, "label": label, "confidence": probabilities.get(label), "probabilities": probabilities}


def label_changes(former: Sequence[str], labels: Sequence[str], was: Mapping[str, Sequence[str]]) -> LabelChanges:
    """Return the changes from the `former` labels to `labels`; `was` holds the former names of a label."""
    successors = {old: [label for label in labels if label == old or old in was.get(label, ())] for old in former}
    known = {label for found in successors.values() for label in found}
    return LabelChanges(successors, [label for label in labels if label not in known])


def read_was(path: Path) -> dict[str, list[str]]:
    """Return the clean former names of each label that has any, from labels.csv; none if there is no such file."""
    if not path.exists():
        return {}
    names = {
        clean_label(record["name"]): [clean_label(name) for name in record.get("was", "").split(";") if name.strip()]
        for _, record in records(path, Faults(path))
    }
    return {label: found for label, found in names.items() if found}


def renames(labels: Iterable[str], was: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the present name of each former one that has exactly one: rows that people labelled need no change."""
    present = list(labels)
    former = {name for names in was.values() for name in names} - set(present)
    changes = label_changes(sorted(former), present, was)
    return {name: now for name in former if (now := changes.now(name))}


def write_answered(path: Path, labels: Sequence[str], answers: Iterable[TeacherLabel]) -> None:
    write_jsonl(path, [{"labels": list(labels)}, *answers])


def with_answers(table: pd.DataFrame, answered: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows with the column `teacher_answer`: the answer of a row's text, as JSON, empty if there is none."""
    return table.assign(teacher_answer=table.text.map(answered).astype(object)) if answered else table


def read_answered(path: Path, labels: Sequence[str]) -> dict[str, str]:
    """Return the kept answers by text, as JSON; none without a file. Raises UserError if it is for other labels."""
    if not path.exists():
        return {}
    lines, fields = iter_jsonl(path), ("label", "reasoning", "probabilities")
    try:
        first: dict[str, Any] = next(lines, {})
        if set(first.get("labels", ())) != set(labels):
            raise UserError(
                f"{path} keeps answers for other labels than this folder's: run `make relabel` again, or remove the "
                "file"
            )
        return {answer["text"]: json_text({name: answer[name] for name in fields}) for answer in lines}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} holds a line that is no kept answer: run `make relabel` again, or remove it") from None
