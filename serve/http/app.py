"""The HTTP app: its routes, and what each failure answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serve.http.chat import chat_router
from serve.http.guard import Guard
from serve.http.keys import KeyCheck
from serve.http.quick_route import quick_route
from serve.schemas import PROBLEMS, BatchRequest, Classification, Classifications, ClassifyRequest
from serve.service import NotReady, Overloaded, Service, TooLarge
from stages.parts.engines.http_client import EngineError, EngineTimeout, QueryRefused
from stages.parts.run.pages import PAGE_HEADERS, filled_template

PAGE = Path(__file__).with_name("page.html")
# Exception -> status, and seconds after which it is worth trying again. The most specific class counts.
FAILURES: dict[type[Exception], tuple[int, int | None]] = {
    NotReady: (503, 5),
    Overloaded: (429, 1),
    TooLarge: (413, None),
    QueryRefused: (413, None),
    EngineTimeout: (504, None),
    EngineError: (503, 1),
}


async def failure(_: Request, error: Exception) -> JSONResponse:
    status, retry_after_s = next(FAILURES[kind] for kind in type(error).__mro__ if kind in FAILURES)
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s else None
    return JSONResponse({"detail": str(error)}, status, headers)


async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    """FastAPI's own answer without the input, which may be private, large, or not valid Unicode."""
    return JSONResponse(
        {"detail": [{key: problem[key] for key in ("loc", "msg", "type")} for problem in error.errors()]}, 422
    )


def query_router(service: Service, keys: KeyCheck) -> APIRouter:
    """The route that nearly all requests take."""

    async def classify_intent(query: ClassifyRequest) -> Response:
        """Classify one query."""
        (answer,) = await service.classify([query.query])
        # ours: FastAPI would check it once more
        return Response(answer.model_dump_json(), media_type="application/json")

    routes = APIRouter(route_class=quick_route(classify_intent, keys))
    routes.post("/classify_intent", responses=PROBLEMS, response_model=Classification)(classify_intent)
    return routes


def intent_router(service: Service, keys: KeyCheck) -> APIRouter:
    """The classifier's other routes."""
    routes = APIRouter(route_class=keys.route())

    @routes.post("/classify_intent/batch", responses=PROBLEMS)
    async def classify_batch(batch: BatchRequest) -> Classifications:
        """Classify many queries: all are answered, or the request fails as a whole."""
        return Classifications(answers=await service.classify(batch.queries))

    @routes.get("/metrics", responses={401: PROBLEMS[401]}, response_class=Response)
    async def metrics() -> Response:
        """Counts and times for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes


def page_for(service: Service, wants_key: bool, examples: Sequence[str]) -> str:
    """The page to try queries on, with what it shows of this service."""
    facts = {"threshold": service.classifier.calibration.threshold, "wants_key": wants_key, "examples": list(examples)}
    return filled_template(PAGE, {"facts": facts})


def health_router(service: Service, page: str) -> APIRouter:
    """What a load balancer asks, and the page: open to whoever can reach the port."""
    routes = APIRouter()

    @routes.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Whether the app runs."""
        return {"status": "up"}

    @routes.get("/readyz", responses={503: PROBLEMS[503]})
    async def readyz() -> dict[str, Any]:
        """Whether the engine answers: a real query has passed through it."""
        if not service.supervisor.ready:
            raise NotReady
        return {"status": "ready"}

    @routes.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def try_it() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    return routes


def create_app(service: Service, keys: Sequence[str], examples: Sequence[str] = ()) -> FastAPI:
    """The app around a service. Queries and metrics need one of `keys`, if there are any; the page offers `examples` to
    click.
    """
    app = FastAPI(
        title="Intent classifier",
        description=(
            "A distilled student behind one call. Confidence is calibrated; below its threshold an answer abstains."
        ),
        version="1",
    )
    for kind in FAILURES:
        app.add_exception_handler(kind, failure)
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    check = KeyCheck(keys)
    with_key = [Depends(check)]
    app.include_router(query_router(service, check), dependencies=with_key)
    app.include_router(intent_router(service, check), dependencies=with_key)
    app.include_router(chat_router(service, check), dependencies=with_key)
    app.include_router(health_router(service, page_for(service, bool(keys), examples)))
    app.add_middleware(Guard, metrics=service.metrics)
    return app
