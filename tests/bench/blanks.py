"""The finished run's three students on its test rows, spelled with blanks and signs that nobody sees.

python -m tests.bench.blanks [--out reports/bench/blanks.json]
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from stages.parts.engines.process import running
from stages.parts.run import paths
from stages.parts.run.files import read_jsonl, write_json
from stages.parts.run.params import load_params
from stages.parts.students.local import load_local
from stages.parts.students.pair import load_pair
from stages.parts.students.scoring import score
from stages.parts.students.serving import tuned_engine
from tests.bench.machine import machine
from tests.task.test_text import BLANKS

AT_ONCE = 64


def accuracies(predict: Callable[[Sequence[str]], Sequence[str]]) -> dict[str, float]:
    """Return the share of right labels for each spelling of the test rows, the plain one first."""
    rows = [(row["text"], row["label"]) for row in read_jsonl(paths.TEST)]
    found = {}
    for name, spelled in ({"plain": str} | BLANKS).items():
        predicted = predict([spelled(text) for text, _ in rows])
        right = [label == wanted for label, (_, wanted) in zip(predicted, rows, strict=True)]
        found[name] = round(sum(right) / len(rows), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.blanks", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("reports/bench/blanks.json"))
    given = parser.parse_args()
    params, pair = load_params(), load_pair()
    students = {}
    for name, folder in (("encoder", paths.ENCODER), ("linear", paths.LINEAR)):
        local = load_local(folder)
        students[name] = accuracies(lambda texts, local=local: [found.label for found in local.classify(texts)])
    with running(tuned_engine(pair.base, pair.checkpoint, pair.served_name, params)) as served:
        requests = pair.requests(served.kind)
        students["decoder"] = accuracies(
            lambda texts: score(served, requests, [{"text": text} for text in texts], AT_ONCE).predicted
        )
    write_json(given.out, {"machine": machine(), "students": students})
    for name, found in students.items():
        print(f"{name:8}", *(f"{spelling} {share:.1%}" for spelling, share in found.items()), sep="  ")


if __name__ == "__main__":
    main()
