"""A folder of Parquet files through the real Ray Data and the stub engine: what the plain path answers, and nothing
lost or asked twice.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, run
from tests.serve.shop import ENGINE_KEY, LABELS, Shop, ended, make_shop, start, start_engine, stub_counts

pytest.importorskip("ray", reason="needs Ray: make setup-ray, then .venv-ray/bin/python -m pytest")

PATIENCE_S = 400
ON_RAY = ("serve.batch", "--ray", "in", "out")
RAY = {"RAY_worker_niceness": "0", "RAY_ADDRESS": "local"}  # workers as important as this machine's other tests
IN_FLIGHT = 256 * len(os.sched_getaffinity(0))


def batch(shop: Shop, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(
        shop.folder,
        sys.executable,
        "-m",
        *arguments,
        check=False,
        PYTHONPATH=str(ROOT),
        ENGINE_API_KEY=ENGINE_KEY,
        **RAY,
    )


def write(shop: Shop, name: str, texts: Sequence[str | None], column: str = "text") -> None:
    to = shop.folder / "in" / name
    to.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"id": range(len(texts)), column: texts}).to_parquet(to, index=False)


def read(shop: Shop, name: str) -> pd.DataFrame:
    return pd.read_parquet(shop.folder / "out" / name)


def until(happened: Callable[[], bool], process: subprocess.Popen[str], log: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < end and process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.05)


def test_files_are_answered_as_on_the_plain_path_and_bad_rows_and_files_stop_nothing(tmp_path):
    shop = make_shop(tmp_path / "shop")
    good = {name: [f"query {name} {number}" for number in range(700)] for name in ("a.parquet", "day=2/b.parquet")}
    good["a.parquet"][3:6] = ["", "SIMULATE-REFUSE", "  "]
    for name, texts in good.items():
        write(shop, name, texts)
    write(shop, "c.parquet", [None, "SIMULATE-400", "SIMULATE-500", "fine"])
    write(shop, "d.parquet", ["no such column"], column="query")
    (shop.folder / "in/e.parquet").write_bytes(b"PAR1 cut short")
    with ended(start_engine(shop)):
        for name, texts in good.items():
            pd.DataFrame({"text": texts}).to_csv(shop.folder / f"{Path(name).stem}.csv", index=False)
            assert batch(shop, "serve.batch", f"{Path(name).stem}.csv", f"{Path(name).stem}-out.csv").returncode == 0
        done = batch(shop, *ON_RAY)
        assert (
            done.returncode == 1
            and "2 of 5 files are left out" in done.stderr
            and "has no column 'text'" in done.stderr
        ), done.stderr
        assert "1404 rows of 5 files" in done.stdout and "3 empty" in done.stdout, done.stdout

        for name, texts in good.items():
            found, plain = (
                read(shop, name),
                pd.read_csv(shop.folder / f"{Path(name).stem}-out.csv", keep_default_na=False),
            )
            assert list(found.text) == texts and list(found.id) == list(range(len(texts)))
            for column in ("label", "confidence", "abstained"):
                assert list(found[column].fillna("")) == list(plain[column])
        assert set(found.label) == set(LABELS) and found.failure.isna().all()
        failures = read(shop, "a.parquet").failure
        assert [failure.partition(":")[0] for failure in failures[3:6]] == [
            "empty",
            "too long",
            "empty",
        ] and failures.count() == 3
        bad = read(shop, "c.parquet")
        assert (
            list(bad.label[:3]) == ["unknown"] * 3 and set(bad.abstained[:3]) == {"unsure"} and bad.label[3] in LABELS
        )
        assert [str(reason).partition(":")[0] for reason in bad.failure[:3]] == ["empty", "refused", "no answer"]
        assert {path.name for path in (shop.folder / "out").rglob("*") if path.is_file()} == {
            "a.parquet",
            "b.parquet",
            "c.parquet",
        }

        # Again: only what is new is asked for, and the answers of another column or text are not taken for this one's.
        before, kept = stub_counts(shop), (shop.folder / "out/day=2/b.parquet").stat().st_mtime_ns
        for name in ("d.parquet", "e.parquet"):
            (shop.folder / "in" / name).unlink()
        write(shop, "c.parquet", ["fine", "new"])
        again = batch(shop, *ON_RAY)
        assert again.returncode == 0 and "1402 rows of 3 files" in again.stdout, again.stderr
        assert stub_counts(shop)["requests"] == before["requests"] + 2
        assert len(read(shop, "c.parquet")) == 2 and (shop.folder / "out/day=2/b.parquet").stat().st_mtime_ns == kept


def test_one_odd_file_stops_no_other(tmp_path):
    """The first by name is odd, as are most: Ray would start a worker that dies of one again, for ever."""
    shop = make_shop(tmp_path / "shop")
    latin = os.fsdecode(b"caf\xe9.parquet")
    good = ["B.PARQUET", "c.parq", "link.parquet", "spark.parquet/part-0.snappy.parquet"]
    for name in (*good[:2], good[3], "../elsewhere/f.parquet"):
        write(shop, name, [f"query {name}"])
    (shop.folder / "in/link.parquet").symlink_to(shop.folder / "elsewhere/f.parquet")
    (shop.folder / "in/c.parq").rename(shop.folder / "in" / latin)
    write(shop, "c.parq", ["query c.parq"])
    columns = [pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "text"]), shop.folder / "in/A.parquet")
    os.mkfifo(shop.folder / "in/pipe.parquet")
    (shop.folder / "in/broken.parquet").symlink_to("nowhere")
    (shop.folder / "in" / os.fsdecode(b"d\xe9.parquet")).write_bytes(b"PAR1")
    (shop.folder / "in/notes.csv").write_text("text")
    with ended(start_engine(shop)):
        done = batch(shop, *ON_RAY)
        assert done.returncode == 1 and "4 of 9 files are left out, the others are done" in done.stderr, done.stderr
        for name, says in (
            ("A.parquet", "has 2 columns 'text'"),
            ("pipe.parquet", "is a pipe or a device"),
            ("broken.parquet", "does not exist"),
            ("d\\xe9.parquet", "is not Parquet"),
        ):
            assert re.search(rf"left out: \S+/in/{re.escape(name)} {says}", done.stderr), done.stderr
        assert "passed over, not Parquet by name: 1 files, the first: notes.csv" in done.stderr
        for name in (*good, latin):
            with (shop.folder / "out" / name).open("rb") as file:
                assert pq.read_table(file)["label"].to_pylist()[0] in LABELS
        assert batch(shop, *ON_RAY).returncode == 1, "again"


def test_a_run_that_is_killed_goes_on_and_asks_nothing_twice(tmp_path):
    shop = make_shop(tmp_path / "shop")
    for part in range(3):
        write(shop, f"{part}.parquet", [f"query {part} {number}" for number in range(2000)])
    with ended(start_engine(shop, latency_ms=300)):
        driver = start(shop, *ON_RAY, **RAY)
        until(lambda: stub_counts(shop)["requests"] > 4000, driver, shop.folder / "log")
        everything = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
        for process in everything:
            process.kill()
        driver.wait()
        psutil.wait_procs(everything)
        done = batch(shop, *ON_RAY)
        assert done.returncode == 0 and "6000 rows of 3 files" in done.stdout, done.stderr
        found = stub_counts(shop)
        assert found["queries"] == 6000 and found["requests"] <= 6000 + IN_FLIGHT
    rows = pd.concat([read(shop, f"{part}.parquet") for part in range(3)])
    assert list(rows.text) == [f"query {part} {number}" for part in range(3) for number in range(2000)]
    assert rows.failure.isna().all() and not any(path.is_file() for path in (shop.folder / "out").rglob(".*"))


def test_a_file_that_kills_its_worker_each_time_is_left_out_and_stops_no_other(tmp_path):
    shop = make_shop(tmp_path / "shop")
    for name in ("a.parquet", "b.parquet", "killer.parquet", "z.parquet"):
        write(shop, name, [f"query {name} {number}" for number in range(600)])
    log, killer, killed = shop.folder / "log", str(shop.folder / "in/killer.parquet"), 0
    with ended(start_engine(shop, latency_ms=200)):
        driver = start(shop, *ON_RAY, **RAY)
        end = time.monotonic() + PATIENCE_S
        while driver.poll() is None:
            assert time.monotonic() < end, log.read_text()[-3000:]
            for process in psutil.Process(driver.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if any(file.path == killer for file in process.open_files()):
                        process.kill()
                        killed += 1
            time.sleep(0.02)
    said = log.read_text()
    assert driver.returncode == 1 and killed == 2, said[-3000:]
    assert "1 of 4 files are left out, the others are done; the first: killer.parquet ended its worker 2 times" in said
    assert {path.name for path in (shop.folder / "out").glob("*.parquet")} == {"a.parquet", "b.parquet", "z.parquet"}
    assert len(read(shop, "z.parquet")) == 600


def test_a_dead_worker_and_a_dead_engine_are_waited_for(tmp_path):
    shop = make_shop(tmp_path / "shop")
    write(shop, "rows.parquet", [f"query {number}" for number in range(4000)])
    log = shop.folder / "log"
    engine = start_engine(shop, latency_ms=300)
    try:
        driver = start(shop, *ON_RAY, **RAY)
        until(lambda: stub_counts(shop)["requests"] > 1000, driver, log)
        [worker] = [
            process
            for process in psutil.Process(driver.pid).children(recursive=True)
            if "MapWorker" in " ".join(process.cmdline())
        ]
        worker.kill()
        before = stub_counts(shop)["requests"]
        until(lambda: stub_counts(shop)["requests"] > before + 1000, driver, log)
        assert stub_counts(shop)["requests"] <= stub_counts(shop)["queries"] + 256
        engine.send_signal(signal.SIGKILL)
        engine.wait()
        until(lambda: "the engine is gone" in log.read_text(), driver, log)
        engine = start_engine(shop)
        assert driver.wait(PATIENCE_S) == 0, log.read_text()[-3000:]
    finally:
        engine.kill()
        engine.wait()
    assert "4000 rows of 1 files" in log.read_text()
    found = read(shop, "rows.parquet")
    assert list(found.id) == list(range(4000)) and found.failure.isna().all() and set(found.label) == set(LABELS)
