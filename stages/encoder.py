"""The encoder student: a classification head on the encoder's vectors, trained on the rows that the decoder learns.

python -m stages.encoder
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stages.parts.encoder.pretrained import exported_encoder, load_encoder
from stages.parts.encoder.student import Head, fit_head, read_student, write_student
from stages.parts.encoder.vectors import read_embeddings
from stages.parts.numbers.held_out import record_held_out
from stages.parts.run import paths
from stages.parts.run.files import iter_jsonl, read_json, read_jsonl, write_jsonl
from stages.parts.run.params import EncoderSettings, load_params
from stages.parts.run.stage import run_stage
from stages.parts.task.student_file import write_no_student
from stages.parts.weights.fetch import fetch

LEARNED_FROM = (paths.POOL, paths.REVIEWED)  # the parts that SFT rows come from


def target(row: dict[str, Any], labels: list[str]) -> list[float]:
    """Return what a row teaches: the teacher's distribution, or its label alone if there is none."""
    shares = row["probabilities"] or {row["label"]: 1.0}
    total = sum(shares.get(label, 0.0) for label in labels)
    return [shares.get(label, 0.0) / total for label in labels]


def write_whole(
    settings: EncoderSettings, head: Head, texts: Sequence[str], targets: np.ndarray, labels: list[str], seed: int
) -> None:
    """Train the encoder with its head on texts with distributions `targets` [N, K], and write the student."""
    from stages.parts.encoder.export import export_encoder  # torch and transformers: seconds
    from stages.parts.encoder.whole import train_whole

    source = fetch(settings.weights)
    trained, head = train_whole(source, load_encoder(settings), head, texts, targets, seed)
    with TemporaryDirectory() as scratch:
        export_encoder(source, Path(scratch), settings.precision, settings.prompt, trained)
        write_student(Path(scratch), head, labels, paths.ENCODER)


def main() -> None:
    params, embeddings = load_params(), read_embeddings()
    settings = params.encoder
    if settings is None or embeddings is None:
        write_no_student(paths.ENCODER)
        write_jsonl(paths.ENCODER_HELD_OUT, [])
        print("encoder: none, so there is no encoder student")
        return
    labels: list[str] = read_json(paths.LABELS)
    pool, reviewed = (embeddings[part.stem] for part in LEARNED_FROM)
    vectors = np.concatenate([pool, reviewed])
    texts = {row["id"]: row["text"] for part in LEARNED_FROM for row in iter_jsonl(part)}
    places = {row_id: place for place, row_id in enumerate(texts)}
    rows = read_jsonl(paths.SFT_TRAIN)
    targets = np.array([target(row, labels) for row in rows], np.float32)
    head = fit_head(vectors[[places[row["id"]] for row in rows]], targets, pool.mean(axis=0))
    if settings.train == "frozen":
        write_student(exported_encoder(settings), head, labels, paths.ENCODER)
    else:
        write_whole(settings, head, [texts[row["id"]] for row in rows], targets, labels, params.seed)

    student = read_student(paths.ENCODER)
    assert student, "it has just been written"
    record_held_out(student, paths.ENCODER, paths.ENCODER_HELD_OUT, len(rows))


if __name__ == "__main__":
    run_stage(main)
