"""One more label for a finished run: what `make relabel` queries again, and what that costs in accuracy.

python -m tests.bench.relabel [--seeds 0 1] [--share 0.2] [--out reports/bench/relabel.json]

Each of Banking77-25's labels in turn is the new one, with the gold rows it has among the 100. The teacher is simulated:
93 % of its labels are the sealed ones, the others are the most likely wrong label. Rows of a label that it lacks get
the most likely label that it has. `whole` labels the whole pool with all 25 labels, `relabelled` the chosen rows only.
The student is the encoder student's head. `found` is the share of the new label's pool rows that are queried.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from stages.parts.encoder.head import fit_head
from stages.parts.encoder.pretrained import load_encoder
from stages.parts.encoder.vectors import label_texts
from stages.parts.run.files import write_json
from stages.parts.run.params import load_params
from stages.parts.traffic.relabel import nearness_to_labels, rows_to_query
from tests.bench.labelled import Labelled, folders, labelled
from tests.bench.machine import machine

RIGHT = 0.93  # of the simulated teacher's answers


class Draw:
    """One draw of gold rows: vectors and true class numbers of pool and test, and the teacher's likelihoods."""

    def __init__(self, rows: Labelled, vectors: dict[str, np.ndarray], seed: int) -> None:
        self.rows, self.vectors = rows, vectors
        self.pool, self.test = self.of(rows.pool.text), self.of(rows.test.text)
        self.actual, self.actual_test = (
            np.array([rows.labels.index(label) for label in table.label]) for table in (rows.pool, rows.test)
        )
        self.mean = self.pool.mean(axis=0)
        self.likely = fit_head(self.pool, np.eye(len(rows.labels))[self.actual], self.mean).probabilities(self.pool)
        self.wrong = np.random.default_rng(seed).random(len(self.pool)) > RIGHT

    def of(self, texts: Any) -> np.ndarray:
        return np.array([self.vectors[text] for text in texts])

    def teacher(self, without: int | None = None) -> np.ndarray:
        """Return the teacher's class numbers for the pool, from a prompt that lacks a label or none."""
        others = self.likely.copy()
        others[np.arange(len(others)), self.actual] = -1
        if without is not None:
            others[:, without] = -1
        return np.where(self.wrong | (self.actual == without), others.argmax(axis=1), self.actual)

    def accuracy(self, answers: np.ndarray) -> float:
        """Return a student's accuracy on test in percent, of one that learned these answers."""
        head = fit_head(self.pool, np.eye(len(self.rows.labels))[answers], self.mean)
        return 100 * float((head.probabilities(self.test).argmax(axis=1) == self.actual_test).mean())

    def relabelled(self, new: int, share: float) -> dict[str, float]:
        """Return the figures of one new label."""
        name, former = self.rows.labels[new], self.teacher(without=new)
        examples = [*label_texts([name], {}), *self.rows.gold.text[self.rows.gold.label == name]]
        nearness = nearness_to_labels(self.pool, [self.rows.labels[number] for number in former], [self.of(examples)])
        kept = [{"label": self.rows.labels[number]} for number in former]
        queried = np.isin(np.arange(len(former)), list(rows_to_query(kept, nearness, share)))
        answers = np.where(queried, self.teacher(), former)
        return {
            "gold": len(examples) - 1,
            "queried": float(queried.mean()),
            "found": float(queried[self.actual == new].mean()),
            "relabelled": self.accuracy(answers),
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.relabel", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--out", type=Path, default=Path("reports/bench/relabel.json"))
    given = parser.parse_args()
    settings = load_params().encoder
    assert settings, "set encoder in params.yaml"
    draws = {seed: labelled(folders()["banking77"], seed) for seed in given.seeds}
    rows = draws[given.seeds[0]]
    texts = [*rows.gold.text, *rows.pool.text, *rows.test.text, *label_texts(rows.labels, {})]
    vectors = dict(zip(texts, load_encoder(settings).vectors(texts), strict=True))
    runs: dict[str, Any] = {}
    print("| seed | new label | its gold rows | queried | found | relabelled | whole |\n|---|---|---|---|---|---|---|")
    with threadpool_limits(1):
        for seed, rows in draws.items():
            draw = Draw(rows, vectors, seed)
            whole = draw.accuracy(draw.teacher())
            for new, label in enumerate(rows.labels):
                found = draw.relabelled(new, given.share) | {"whole": whole}
                runs[f"{label}, seed {seed}"] = found
                print(
                    f"| {seed} | {label} | {found['gold']} | {found['queried']:.1%} | {found['found']:.1%} "
                    f"| {found['relabelled']:.2f} | {whole:.2f} |",
                    flush=True,
                )
    losses = [run["whole"] - run["relabelled"] for run in runs.values()]
    summary = {
        "queried": max(run["queried"] for run in runs.values()),
        "found_mean": mean(run["found"] for run in runs.values()),
        "found_lowest": min(run["found"] for run in runs.values()),
        "loss_mean": mean(losses),
        "loss_greatest": max(losses),
    }
    write_json(given.out, {"machine": machine(), "share": given.share, "summary": summary, "runs": runs})
    print({name: round(value, 3) for name, value in summary.items()})


if __name__ == "__main__":
    main()
