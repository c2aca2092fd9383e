"""The day after on Banking77's 77 labels: a served encoder student, a simulated teacher behind it, and what happens.

python -m tests.bench.traffic [--minutes 10] [--out reports/bench/traffic.json]

The teacher gives the true labels. The student's head is fitted on the vectors of 8,083 rows with its labels, a fifth of
them held out: the threshold is the lowest with 98.5 % agreement there. The service is the real command.

stream   5,000 other rows, once each, from 8 clients; after the first half a student that learned from the teacher's
         answers, too, is promoted. Share answered by the student, and how often these answers are the teacher's
cold     the same rows, but no pool: a student is fitted after each 500 (computed without a service)
kills    1,500 rows from 8 clients that repeat what fails, and ten kills -9
load     single queries, batches and chat completions with audits, drift and rows on; the teacher fails 5 % of the time
         (500, 429, hangs, cut connections, pages), and each minute a student is promoted or rolled back
"""

import argparse
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import psutil
import requests

from stages.calibrate import least_familiarity
from stages.parts.data.rows import row_id
from stages.parts.data.tables import read_table
from stages.parts.encoder.head import fit_head
from stages.parts.encoder.pretrained import exported_encoder, load_encoder
from stages.parts.encoder.student import read_student, write_student
from stages.parts.numbers.calibration import StudentCalibration
from stages.parts.numbers.choice import ServedChoice
from stages.parts.numbers.held_out import held_out_rows
from stages.parts.run import paths
from stages.parts.run.files import folder_sha256, write_json, write_jsonl
from stages.parts.run.machine import free_port
from stages.parts.run.params import EncoderSettings, load_params
from stages.parts.students.local import CALIBRATION, HELD_OUT, beside
from stages.parts.traffic.store import TrafficStore
from tests.bench.machine import machine
from tests.conftest import BANKING77, ROOT
from tests.serve.shop import Shop, ended, hire_teacher, make_shop, start, teaching, wait_until

STREAM, KILLED, CLIENTS, KILLS = 5_000, 1_500, 8, 10
AGREEMENT = 0.985  # on held-out rows, of the answers above the threshold
KNOWN = 5_000  # learned texts that familiarity is measured by
FAULTS = ["500=0.02", "429=0.01", "hang=0.01", "cut=0.005", "html=0.005"]
PRICE = {"prompt": 0.15, "completion": 0.6}


class Corpus:
    """Banking77's texts with class numbers and vectors: `stream` and `pool` are places of rows."""

    def __init__(self, settings: EncoderSettings) -> None:
        tables = [read_table(BANKING77 / f"{part}.csv", "text", "category") for part in ("train", "test")]
        rows = pd.concat(tables).drop_duplicates("text").reset_index(drop=True)
        self.texts, self.labels = list(rows.text), sorted(set(rows.label))
        self.actual = np.array([self.labels.index(label) for label in rows.label])
        self.settings = settings
        self.vectors = load_encoder(settings).vectors(self.texts)
        order = np.random.default_rng(0).permutation(len(rows))
        self.stream, self.pool = order[:STREAM], order[STREAM:]

    def head(self, rows: np.ndarray) -> Any:
        targets = np.eye(len(self.labels))[self.actual[rows]]
        return fit_head(self.vectors[rows], targets, self.vectors[rows].mean(axis=0))

    def threshold(self, shares: np.ndarray, rows: np.ndarray) -> float:
        """Return the lowest confidence above which held-out answers agree often enough."""
        confidence, right = shares.max(axis=1), shares.argmax(axis=1) == self.actual[rows]
        order = np.argsort(-confidence)
        agreed = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
        places = np.flatnonzero(agreed >= AGREEMENT)
        return float(confidence[order[places[-1]]]) if len(places) else 1.0

    def write_student(self, folder: Path, rows: np.ndarray, dev: np.ndarray) -> None:
        """Fit a student on rows and write it with its calibration and held-out rows beside it."""
        known = self.vectors[np.random.default_rng(0).permutation(rows)[:KNOWN]]
        write_student(exported_encoder(self.settings), self.head(rows), known, self.labels, folder)
        student = read_student(folder)
        assert student
        as_rows = [{"id": row_id(self.texts[n]), "text": self.texts[n], "label": self.label(n)} for n in dev]
        held_out = held_out_rows(student, as_rows, [])
        write_jsonl(beside(folder, HELD_OUT), held_out)
        shares = student.read([row["text"] for row in as_rows]).probabilities
        threshold = self.threshold(shares, dev)
        calibration = StudentCalibration(
            temperature=1.0,
            threshold=threshold,
            wanted_precision=AGREEMENT,
            rows=len(dev),
            coverage=float((shares.max(axis=1) >= threshold).mean()),
            precision=AGREEMENT,
            least_familiarity=least_familiarity([row | {"by": "hand"} for row in held_out]),
            student_sha256=folder_sha256(folder),
        )
        write_json(beside(folder, CALIBRATION), calibration.model_dump())

    def label(self, row: int) -> str:
        return self.labels[self.actual[row]]


def bench_shop(folder: Path, corpus: Corpus, student: Path, **serve: object) -> tuple[Shop, int]:
    """A folder with the student and a hosted teacher, and the teacher's port."""
    shop = make_shop(folder, model="auto", **serve)
    truth = {text: corpus.label(row) for row, text in enumerate(corpus.texts)}
    port = hire_teacher(shop, corpus.labels, truth, PRICE)
    subprocess.run(["cp", "-a", *student.parent.glob(f"{student.name}*"), folder / "models"], check=True)
    write_json(folder / paths.SERVED, ServedChoice(serve="encoder", why="", profile="embedded").model_dump())
    return shop, port


def start_service(shop: Shop, port: int) -> subprocess.Popen[str]:
    service = start(shop, "serve", "--port", str(port), TEACHER_API_KEY="key")
    wait_until(f"http://127.0.0.1:{port}/readyz", patience_s=120)
    return service


def promotion(shop: Shop, *words: str) -> None:
    """Promote or roll back; raises if the command fails."""
    line = [sys.executable, "-m", "stages.parts.students.promotion", *words]
    subprocess.run(line, cwd=shop.folder, env={"PYTHONPATH": str(ROOT)}, check=True, stdout=subprocess.DEVNULL)


def measure_stream(folder: Path, corpus: Corpus, student: Path, learned: np.ndarray, dev: np.ndarray) -> dict[str, Any]:
    shop, port = bench_shop(folder, corpus, student, when_unsure="teacher", keep="all", teacher_timeout_s=30)
    own, found = free_port(), list[dict[str, Any]]()
    url = f"http://127.0.0.1:{own}/classify_intent"

    def send(row: int) -> dict[str, Any]:
        response = requests.post(url, json={"query": corpus.texts[row]}, timeout=60)
        response.raise_for_status()
        return {**response.json(), "right": response.json()["label"] == corpus.label(row)}

    with teaching(shop, port) as teacher, ended(start_service(shop, own)), ThreadPoolExecutor(CLIENTS) as clients:
        found += clients.map(send, corpus.stream[: STREAM // 2])
        with TrafficStore(shop.folder / paths.TRAFFIC, 30, 10**6) as store:
            taught = {row.text for row in store.rows() if row.teacher_label}
        added = [row for row in corpus.stream[: STREAM // 2] if corpus.texts[row] in taught]
        corpus.write_student(shop.folder / "next/encoder", np.concatenate([learned, added]), dev)
        promotion(shop, "promote", "next/encoder")
        time.sleep(5)
        found += clients.map(send, corpus.stream[STREAM // 2 :])
        stats = requests.get(f"{teacher}/stats", timeout=10).json()
    return {**shares_of(found), "halves": [shares_of(found[: STREAM // 2]), shares_of(found[STREAM // 2 :])]} | {
        "students": len({answer["model"] for answer in found}),
        "teacher_answers": stats["answers"],
        "teacher_distinct": stats["distinct"],
    }


def shares_of(answers: Sequence[dict[str, Any]]) -> dict[str, float]:
    local = [each for each in answers if each["answered_by"] == "student" and not each["abstained"]]
    return {
        "local": len(local) / len(answers),
        "agreement": sum(each["right"] for each in local) / len(local),
        "by_teacher": sum(each["answered_by"] == "teacher" for each in answers) / len(answers),
        "out_of_scope": sum(each["abstained"] == "out_of_scope" for each in answers) / len(answers),
    }


def measure_cold(corpus: Corpus) -> dict[str, Any]:
    """The student answers what it is sure of and learns from the teacher's answers alone, a fifth of them held out."""
    answered = np.zeros(STREAM, bool)
    right = np.zeros(STREAM, bool)
    for start_ in range(500, STREAM, 500):
        taught = corpus.stream[:start_][~answered[:start_]]
        dev, rows = taught[::5], np.delete(taught, np.s_[::5])
        head = corpus.head(rows)
        threshold = corpus.threshold(head.probabilities(corpus.vectors[dev]), dev)
        now = corpus.stream[start_ : start_ + 500]
        shares = head.probabilities(corpus.vectors[now])
        answered[start_ : start_ + 500] = shares.max(axis=1) >= threshold
        right[start_ : start_ + 500] = shares.argmax(axis=1) == corpus.actual[now]
    return {
        "local": float(answered.mean()),
        "agreement": float(right[answered].mean()),
        "local_of_the_last_1000": float(answered[-1000:].mean()),
        "agreement_of_the_last_1000": float(right[-1000:][answered[-1000:]].mean()),
    }


def measure_kills(folder: Path, corpus: Corpus, student: Path) -> dict[str, Any]:
    shop, port = bench_shop(folder, corpus, student, when_unsure="teacher", keep="all", teacher_timeout_s=30)
    own, draw = free_port(), random.Random(0)
    rows, done = [int(row) for row in corpus.stream[:KILLED]], set[int]()
    over = threading.Event()

    def send(row: int) -> None:
        while not over.is_set():
            try:
                body = {"query": corpus.texts[row]}
                requests.post(f"http://127.0.0.1:{own}/classify_intent", json=body, timeout=30).raise_for_status()
                done.add(row)
                return
            except requests.RequestException:
                time.sleep(0.2)

    with teaching(shop, port, "--latency-ms", "200") as teacher, ThreadPoolExecutor(CLIENTS) as clients:
        service = start_service(shop, own)
        try:
            for row in rows:
                clients.submit(send, row)
            for number in range(KILLS):
                wanted = len(rows) * (number + 1) // (KILLS + 2)
                while len(done) < wanted:
                    time.sleep(0.05)
                time.sleep(draw.uniform(0, 0.5))
                service.kill()
                service.wait()
                service = start_service(shop, own)
            while len(done) < len(rows):
                time.sleep(0.2)
        finally:
            over.set()
            service.terminate()
            service.wait()
        stats = requests.get(f"{teacher}/stats", timeout=10).json()
    with TrafficStore(shop.folder / paths.TRAFFIC, 30, 10**6) as store:
        stored = {row.text for row in store.rows()}
    return {
        "kills": KILLS,
        "requests": len(rows),
        "answered": len(done),
        "answered_without_a_row": sum(corpus.texts[row] not in stored for row in done),
        "paid_twice": stats["answers"] - stats["distinct"],
        "in_flight_at_kills": KILLS * CLIENTS,
    }


def measure_load(folder: Path, corpus: Corpus, student: Path, minutes: float) -> dict[str, Any]:
    settings = {"when_unsure": "teacher", "keep": "all", "audit": 0.02, "drift": True, "cached_answers": 1_000}
    shop, port = bench_shop(folder, corpus, student, teacher_timeout_s=2, **settings)
    subprocess.run(["cp", "-a", shop.folder / "models", shop.folder / "next"], check=True)
    own, statuses, end = free_port(), Counter[int](), time.monotonic() + 60 * minutes
    base, resident = f"http://127.0.0.1:{own}", list[int]()

    def client(number: int) -> None:
        draw = random.Random(number)
        with requests.Session() as session:
            while time.monotonic() < end:
                texts = [corpus.texts[int(row)] for row in draw.choices(corpus.stream, k=8)]
                route, body = draw.choices(
                    [
                        ("classify_intent", {"query": texts[0]}),
                        ("classify_intent/batch", {"queries": texts}),
                        ("v1/chat/completions", {"model": "any", "messages": [{"role": "user", "content": texts[0]}]}),
                    ],
                    [6, 1, 3],
                )[0]
                try:
                    statuses[session.post(f"{base}/{route}", json=body, timeout=30).status_code] += 1
                except requests.RequestException:
                    statuses[0] += 1
                time.sleep(0.1)

    with teaching(shop, port, "--fault", *FAULTS) as teacher, ended(start_service(shop, own)) as service:
        process = psutil.Process(service.pid)
        with ThreadPoolExecutor(CLIENTS) as clients:
            sending = [clients.submit(client, number) for number in range(CLIENTS)]
            swap = time.monotonic() + 60
            promoted = False
            while time.monotonic() < end:
                time.sleep(5)
                resident.append(process.memory_info().rss)
                if time.monotonic() > swap:
                    promotion(shop, *(["rollback"] if promoted else ["promote", "next/encoder"]))
                    promoted, swap = not promoted, swap + 60
            for each in sending:
                each.result()
        stats = requests.get(f"{teacher}/stats", timeout=10).json()
        metrics = requests.get(f"{base}/metrics", timeout=10).text.splitlines()
    megabytes = np.array(resident) / 1e6
    third = len(megabytes) // 3
    wanted = ("watch_", "teacher_failures_total{", "teacher_answers_total{", "queries_in_flight ")
    return {
        "minutes": minutes,
        "statuses": {str(status): count for status, count in statuses.items()},
        "teacher_answers": stats["answers"],
        "megabytes_by_third": [float(np.median(part)) for part in np.split(megabytes, [third, 2 * third])],
        "megabytes_first_and_last": [float(megabytes[0]), float(megabytes[-1])],
        "metrics": [line for line in metrics if line.startswith(wanted)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.traffic", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=Path("reports/bench/traffic.json"))
    given = parser.parse_args()
    settings = load_params().encoder
    assert settings, "set encoder in params.yaml"
    if not BANKING77.is_dir():
        sys.exit(f"Banking77's files are not at {BANKING77}")
    corpus = Corpus(settings)
    dev, learned = corpus.pool[::5], np.delete(corpus.pool, np.s_[::5])
    found: dict[str, Any] = {"machine": machine()}
    with TemporaryDirectory() as scratch:
        student = Path(scratch) / "student/encoder"
        corpus.write_student(student, learned, dev)
        for name, measure in {
            "stream": lambda: measure_stream(Path(scratch) / "stream", corpus, student, learned, dev),
            "kills": lambda: measure_kills(Path(scratch) / "kills", corpus, student),
            "load": lambda: measure_load(Path(scratch) / "load", corpus, student, given.minutes),
            "cold": lambda: measure_cold(corpus),
        }.items():
            started = time.monotonic()
            found[name] = measure()
            print(name, found[name], f"{time.monotonic() - started:.0f} s", flush=True)
            write_json(given.out, found)


if __name__ == "__main__":
    main()
