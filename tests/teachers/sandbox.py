"""A folder with rows in which `python -m stages.teacher` runs for real, and the simulated teacher that it asks."""

import asyncio
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import requests
import yaml
from aiohttp import web

from stages.parts.run import paths
from stages.parts.run.answer_store import AnswerStore, answer_store
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json, write_json, write_jsonl
from stages.parts.run.machine import free_port
from stages.parts.run.params import load_params
from stages.parts.tuning import plan
from stages.parts.tuning.__main__ import tune
from stages.teacher import main
from tests.conftest import ROOT
from tests.teachers.simulated_teacher import ANSWERED, arguments, simulated_teacher

LABELS = ["card_arrival", "declined_card_payment", "pending_top_up", "exchange_rate", "lost_or_stolen_card"]
KEY = "key"


class Sandbox:
    """The folder. `teacher` and `runtime` change params.yaml's values."""

    def __init__(self, folder: Path, pool: int, test: int = 20, gold: int = 10) -> None:
        self.folder = folder
        self.port = free_port()
        self.key = KEY
        chance = random.Random(0)
        numbers = range(pool + test + gold)
        rows = [
            {"id": f"{number:016x}", "text": f"query {number}", "label": chance.choice(LABELS)} for number in numbers
        ]
        write_json(folder / paths.LABELS, LABELS)
        write_json(folder / paths.DESCRIPTIONS, {})
        write_jsonl(folder / "truth.jsonl", rows)
        write_jsonl(folder / paths.POOL, [{"id": row["id"], "text": row["text"]} for row in rows[:pool]])
        write_jsonl(folder / paths.TEST, [{"id": row["id"], "text": row["text"]} for row in rows[pool : pool + test]])
        write_jsonl(folder / paths.GOLD, rows[pool + test :])
        write_jsonl(folder / paths.REVIEWED, [])
        self.params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
        self.params["profile"] = "api"
        self.set("teacher", api_base=f"http://127.0.0.1:{self.port}/v1", repeat=0)
        self.set("runtime", timeout_s=5)
        self.set("split", dev=10, optimizer_val=10)

    def set(self, block: str, **values: object) -> None:
        place = self.params["profiles"]["api"]["teacher"] if block == "teacher" else self.params[block]
        place |= values
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params))

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "stages.teacher"]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "TEACHER_API_KEY": self.key}

    def label(self) -> str:
        """Run the stage to its end, in this process; gives the line of a UserError, or nothing."""
        with chdir(self.folder), patch.dict(os.environ, TEACHER_API_KEY=self.key):
            try:
                main()
            except UserError as error:
                return str(error)
        return ""

    def tune(self) -> str:
        """Compare prompts, in this process; gives the line of a UserError, or nothing."""
        with chdir(self.folder), patch.dict(os.environ, TEACHER_API_KEY=self.key):
            try:
                tune(load_params())
            except UserError as error:
                return str(error)
        return ""

    def plan(self) -> str:
        """Estimate what labelling takes, in this process; returns what is printed, or the line that it ends with."""
        printed = io.StringIO()
        with chdir(self.folder), patch.dict(os.environ, TEACHER_API_KEY=self.key), redirect_stdout(printed):
            try:
                plan.main()
            except SystemExit as error:
                return str(error.code)
        return printed.getvalue()

    def label_and_kill(self, answers: int) -> None:
        """Run the stage and kill -9 it as soon as it is seen to have got so many answers."""
        before = self.stats()["answers"]
        process = subprocess.Popen(self.command, cwd=self.folder, env=self.environment, stderr=subprocess.DEVNULL)
        while self.stats()["answers"] < before + answers:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()

    @contextmanager
    def teacher(self, *options: str) -> Iterator[list[Any]]:
        """The simulated teacher, up, in a thread; gives the list of the requests that it has answered."""
        app = simulated_teacher(
            arguments(["--port", str(self.port), "--rows", str(self.folder / "truth.jsonl"), *options])
        )
        loop = asyncio.new_event_loop()
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0)
        loop.run_until_complete(runner.setup())
        loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", self.port).start())
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield app[ANSWERED]
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    @contextmanager
    def answers(self, name: str = "*[0-9a-f].sqlite") -> Iterator[AnswerStore]:
        """The teacher's stored answers."""
        [path] = (self.folder / ".cache/answers").glob(name)
        with answer_store(path, "busy") as store:
            yield store

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = requests.get(f"http://127.0.0.1:{self.port}/stats", timeout=30).json()
        return {"requests": 0, "answers": 0, "distinct": 0, **found}

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.folder / paths.TEACHER_REPORT)
        return found

    def rows(self, path: Path = paths.TEACHER_LABELS) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / path).read_text().splitlines()]

    def bytes(self) -> dict[str, bytes]:
        """The stage's outputs."""
        return {
            path.name: path.read_bytes()
            for path in [*(self.folder / paths.TEACHER).glob("[a-z]*"), self.folder / paths.TEACHER_REPORT]
        }
