"""The HTTP app: its routes, and the response to each failure."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import orjson
from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serve.http.chat import chat_router
from serve.http.failures import add_failure_handlers
from serve.http.guard import Guard
from serve.http.keys import KeyCheck
from serve.http.routes import checked_route
from serve.schemas import PROBLEMS, BatchRequest, Classification, Classifications, ClassifyRequest, fields_of
from serve.service import NotReady, Service
from stages.parts.run.pages import PAGE_HEADERS, filled_template

PAGE, TRAFFIC = (Path(__file__).with_name(name) for name in ("page.html", "traffic.html"))


def query_router(service: Service, keys: KeyCheck) -> APIRouter:
    """Make the route that nearly all requests use."""

    async def classify_intent(query: ClassifyRequest) -> Response:
        """Classify one query."""
        (prediction,) = await service.predict([query.query])
        # ours: FastAPI would validate it once more
        return Response(orjson.dumps(fields_of(prediction)), media_type="application/json")

    routes = APIRouter(route_class=checked_route(keys, shortcut=classify_intent))
    routes.post("/classify_intent", responses=PROBLEMS, response_model=Classification)(classify_intent)
    return routes


def intent_router(service: Service, keys: KeyCheck) -> APIRouter:
    """Make the classifier's other routes."""
    routes = APIRouter(route_class=checked_route(keys))

    @routes.post("/classify_intent/batch", responses=PROBLEMS)
    async def classify_batch(batch: BatchRequest) -> Classifications:
        """Classify many queries: all are answered, or the request fails as a whole."""
        predictions = await service.predict(batch.queries)
        return Classifications(answers=[Classification.of(prediction) for prediction in predictions])

    @routes.get("/metrics", responses={401: PROBLEMS[401]}, response_class=Response)
    async def metrics() -> Response:
        """Counts and times for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes


@cache
def page_for(threshold: float | None, wants_key: bool, examples: tuple[str, ...]) -> str:
    """Return the page to try queries on, filled with the student's threshold and examples."""
    facts = {"threshold": threshold, "wants_key": wants_key, "examples": examples}
    return filled_template(PAGE, {"facts": facts})


def health_router(service: Service, wants_key: bool, examples: tuple[str, ...]) -> APIRouter:
    """Make the routes of load balancers, and the pages: open to everybody who can reach the port."""
    routes = APIRouter()

    async def healthz() -> dict[str, str]:
        """Whether the app runs."""
        return {"status": "up"}

    async def readyz() -> dict[str, str]:
        """Whether the engine answers: a real query has passed through it."""
        if not service.backend.ready:
            raise NotReady
        return {"status": "ready"}

    async def try_it() -> HTMLResponse:
        page = page_for(service.classifier.calibration.threshold, wants_key, examples)
        return HTMLResponse(page, headers=PAGE_HEADERS)

    traffic_page = filled_template(TRAFFIC, {"wants_key": wants_key})

    async def traffic() -> HTMLResponse:
        return HTMLResponse(traffic_page, headers=PAGE_HEADERS)  # its figures need the key

    routes.get("/healthz")(healthz)
    routes.get("/readyz", responses={503: PROBLEMS[503]})(readyz)
    for path, page in (("/", try_it), ("/traffic", traffic)):
        routes.get(path, response_class=HTMLResponse, include_in_schema=False)(page)
    # FastAPI, unlike Starlette, makes no HEAD of a GET; some balancers send nothing else
    for path, route in (("/healthz", healthz), ("/readyz", readyz), ("/", try_it)):
        routes.head(path, include_in_schema=False)(route)
    return routes


def create_app(service: Service, keys: Sequence[str], examples: Sequence[str] = ()) -> FastAPI:
    """Create the app around a service. Queries and metrics need one of `keys`, if there are any; the page offers
    `examples` to click.
    """
    app = FastAPI(
        title="Intent classifier",
        description=(
            "A distilled student behind one call. Confidence is calibrated; below its threshold an answer abstains."
        ),
        version="1",
        # A redirect names the scheme that this process sees: behind TLS, http. The body would be sent again in clear.
        redirect_slashes=False,
    )
    add_failure_handlers(app)
    check = KeyCheck(keys)
    with_key = [Depends(check)]
    app.include_router(query_router(service, check), dependencies=with_key)
    app.include_router(intent_router(service, check), dependencies=with_key)
    app.include_router(chat_router(service, check), dependencies=with_key)
    app.include_router(health_router(service, bool(keys), tuple(examples)))
    app.add_middleware(Guard, metrics=service.metrics)
    return app
