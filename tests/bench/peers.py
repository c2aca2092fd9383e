"""What a user would pick instead, on the same rows, labels and machine: SetFit, and heartcut's students.
`make bench-peers`

python -m tests.bench.peers [--only NAME ...] [--out reports/bench/peers.json]

Reads the run in the working tree: gold rows, the SFT rows with the teacher's labels, dev and test rows. Every peer that
wants a pretrained encoder gets the run's own, and keeps its own defaults otherwise; a cap on SetFit's steps is named.
It needs `.venv-peers` (`make setup-peers`). Processor seconds of training include the embedding of training rows, and
bear other work on the machine; `p50_ms` does not.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stages.parts.encoder.head import fit_head
from stages.parts.encoder.pretrained import exported_encoder, load_encoder
from stages.parts.encoder.student import EncoderStudent, write_student
from stages.parts.numbers.statistics import difference_interval, interval
from stages.parts.run import paths
from stages.parts.run.files import read_json, read_jsonl, write_json
from stages.parts.run.params import EncoderSettings, load_params
from stages.parts.weights.fetch import fetch
from tests.bench.machine import machine

ALONE = 100  # queries sent one at a time
SETFIT_STEPS = 625  # on the teacher's labels: all of their pairs are millions. heartcut's default comes to as many
Predict = Callable[[list[str]], list[str]]


@dataclass(frozen=True)
class Rows:
    """What everybody learns from and is scored on: texts with labels, and the teacher's distributions [N, K]."""

    labels: list[str]
    gold: list[tuple[str, str]]
    train: list[tuple[str, str]]
    soft: np.ndarray
    dev: list[tuple[str, str]]
    test: list[tuple[str, str]]
    encoder: EncoderSettings

    @property
    def weights(self) -> str:
        return str(fetch(self.encoder.weights))


def read_rows() -> Rows:
    labels, settings = read_json(paths.LABELS), load_params().encoder
    assert settings, "set encoder in params.yaml"
    texts = {row["id"]: row["text"] for part in (paths.POOL, paths.REVIEWED) for row in read_jsonl(part)}
    train = read_jsonl(paths.SFT_TRAIN)
    gold, dev, test = (
        [(row["text"], row["label"]) for row in read_jsonl(part)] for part in (paths.GOLD, paths.SFT_DEV, paths.TEST)
    )
    shares = [row["probabilities"] or {row["label"]: 1.0} for row in train]
    soft = np.array([[found.get(label, 0.0) for label in labels] for found in shares])
    rows = [(texts[row["id"]], row["label"]) for row in train]
    return Rows(labels, gold, rows, soft / soft.sum(axis=1, keepdims=True), dev, test, settings)


def encoder_student(rows: Rows, folder: Path) -> Predict:
    vectors = load_encoder(rows.encoder).vectors(text for text, _ in rows.train)
    head = fit_head(vectors, rows.soft, vectors.mean(axis=0))
    write_student(exported_encoder(rows.encoder), head, vectors, rows.labels, folder)
    return EncoderStudent(folder).predict


def setfit(rows: Rows, learned: list[tuple[str, str]], steps: int, folder: Path) -> Predict:
    """SetFit's own recipe; `steps` of contrastive training at the most, -1 for one pass over its pairs."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    model = SetFitModel.from_pretrained(rows.weights, labels=rows.labels)
    data = Dataset.from_dict({"text": [text for text, _ in learned], "label": [label for _, label in learned]})
    settings = TrainingArguments(output_dir=str(folder / "run"), num_epochs=1, max_steps=steps, save_strategy="no")
    Trainer(model=model, args=settings, train_dataset=data).train()
    model.save_pretrained(str(folder / "model"))
    return lambda texts: [str(label) for label in model.predict(texts)]


def heartcut(rows: Rows, settings: Any, folder: Path) -> Predict:
    """A student of heartcut's, on the teacher's labels; distributions where its settings want them."""
    from heartcut.students.base import TrainingData
    from heartcut.students.registry import student_class

    def numbers(part: list[tuple[str, str]]) -> np.ndarray:
        return np.array([rows.labels.index(label) for _, label in part])

    student = student_class(settings.kind)(settings, rows.labels)
    soft = rows.soft if settings.use_soft_labels else None
    texts, dev = [text for text, _ in rows.train], [text for text, _ in rows.dev]
    student.fit(TrainingData(texts, numbers(rows.train), dev, numbers(rows.dev), soft), seed=0)
    student.save(folder / "model")
    return lambda texts: student.predict(texts)[0]


def heartcut_settings(rows: Rows, kind: str) -> Any:
    """heartcut's own settings of a kind of student, with this run's encoder."""
    from heartcut.config import EncoderStudentConfig, SetFitStudentConfig, TfidfStudentConfig

    if kind == "tfidf":
        return TfidfStudentConfig(name=kind)
    if kind == "setfit":
        return SetFitStudentConfig(name=kind, params={"model_name": rows.weights})
    return EncoderStudentConfig(name=kind, use_soft_labels=True, params={"model_name": rows.weights})


PEERS: dict[str, Callable[[Rows, Path], Predict]] = {
    "encoder student": encoder_student,
    "setfit, gold rows": lambda rows, folder: setfit(rows, rows.gold, -1, folder),
    "setfit, teacher's labels": lambda rows, folder: setfit(rows, rows.train, SETFIT_STEPS, folder),
    "heartcut tfidf": lambda rows, folder: heartcut(rows, heartcut_settings(rows, "tfidf"), folder),
    "heartcut setfit": lambda rows, folder: heartcut(rows, heartcut_settings(rows, "setfit"), folder),
    "heartcut encoder": lambda rows, folder: heartcut(rows, heartcut_settings(rows, "encoder"), folder),
}


def figures(peer: Callable[[Rows, Path], Predict], rows: Rows) -> dict[str, Any]:
    """Train a peer and return what it gets right, and what it takes."""
    with TemporaryDirectory() as scratch:
        wall, processor = time.perf_counter(), time.process_time()
        predict = peer(rows, Path(scratch))
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        files = [file for file in Path(scratch).rglob("*") if file.is_file() and "run" not in file.parts]
        size = sum(file.stat().st_size for file in files)
    texts = [text for text, _ in rows.test]
    right = [found == label for found, (_, label) in zip(predict(texts), rows.test, strict=True)]
    alone = []
    for text in texts[:ALONE]:
        started = time.perf_counter()
        predict([text])
        alone.append(time.perf_counter() - started)
    return {
        "accuracy": sum(right) / len(right),
        "interval": interval(sum(right), len(right)),
        "train_s": wall,
        "train_processor_s": processor,
        "p50_ms": 1000 * float(np.median(alone)),
        "megabytes": size / 1e6,
        "right": right,
    }


def table(found: dict[str, Any]) -> str:
    ours = found["encoder student"]["right"] if "encoder student" in found else None
    lines = ["| | right | encoder student less this | trained in | one query | artefact |", "|---|---|---|---|---|---|"]
    for name, peer in found.items():
        less = ""
        if ours and name != "encoder student":
            low, high = difference_interval(ours, peer["right"])
            less = f"{100 * (sum(ours) - sum(peer['right'])) / len(ours):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        lines.append(
            f"| {name} | {peer['accuracy']:.1%} | {less} | {peer['train_processor_s']:.0f} processor s | "
            f"{peer['p50_ms']:.1f} ms | {peer['megabytes']:.0f} MB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--out", type=Path, default=Path("reports/bench/peers.json"))
    given = parser.parse_args()
    rows = read_rows()
    known = read_json(given.out)["peers"] if given.out.exists() else {}
    for name in given.only:
        print(f"training: {name}", flush=True)
        known[name] = figures(PEERS[name], rows)
        found = {peer: known[peer] for peer in PEERS if peer in known}
        write_json(given.out, {"machine": machine(), "test_rows": len(rows.test), "peers": found})
    print(table({peer: known[peer] for peer in PEERS if peer in known}))


if __name__ == "__main__":
    main()
