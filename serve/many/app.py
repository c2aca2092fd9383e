"""One engine, and the app of each student under its name: /NAME/classify_intent and all other routes of `make
serve`.
"""

import asyncio
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import BaseRoute, Mount, Route

from serve.http.app import create_app
from serve.http.failures import add_failure_handlers
from serve.many.students import ManyStudent, former, read_student, students
from serve.service import NotReady, Service
from serve.student import EngineClassifier
from serve.supervisor import Supervisor
from stages.parts.engines.engine import Engine
from stages.parts.engines.http_client import EngineClient, EngineError
from stages.parts.engines.vllm import Vllm, load_adapter, unload_adapter
from stages.parts.run.params import Serve

logger = logging.getLogger("serve")

FOLLOW_EVERY_S = 1.0


class Many:
    """Keeps engine and app in step with the folder of students.

    An engine that was started again gets its adapters back before it counts as ready. A student that can't be served is
    logged once and tried again, and the one that it should replace stays.
    """

    def __init__(self, engine: Engine, client: EngineClient, settings: Serve, keys: Sequence[str]) -> None:
        self.base = engine.served.names["base"]
        self.client = client
        self.settings = settings
        self.keys = keys
        self.supervisor = Supervisor(engine, self.synchronise)
        self.served: dict[str, ManyStudent] = {}
        self.logged: set[Path] = set()
        self.loaded: set[str] = set()
        self.unwanted: dict[str, float] = {}  # loaded, and since when no student is served by it
        self.changing = asyncio.Lock()
        self.app = Starlette(routes=self.health_routes())
        self.app.router.redirect_slashes = False  # behind TLS a redirect would name http
        add_failure_handlers(self.app)

    def health_routes(self) -> list[BaseRoute]:
        async def healthz(_: Request) -> JSONResponse:
            return JSONResponse({"status": "up"})

        async def readyz(_: Request) -> JSONResponse:
            if not self.supervisor.ready:
                raise NotReady
            return JSONResponse({"status": "ready", "students": sorted(self.served)})

        return [Route("/healthz", healthz), Route("/readyz", readyz)]

    async def follow(self) -> None:
        """Look at the folder every second, until cancelled."""
        while True:
            await asyncio.sleep(FOLLOW_EVERY_S)
            if self.supervisor.ready:
                try:
                    await self.synchronise()
                except (EngineError, OSError) as error:
                    logger.error("the students are not in step with their folder: %s", error)

    async def synchronise(self) -> None:
        """Serve what the folder holds, and nothing else; raises EngineError if the engine does not answer."""
        async with self.changing:
            wanted, present = students(), set(await self.client.models())
            if self.base not in present:
                raise EngineError(
                    f"it serves {', '.join(sorted(present))}, not {self.base}: start it with --served-model-name "
                    f"{self.base}"
                )
            for name in self.served.keys() - wanted.keys():
                self.mount(name, None)
            for name, folder in wanted.items():
                await self.serve_name(name, folder, present)
            await self.unload(present)
            for name, folder in wanted.items():
                if name in self.served and self.served[name].folder == folder:
                    for old in former(name):
                        if old.name not in present:  # vLLM may read a loaded one again
                            await asyncio.to_thread(shutil.rmtree, old, ignore_errors=True)

    async def unload(self, present: set[str]) -> None:
        """Unload the adapters that no query can be on its way to."""
        unwanted = (self.loaded & present) - {student.classifier.model for student in self.served.values()}
        now = time.monotonic()
        self.unwanted = {model: self.unwanted.get(model, now) for model in unwanted}
        for model, since in self.unwanted.items():
            if now - since > self.settings.timeout_s:
                await unload_adapter(self.client, model)
                logger.info("%s is unloaded", model)

    async def serve_name(self, name: str, folder: Path, present: set[str]) -> None:
        """Serve the student in a folder; if that fails, the one that had its name before."""
        for candidate in (folder, *former(name)):
            try:
                await self.serve_folder(name, candidate, present)
                return
            except Exception as error:  # whatever is wrong with one student, the others are served
                if candidate not in self.logged:
                    logger.error("%s can't be served by %s: %s", name, candidate.name, error)
                self.logged.add(candidate)

    async def serve_folder(self, name: str, folder: Path, present: set[str]) -> None:
        """Load a student's adapter if the engine lacks it, and mount its app once a query has passed."""
        known = self.served.get(name)
        student = (
            known if known and known.folder == folder else await asyncio.to_thread(read_student, name, folder, Vllm())
        )
        if student.classifier.model not in present:
            await load_adapter(self.client, student.classifier.model, student.adapter)
        self.loaded.add(student.classifier.model)
        if student is not known:
            student.classifier.check_trial(await self.client.complete(student.classifier.trial()))
            self.mount(name, student)
            logger.info("%s is served by %s", name, student.classifier.model)

    def mount(self, name: str, student: ManyStudent | None) -> None:
        """Put a student's app in the place of the one under its name, or take that away."""
        routes = [route for route in self.app.router.routes if getattr(route, "name", None) != name]
        self.served.pop(name, None)
        if student:
            classifier = EngineClassifier(student.classifier, self.client)
            service = Service(classifier, self.supervisor, self.settings.queue, self.settings.cached_answers)

            async def to_page(_: Request) -> RedirectResponse:
                return RedirectResponse(f"{name}/")  # relative: it keeps scheme, host and a proxy's path

            routes.append(Route(f"/{name}", to_page, name=name))
            routes.append(Mount(f"/{name}", create_app(service, self.keys), name=name))
            self.served[name] = student
        self.app.router.routes = routes
