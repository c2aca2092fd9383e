"""data/embeddings: the run's texts as vectors, for whatever compares texts.

PART.npy holds unit vectors [N, D] in float16, in the order of data/splits/PART.jsonl (labels.npy: of labels.json).
Half precision is a tenth of what int8 costs. Without an encoder the folder holds its description alone.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from stages.parts.encoder.encoder import Encoder
from stages.parts.run.files import fingerprint, iter_jsonl, read_json, whole_file
from stages.parts.run.paths import EMBEDDINGS, EMBEDDINGS_ENCODER, SPLITS
from stages.parts.run.progress import Progress

PARTS = ("gold", "reviewed", "test", "out_of_scope", "pool")
CHUNK = 2048  # texts between two writes: what a killed run computes again, and what lies in memory


def part_file(part: str) -> Path:
    return EMBEDDINGS / f"{part}.npy"


def chunks_of(file: Path) -> Iterator[list[str]]:
    """Yield the texts of a file of rows, CHUNK at a time."""
    texts = (row["text"] for row in iter_jsonl(file))
    while chunk := list(islice(texts, CHUNK)):
        yield chunk


def embed_file(encoder: Encoder, rows: Path, to: Path, kept: Path) -> int:
    """Write the vectors of a file of rows and return how many; finished chunks wait in `kept` for a killed run's next.

    Memory holds one chunk, whatever the file's length.
    """
    count = sum(1 for _ in iter_jsonl(rows))
    kept.mkdir(parents=True, exist_ok=True)
    with whole_file(to) as draft, Progress(f"embedding {rows.stem}", count) as progress:
        vectors = np.lib.format.open_memmap(draft, "w+", np.float16, (count, encoder.size))
        start = 0
        for texts in chunks_of(rows):
            done = kept / f"{fingerprint(chr(0).join(texts))}.npy"
            if not done.exists():
                with whole_file(done) as chunk, chunk.open("wb") as file:
                    np.save(file, encoder.vectors(texts).astype(np.float16))
            vectors[start : start + len(texts)] = np.load(done)
            start += len(texts)
            progress.update(len(texts))
        vectors.flush()
    shutil.rmtree(kept)
    return count


def label_texts(labels: Sequence[str], descriptions: dict[str, str]) -> list[str]:
    """Return what a label's name and description say, as a text."""
    names = [label.replace("_", " ") for label in labels]
    return [
        f"{name}: {descriptions[label]}" if label in descriptions else name
        for name, label in zip(names, labels, strict=True)
    ]


@dataclass(frozen=True)
class Embeddings:
    """The vectors of the run, by part: pool, gold, reviewed, test, out_of_scope, labels."""

    key: str  # of the encoder: vectors of two encoders never compare

    def __getitem__(self, part: str) -> np.ndarray:
        """Return a part's unit vectors [N, D] in float32."""
        return np.load(part_file(part), mmap_mode="r").astype(np.float32)

    def of_rows(self, rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
        """Return the unit vectors [N, D] of any rows of the run, by their ids."""
        stored = {part: np.load(part_file(part), mmap_mode="r") for part in PARTS}
        found = [stored[part][number] for part, number in (self.places[row["id"]] for row in rows)]
        return np.array(found, np.float32).reshape(len(found), next(iter(stored.values())).shape[1])

    @cached_property
    def places(self) -> dict[str, tuple[str, int]]:
        """The part and the row number of every id."""
        return {
            row["id"]: (part, number)
            for part in PARTS
            for number, row in enumerate(iter_jsonl(SPLITS / f"{part}.jsonl"))
        }


def read_embeddings() -> Embeddings | None:
    """Return the run's vectors, None for `encoder: none`; raises UserError if stage embed has not run."""
    key = read_json(EMBEDDINGS_ENCODER)["key"]
    return Embeddings(key) if key else None


def stored_vectors(rows: Iterable[Mapping[str, Any]]) -> np.ndarray | None:
    """Return the encoder's unit vectors [N, D] of rows of the run, None if there is no encoder or no vectors yet."""
    embeddings = read_embeddings() if EMBEDDINGS_ENCODER.exists() else None
    return embeddings.of_rows(rows) if embeddings else None
