"""Which rows the teacher is queried for again after a change of a folder's labels; its other answers are kept.

An answer whose label was split or removed can't be kept. A label that is new may take rows from all others: those
whose vectors are nearer to its name, description and gold rows than to the rows that have their own answer, up to a
share of the rows. On Banking77-25 a fifth of the rows holds 98 % of a new label's (reports/bench/NOTES.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from stages.parts.data.decisions import rename_in_decisions
from stages.parts.data.folder import read_files, read_labels
from stages.parts.data.label_changes import ANSWERED, LabelChanges, label_changes, read_was, renames, write_answered
from stages.parts.data.rows import TeacherLabel
from stages.parts.encoder.encoder import centred
from stages.parts.encoder.pretrained import encoder_key, load_encoder
from stages.parts.encoder.vectors import PARTS, label_texts, read_embeddings
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import iter_jsonl, read_json
from stages.parts.run.params import Params
from stages.parts.task.features import topic_vectors


@dataclass(frozen=True)
class Relabelling:
    """What `relabel` has decided: the changes, and of the pool's `rows` how many are `again` the teacher's to label."""

    changes: LabelChanges
    rows: int
    again: int


def relabel(params: Params, share: float) -> Relabelling:
    """Write FOLDER/answered.jsonl: the last run's answers that stay, for the labels that labels.csv names now. In
    decisions.csv renamed and merged labels get their present names.

    Of pool, test and gold at most `share` is left out, each by itself. Raises UserError if the last run was not on a
    folder, or more pool rows than that have lost their label.
    """
    folder = Path(params.raw.folder)
    if params.raw.source != "folder":
        raise UserError("relabel needs a run on a folder with labels.csv: set raw.source to folder")
    labels, was = read_labels(folder / "labels.csv"), read_was(folder / "labels.csv")
    # Not data/filtered: `make plan` may have made it anew since the teacher's run.
    former = read_json(paths.TEACHER_REPORT).get("labels")
    if not former:
        raise UserError(f"{paths.TEACHER_REPORT} names no labels: run `dvc repro teacher` before labels.csv changes")
    changes = label_changes(former, list(labels), was)
    there = {row["id"] for part in PARTS for row in iter_jsonl(paths.SPLITS / f"{part}.jsonl")}
    pool, *others = (
        [row for row in iter_jsonl(file) if row["id"] in there]
        for file in (paths.TEACHER_LABELS, paths.TEACHER_TEST, paths.TEACHER_GOLD)
    )
    lost = sum(row["valid"] and changes.now(row["label"]) is None for row in pool)
    if lost > share * len(pool):
        raise UserError(
            f"{lost} of {len(pool)} pool rows have a label that was split or removed: set SHARE to "
            f"{np.ceil(100 * lost / len(pool)) / 100:.2f} or more"
        )
    answers: list[TeacherLabel] = [*pool, *chain.from_iterable(others)]
    nearness = np.zeros(len(answers))
    if changes.added:
        gold = read_files(folder, params.raw.text_column, params.raw.label_column)[0]["gold"]
        texts = [[*label_texts([label], labels), *gold.text[gold.label == label]] for label in changes.added]
        vectors, of_texts = vectors_of(answers, [text for found in texts for text in found], params)
        ends = np.cumsum([len(found) for found in texts])[:-1]
        nearness = nearness_to_labels(vectors, [row["label"] for row in answers], np.split(of_texts, ends))
    kept: list[TeacherLabel] = []
    start = again = 0
    for rows in (pool, *others):
        carried = [changes.carried(row) for row in rows]
        touched = rows_to_query(carried, nearness[start : start + len(rows)], share if changes.added else 0)
        kept += [row for place, row in enumerate(carried) if row and place not in touched]
        again += len(touched) if rows is pool else 0
        start += len(rows)
    rename_in_decisions(paths.DECISIONS, renames(labels, was))
    write_answered(folder / ANSWERED, list(labels), kept)
    return Relabelling(changes, len(pool), again)


def rows_to_query(carried: Sequence[TeacherLabel | None], nearness: np.ndarray, share: float) -> set[int]:
    """Return the places of the rows without an answer to keep and, up to the share of all, the nearest others."""
    touched = {place for place, row in enumerate(carried) if row is None}
    others = (int(place) for place in np.argsort(-nearness, kind="stable") if place not in touched)
    room = int(share * len(carried)) - len(touched)
    return touched | {place for place, _ in zip(others, range(room), strict=False)}


def nearness_to_labels(vectors: np.ndarray, labels: Sequence[str], examples: Sequence[np.ndarray]) -> np.ndarray:
    """Return how likely each row is to belong to one of the new labels: higher is likelier, [N].

    Rows have unit vectors [N, D] and their former `labels`; each new label has the unit vectors [M, D] of its examples.
    New labels take turns, so that one with many rows leaves room for one with few.
    """
    mean = vectors.mean(axis=0)
    rows = centred(vectors, mean)
    own = nearness_to_own(rows, labels)
    best = np.full(len(rows), len(rows))
    for found in examples:
        nearness = rows @ centred(found, mean).mean(axis=0) - own
        ranks = np.empty(len(rows), int)
        ranks[np.argsort(-nearness, kind="stable")] = np.arange(len(rows))
        best = np.minimum(best, ranks)
    return -best


def nearness_to_own(vectors: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Return the mean cosine of each unit vector [N, D] with those of its label, [N]."""
    names, numbers = np.unique(labels, return_inverse=True)
    own = np.empty(len(vectors))
    for number in range(len(names)):
        rows = vectors[numbers == number]
        own[numbers == number] = rows @ rows.mean(axis=0)
    return own


def vectors_of(answers: Sequence[TeacherLabel], texts: Sequence[str], params: Params) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors [N, D] of the run's rows and [M, D] of other texts; by words if there is no encoder."""
    embeddings = read_embeddings()
    if embeddings and params.encoder and encoder_key(params.encoder) == embeddings.key:
        return embeddings.of_rows(answers), load_encoder(params.encoder).vectors(texts)
    vectors = topic_vectors([*(row["text"] for row in answers), *texts], params.seed)
    return vectors[: len(answers)], vectors[len(answers) :]
