"""Two applications for Ray Serve, in `serve run`'s and `serve deploy`'s form (see ray.yaml).

The classifier is `make serve`'s app around the same service; the LLM endpoint is vLLM's own OpenAI app, with the
command line that `make serve` would start. Neither holds the other: the classifier finds its endpoint by address, here
or elsewhere.

A replica needs the repository with its models (`folder`) on its machine; the endpoint's key is in ENGINE_API_KEY, the
classifier's keys are in SERVE_API_KEYS, of the environment that Ray's workers have.
"""

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace

from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve import Application

from serve.http.app import create_app
from serve.http.keys import VARIABLE, read_keys
from serve.service import Service
from serve.student import ENGINE_KEY, EngineClassifier, check_engine, load_served_student
from serve.supervisor import Supervisor
from stages.parts.engines.http_client import engine_client
from stages.parts.engines.process import EngineProcess
from stages.parts.run import paths
from stages.parts.run.errors import UserError
from stages.parts.run.files import file_sha256, fingerprint
from stages.parts.run.params import load_params

LOOPBACK = "127.0.0.1"
# For a new replica's first check: beside an endpoint that is up it answers from its first query. Without one it comes
# all the same, and answers 503 until the endpoint is there: Ray gives up on replicas whose start fails a few times
# over, and an endpoint may take minutes.
FIRST_CHECK_S = 10


class Where(BaseModel):
    """Arguments of both applications: the repository's folder on every machine."""

    folder: str


class RayEndpoint(Where):
    """Arguments of the classifier: where the LLM endpoint answers (ends in /v1); its own model, where it wants adapters
    asked for as BASE:ADAPTER (ray.serve.llm does); and whether others than this machine reach the proxy."""

    api_base: str
    base: str | None = None
    open: bool = True


@serve.deployment(name="llm")
@serve.ingress()
class Llm:
    """vLLM in a replica, started in `folder`. `line` are the arguments of its OpenAI server, `environment` what else it
    reads.
    """

    async def __init__(self, folder: str, line: list[str], environment: dict[str, str]) -> None:  # type: ignore[misc]
        os.chdir(folder)
        os.environ.update(environment)
        # vLLM's own start, with the engine in this process: vllm/entrypoints/openai/api_server.py.
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
        from vllm.entrypoints.openai.api_server import build_app, init_app_state
        from vllm.usage.usage_lib import UsageContext
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(line)
        arguments.api_key = [os.environ[ENGINE_KEY]]
        validate_parsed_serve_args(arguments)
        settings = AsyncEngineArgs.from_cli_args(arguments)
        self.engine = AsyncLLM.from_engine_args(settings, usage_context=UsageContext.OPENAI_API_SERVER)
        tasks = await self.engine.get_supported_tasks()
        self.asgi = build_app(arguments, tasks, self.engine.model_config)
        await init_app_state(self.engine, self.asgi.state, arguments, tasks)
        self.asgi.state.server = SimpleNamespace()

    async def __serve_build_asgi_app__(self) -> FastAPI:
        return self.asgi

    async def check_health(self) -> None:
        await self.engine.check_health()

    def __del__(self) -> None:
        if engine := getattr(self, "engine", None):
            engine.shutdown()


@serve.deployment(name="classifier")
@serve.ingress()
class RayClassifier:
    """`make serve`'s app in a replica, on an endpoint that others start. Another `edition` replaces the replicas, one
    by one.
    """

    async def __init__(self, where: RayEndpoint, edition: str) -> None:  # type: ignore[misc]
        os.chdir(where.folder)
        logging.getLogger("serve").setLevel(logging.INFO)
        params = load_params()
        elsewhere = params.engine.model_copy(update={"api_base": where.api_base, "kind": "vllm"})
        student = load_served_student(params.model_copy(update={"engine": elsewhere}), where.base)
        self.ends = AsyncExitStack()
        client = await self.ends.enter_async_context(engine_client(student.engine.served, params.serve.timeout_s))
        supervisor = Supervisor(student.engine, lambda: check_engine(student, client), patient=True)
        self.watching = asyncio.create_task(supervisor.run())
        ready = asyncio.create_task(supervisor.was_ready.wait())
        await asyncio.wait([self.watching, ready], timeout=FIRST_CHECK_S, return_when=asyncio.FIRST_COMPLETED)
        await self.check_health()
        classifier = EngineClassifier(student.classifier, client)
        service = Service(classifier, supervisor, params.serve.queue, params.serve.cached_answers)
        self.asgi = create_app(service, read_keys("0.0.0.0" if where.open else LOOPBACK), params.serve.examples)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        return self.asgi

    async def check_health(self) -> None:
        """Raises why the watch over the endpoint ended; an endpoint that is away for a while is no reason to start the
        replica again.
        """
        if self.watching.done():
            self.watching.result()

    async def __del__(self) -> None:
        self.watching.cancel()
        await self.ends.aclose()


def llm(where: Where) -> Application:
    """The LLM endpoint: the chosen student, and its base beside it where `runtime.weights` is adapter."""
    os.chdir(where.folder)
    if not os.environ.get(ENGINE_KEY):
        raise UserError(f"{ENGINE_KEY} is not set: the endpoint and the classifier share it")
    params = load_params()
    own = params.engine.model_copy(update={"api_base": None, "kind": "vllm"})
    engine = load_served_student(params.model_copy(update={"engine": own})).engine
    assert isinstance(engine, EngineProcess)
    module = engine.line.index("-m") + 2
    # its key is the shared one
    environment = {name: value for name, value in engine.environment.items() if name != "VLLM_API_KEY"}
    return Llm.bind(where.folder, engine.line[module:], environment)  # type: ignore[attr-defined]


def classifier(where: RayEndpoint) -> Application:
    """The classifier on an endpoint."""
    if where.open and not os.environ.get(VARIABLE):
        raise UserError(f"{VARIABLE} is not set: others can reach the service")
    loaded = [Path(where.folder) / file for file in ("params.yaml", paths.SIDECAR, paths.PROGRAM, paths.CALIBRATION)]
    edition = fingerprint("".join(map(file_sha256, loaded)))
    return RayClassifier.bind(where, edition)  # type: ignore[attr-defined]
