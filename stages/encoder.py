"""The encoder student: a classification head on the encoder's vectors, trained on the rows that the decoder learns.

python -m stages.encoder
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stages.parts.encoder.encoder import Encoder
from stages.parts.encoder.familiarity import known_rows
from stages.parts.encoder.head import Head, fit_head
from stages.parts.encoder.pretrained import exported_encoder, load_encoder
from stages.parts.encoder.student import read_student, write_student
from stages.parts.encoder.vectors import read_embeddings
from stages.parts.numbers.held_out import record_held_out
from stages.parts.run import paths
from stages.parts.run.files import iter_jsonl, read_json, read_jsonl, write_jsonl
from stages.parts.run.params import EncoderSettings, load_params
from stages.parts.run.stage import run_stage
from stages.parts.task.labels import NONE_OF_THESE
from stages.parts.task.student_file import write_no_student
from stages.parts.weights.fetch import fetch

LEARNED_FROM = (paths.POOL, paths.REVIEWED)  # the parts that SFT rows come from


def target(row: dict[str, Any], labels: list[str]) -> list[float]:
    """Return what a row teaches: the teacher's distribution, or its label alone if there is none."""
    shares = row["probabilities"] or {row["label"]: 1.0}
    total = sum(shares.get(label, 0.0) for label in labels)
    return [shares.get(label, 0.0) / total for label in labels]


@dataclass(frozen=True)
class Lesson:
    """What the student learns: the texts [N] of the SFT rows with their label probabilities [N, K]. Gold rows show
    whether these texts are of the labels' subjects.
    """

    labels: list[str]
    texts: list[str]
    targets: np.ndarray
    gold: list[Any]

    def known(self, vectors: np.ndarray, of_gold: np.ndarray, seed: int) -> np.ndarray:
        """Return the vectors [M, D] of the texts that a label fits, of the texts' vectors and the gold rows'."""
        fits, gold_fits = (
            np.array([label != NONE_OF_THESE for label in labels], bool)
            for labels in ([self.labels[place] for place in self.targets.argmax(axis=1)], self.gold_labels)
        )
        classes = np.array([self.labels.index(label) for label in self.gold_labels], int)
        rows = known_rows(vectors[fits], self.targets[fits], of_gold[gold_fits], classes[gold_fits], seed)
        return vectors[fits][rows]

    @property
    def gold_labels(self) -> list[str]:
        return [row["label"] for row in self.gold]


def write_whole(settings: EncoderSettings, head: Head, lesson: Lesson, seed: int) -> None:
    """Train the encoder with its head, and write the student."""
    from stages.parts.encoder.export import export_encoder  # torch and transformers: seconds
    from stages.parts.encoder.whole import train_whole

    source = fetch(settings.weights)
    trained, head = train_whole(source, load_encoder(settings), head, lesson.texts, lesson.targets, seed)
    with TemporaryDirectory() as scratch:
        export_encoder(source, Path(scratch), settings.precision, settings.prompt, trained)
        encoder = Encoder(Path(scratch))
        gold = encoder.vectors(row["text"] for row in lesson.gold)
        known = lesson.known(encoder.vectors(lesson.texts), gold, seed)
        write_student(Path(scratch), head, known, lesson.labels, paths.ENCODER)


def main() -> None:
    params, embeddings = load_params(), read_embeddings()
    settings = params.encoder
    if settings is None or embeddings is None:
        write_no_student(paths.ENCODER)
        write_jsonl(paths.ENCODER_HELD_OUT, [])
        print("encoder: none, so there is no encoder student")
        return
    labels: list[str] = read_json(paths.LABELS)
    texts = {row["id"]: row["text"] for part in LEARNED_FROM for row in iter_jsonl(part)}
    rows = read_jsonl(paths.SFT_TRAIN)
    targets = np.array([target(row, labels) for row in rows], np.float32)
    lesson = Lesson(labels, [texts[row["id"]] for row in rows], targets, read_jsonl(paths.GOLD))
    vectors = embeddings.of_rows(rows)
    head = fit_head(vectors, targets, embeddings["pool"].mean(axis=0))
    if settings.train == "frozen":
        known = lesson.known(vectors, embeddings["gold"], params.seed)
        write_student(exported_encoder(settings), head, known, labels, paths.ENCODER)
    else:
        write_whole(settings, head, lesson, params.seed)

    student = read_student(paths.ENCODER)
    assert student, "it has just been written"
    record_held_out(student, paths.ENCODER, paths.ENCODER_HELD_OUT, len(rows))


if __name__ == "__main__":
    run_stage(main)
