"""Serve many students on one base: one engine, their adapters beside it.

python -m serve.many                      # serve those in models/students
python -m serve.many add NAME REPOSITORY  # add, or replace, the student of another clone; a running service follows
python -m serve.many remove NAME
python -m serve.many list
"""

import argparse
import asyncio
from pathlib import Path

import uvloop

from serve.http.keys import read_keys
from serve.http.server import listen, serving_command
from serve.many.app import Many
from serve.many.students import add, remove, students
from serve.student import engine_elsewhere
from stages.parts.engines.engine import AdapterSlots, Engine, served_name
from stages.parts.engines.http_client import engine_client
from stages.parts.engines.vllm import allowed_rank
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.machine import check_port
from stages.parts.run.params import Params, Serve, load_params
from stages.parts.students.pair import check_present
from stages.parts.students.serving import base_engine
from stages.parts.task.program_file import load_sidecar

MAX_STUDENTS = 16  # of one engine


def adapter_slots(params: Params) -> AdapterSlots:
    """Return the room that the engine keeps for students."""
    return AdapterSlots(MAX_STUDENTS, allowed_rank(params.lora.r))


async def serve_many(engine: Engine, settings: Serve, keys: list[str]) -> None:
    """Serve, and follow the folder of students, until SIGINT or SIGTERM."""
    async with engine_client(engine.served, settings.timeout_s) as client:
        many = Many(engine, client, settings, keys)
        following = asyncio.create_task(many.follow())
        try:
            await listen(many.app, many.supervisor, settings, "/NAME/classify_intent")
        finally:
            following.cancel()


def start(params: Params) -> None:
    """Serve until SIGINT or SIGTERM; raises UserError if the engine never comes up."""
    settings, keys = params.serve, read_keys(params.serve.host)
    check_port(settings.port, settings.host)
    if params.engine.kind != "vllm":
        raise UserError("many students are served by vLLM: set engine.kind to vllm")
    check_present(paths.BASE)
    engine: Engine
    if params.engine.api_base:
        engine = engine_elsewhere(params, {"base": served_name("base", paths.BASE)})
    else:
        engine = base_engine(paths.BASE, {}, params, adapter_slots(params))
    uvloop.run(serve_many(engine, settings, keys))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serve.many", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", metavar="add | remove | list")
    adding = commands.add_parser("add", help="add the student that a repository's `dvc repro` chose")
    adding.add_argument("name", help="its path: /NAME/classify_intent")
    adding.add_argument("repository", type=Path, help="a clone with its models/; . is this one")
    commands.add_parser("remove", help="remove a student").add_argument("name")
    commands.add_parser("list", help="list the students, with their labels and dev accuracy")
    given = parser.parse_args()
    with serving_command():
        params = load_params()
        if given.command == "add":
            add(given.name, given.repository, paths.BASE, adapter_slots(params))
        elif given.command == "remove":
            remove(given.name)
        elif given.command == "list":
            for name, folder in students().items():
                pair = load_sidecar(folder / paths.SIDECAR.name)
                print(
                    f"{name}: {len(pair.labels)} labels, {pair.dev_accuracy:.1%} right on dev, served as {folder.name}"
                )
        else:
            start(params)


if __name__ == "__main__":
    main()
