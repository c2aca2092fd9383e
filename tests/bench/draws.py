"""Draws of gold rows, for benches of what they certify: each trains a teacher and a student and keeps what they say.

Kept in .cache/bench/promise under a hash of the code behind them, so that another rule takes milliseconds a draw.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from stages.parts.data.rows import as_rows
from stages.parts.encoder.encoder import centred
from stages.parts.encoder.head import fit_head
from stages.parts.encoder.pretrained import encoder_key, load_encoder
from stages.parts.run.files import fingerprint, whole_file
from stages.parts.run.params import load_params
from stages.parts.run.paths import cache
from stages.parts.teachers.self_trained import FOLDS, SelfTraining, mean_probabilities
from tests.bench.labelled import Labelled, folders, labelled
from tests.conftest import ROOT

DEV, HELD = 300, 1000  # pool rows that the student has not learned
SOURCES = ("stages/parts/encoder/head.py", "stages/parts/teachers/self_trained.py", "tests/bench/draws.py")


class EncoderTraining(SelfTraining):
    """The embedded teacher's self-training without its views of terms, which take most of the time."""

    def add_text_view(self, vectorizer: object) -> None:
        pass

    def add_meanings(self, meanings: np.ndarray) -> bool:
        self.mean = meanings[self.pool].mean(axis=0)
        self.vectors.append(centred(meanings, self.mean))
        return True


@dataclass(frozen=True)
class Draw:
    """Class probabilities [N, K] of one draw: the student's and the teacher's of dev rows and of gold rows (the
    teacher's cross-fitted), the student's of further held-out pool rows and of test rows, and the true classes.

    `apart_gold` are those of students that were refitted without the gold row's fold, `apart_dev` [FOLDS, DEV] their
    confidence on dev rows, `fold` [G] the gold rows' folds.
    """

    student_dev: np.ndarray
    teacher_dev: np.ndarray
    student_gold: np.ndarray
    teacher_gold: np.ndarray
    apart_gold: np.ndarray
    student_pool: np.ndarray
    student_test: np.ndarray
    apart_dev: np.ndarray
    fold: np.ndarray
    dev: np.ndarray
    gold: np.ndarray
    pool: np.ndarray
    test: np.ndarray

    @property
    def confidence(self) -> np.ndarray:
        return self.student_dev.max(axis=1)

    def swapped(self) -> "Draw":
        """Return the draw of a teacher that confuses the two most frequent labels: so does the student it trains."""
        order = np.arange(self.student_dev.shape[1])
        order[[0, 1]] = 1, 0
        classes = {name for name, each in asdict(self).items() if each.ndim == 2} - {"apart_dev"}
        return replace(self, **{name: getattr(self, name)[:, order] for name in classes})


def vectors_of(corpus: str, rows: Labelled) -> dict[str, np.ndarray]:
    """Return the vector of each text and label name, computed once for all draws."""
    settings = load_params().encoder
    assert settings, "the bench needs an encoder"
    names = [label.replace("_", " ") for label in rows.labels]
    texts = sorted({*pd.concat([rows.gold, rows.pool, rows.test]).text, *names})
    file = cache() / "bench/promise" / f"{corpus}-{encoder_key(settings)}.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, load_encoder(settings).vectors(texts))
    return dict(zip(texts, np.load(file), strict=True))


def drawn(corpus: str, gold_rows: int, seed: int) -> Draw:
    """Return a draw; the same one again comes from the cache, unless the code behind it has changed."""
    settings = load_params().encoder
    assert settings, "the bench needs an encoder"
    code = fingerprint("".join((ROOT / name).read_text(encoding="utf-8") for name in SOURCES))
    file = cache() / f"bench/promise/draws-{encoder_key(settings)}-{code}" / f"{corpus}-{gold_rows}-{seed}.npz"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as draft, draft.open("wb") as opened:
            np.savez(opened, **asdict(new_draw(corpus, gold_rows, seed)))
    return Draw(**np.load(file))


def new_draw(corpus: str, gold_rows: int, seed: int) -> Draw:
    rows = labelled(folders()[corpus], seed, gold=gold_rows)
    vectors = vectors_of(corpus, rows)
    pool, gold, test = (np.array([vectors[text] for text in part.text]) for part in (rows.pool, rows.gold, rows.test))
    names = np.array([vectors[label.replace("_", " ")] for label in rows.labels])
    training = EncoderTraining(
        list(rows.pool.text), list(as_rows(rows.gold)), rows.labels, seed, meanings=np.vstack([pool, gold, names])
    )
    (views,), mean, unseen = training.vectors, pool.mean(axis=0), DEV + HELD
    weights = training.fit(np.ones(len(gold), bool), quick=True)
    of_pool = mean_probabilities([views[training.pool]], weights)
    student = fit_head(pool[unseen:], of_pool[unseen:], mean)

    teacher_gold, apart_gold = np.empty((2, len(gold), len(rows.labels)))
    apart_dev, fold = np.empty((FOLDS, DEV)), np.empty(len(gold), int)
    for number, left_out in enumerate(training.folds()):
        weights = training.fit(~left_out, quick=True)
        teacher_gold[left_out] = mean_probabilities([views[training.gold[left_out]]], weights)
        apart = fit_head(pool[unseen:], mean_probabilities([views[training.pool[unseen:]]], weights), mean)
        apart_gold[left_out], fold[left_out] = apart.probabilities(gold[left_out]), number
        apart_dev[number] = apart.probabilities(pool[:DEV]).max(axis=1)
    dev, held, gold_classes, test_classes = (
        np.array([rows.labels.index(label) for label in part.label])
        for part in (rows.pool[:DEV], rows.pool[DEV:unseen], rows.gold, rows.test)
    )
    return Draw(
        student_dev=student.probabilities(pool[:DEV]),
        teacher_dev=of_pool[:DEV],
        student_gold=student.probabilities(gold),
        teacher_gold=teacher_gold,
        apart_gold=apart_gold,
        student_pool=student.probabilities(pool[DEV:unseen]),
        student_test=student.probabilities(test),
        apart_dev=apart_dev,
        fold=fold,
        dev=dev,
        gold=gold_classes,
        pool=held,
        test=test_classes,
    )
