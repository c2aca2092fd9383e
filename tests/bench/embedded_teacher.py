"""The embedded teacher with the encoder's vectors and without: what it gets right, and what gold rows say of it.

python -m tests.bench.embedded_teacher [--seeds 0 1 2 3 4] [--out reports/bench/embedded_teacher.json]

Of each draw of the gold rows: `test` and `pool`, accuracy on true labels that it never saw; `gold`, cross-fitted: each
gold row judged by a teacher that does not know its label; Brier scores of pool and gold; processor seconds to fit and
to cross-fit. `frozen` is logistic regression on the same vectors with the teacher's labels of the pool.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from stages.parts.data.rows import as_rows
from stages.parts.encoder.pretrained import load_encoder
from stages.parts.encoder.vectors import label_texts
from stages.parts.run.files import read_json, write_json
from stages.parts.run.params import load_params
from stages.parts.teachers.self_trained import SelfTraining
from tests.bench.labelled import Labelled, folders, labelled
from tests.bench.machine import machine

SETTINGS = {"sample": (25, 100), "banking77": (25, 100), "banking77, all labels": (77, 308)}  # labels, gold rows
Vectors = Mapping[str, np.ndarray]


def accuracy_and_brier(probabilities: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """Return accuracy and Brier score of probabilities [N, K] for class numbers [N]."""
    right = probabilities.argmax(axis=1) == actual
    return float(right.mean()), float(((probabilities.max(axis=1) - right) ** 2).mean())


def judged(rows: Labelled, seed: int, vectors: Vectors | None) -> dict[str, float]:
    """Fit a teacher on one draw and return its figures."""

    def meanings(texts: list[str]) -> np.ndarray | None:
        return None if vectors is None else np.array([vectors[text] for text in texts])

    actual = {
        part: np.array([rows.labels.index(label) for label in table.label])
        for part, table in (("pool", rows.pool), ("gold", rows.gold), ("test", rows.test))
    }
    pool, test, names = list(rows.pool.text), list(rows.test.text), label_texts(rows.labels, {})
    found = {}
    started = time.process_time()
    training = SelfTraining(
        pool, list(as_rows(rows.gold)), rows.labels, seed, (), meanings([*pool, *rows.gold.text, *names])
    )
    classifier = training.classifier()
    of_pool = classifier.probabilities(pool, meanings(pool))
    found["test"] = accuracy_and_brier(classifier.probabilities(test, meanings(test)), actual["test"])[0]
    found["pool"], found["pool_brier"] = accuracy_and_brier(of_pool, actual["pool"])
    fitted = time.process_time()
    found["gold"], found["gold_brier"] = accuracy_and_brier(training.gold_probabilities(), actual["gold"])
    found["seconds_to_fit"], found["seconds_to_cross_fit"] = fitted - started, time.process_time() - fitted
    if vectors is not None:
        head = LogisticRegression(C=10, max_iter=300).fit(meanings(pool), of_pool.argmax(axis=1))
        found["frozen"] = float((head.predict(meanings(test)) == actual["test"]).mean())
    return found


def corpora(seeds: list[int]) -> dict[str, dict[int, Labelled]]:
    """Return every setting's draws."""
    there = folders()
    return {
        setting: {seed: labelled(there[corpus], seed, labels, gold) for seed in seeds}
        for setting, (labels, gold) in SETTINGS.items()
        if (corpus := setting.partition(",")[0]) in there
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.embedded_teacher", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("reports/bench/embedded_teacher.json"))
    parser.add_argument("--only", nargs="+", choices=["vectors", "terms"], default=["vectors", "terms"])
    given = parser.parse_args()
    draws = corpora(given.seeds)
    settings = load_params().encoder
    assert settings, "set encoder in params.yaml"
    texts = sorted(
        {
            text
            for by_seed in draws.values()
            for rows in by_seed.values()
            for text in (*rows.pool.text, *rows.gold.text, *rows.test.text, *label_texts(rows.labels, {}))
        }
    )
    started = time.process_time()
    encoded = load_encoder(settings).vectors(texts).astype(np.float16).astype(np.float32)
    vectors = dict(zip(texts, encoded, strict=True))
    rate = len(texts) / (time.process_time() - started)
    runs = read_json(given.out)["runs"] if given.out.exists() else {}
    print("| setting | teacher | seed | test | pool | gold | frozen | seconds |\n|---|---|---|---|---|---|---|---|")
    with threadpool_limits(1):  # threads of two matrices of this size wait for each other
        for seed in given.seeds:
            for setting, by_seed in draws.items():
                for kind in given.only:
                    found = judged(by_seed[seed], seed, vectors if kind == "vectors" else None)
                    runs.setdefault(setting, {}).setdefault(kind, {})[str(seed)] = found
                    write_json(given.out, {"machine": machine(), "texts_a_processor_second": rate, "runs": runs})
                    print(row(setting, kind, str(seed), found), flush=True)
    for setting, by_kind in runs.items():
        for kind, by_seed in by_kind.items():
            names = next(iter(by_seed.values()))
            print(row(setting, kind, "mean", {name: mean(run[name] for run in by_seed.values()) for name in names}))


def row(setting: str, kind: str, seed: str, found: Mapping[str, float]) -> str:
    shares = " | ".join(f"{found[name]:.1%}" if name in found else "" for name in ("test", "pool", "gold", "frozen"))
    return f"| {setting} | {kind} | {seed} | {shares} | {found['seconds_to_fit'] + found['seconds_to_cross_fit']:.1f} |"


if __name__ == "__main__":
    main()
