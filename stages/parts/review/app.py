"""The review's page and its few routes. For loopback alone: it has no keys."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware

from stages.parts.review.desk import Desk
from stages.parts.run.errors import UserError
from stages.parts.run.pages import PAGE_HEADERS, filled_page

PAGE = Path(__file__).with_name("page.html")
OWN_NAMES = ["127.0.0.1", "localhost"]  # a page of another site that points its name here gets nothing


class DecisionRequest(BaseModel):
    id: str
    label: str


class RowRequest(BaseModel):
    id: str


async def refused(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 409)


def create_app(desk: Desk) -> FastAPI:
    """The app around a desk. Changes are JSON, which no other site's form can send."""
    app = FastAPI(title="Review", openapi_url=None)
    app.add_exception_handler(UserError, refused)
    page = filled_page(PAGE, desk.labels)

    @app.get("/", response_class=HTMLResponse)
    async def show() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @app.get("/state")
    async def state() -> dict[str, Any]:
        return desk.state()

    @app.post("/decide")
    async def decide(choice: DecisionRequest) -> dict[str, Any]:
        desk.decide(choice.id, choice.label)
        return desk.state()

    @app.post("/skip")
    async def skip(row: RowRequest) -> dict[str, Any]:
        desk.skip(row.id)
        return desk.state()

    @app.post("/undo")
    async def undo(_: dict[str, Any]) -> dict[str, Any]:
        desk.undo()
        return desk.state()

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=OWN_NAMES)
    return app
