"""Review the rows that the teacher may have labelled wrongly, in a browser; the next `dvc repro` learns the decisions.

python -m stages.parts.review [--rows 100] [--port 8010]

The page is for loopback alone: it has no keys.
"""

import argparse
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware

from stages.parts.review.desk import Desk
from stages.parts.review.queue import rows_to_review
from stages.parts.run import paths
from stages.parts.run.commands import command
from stages.parts.run.errors import UserError
from stages.parts.run.files import read_json
from stages.parts.run.machine import check_port
from stages.parts.run.pages import PAGE_HEADERS, filled_template
from stages.parts.run.params import load_params

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page.html")


class DecisionRequest(BaseModel):
    id: str
    label: str


class RowRequest(BaseModel):
    id: str


async def conflict(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 409)


def create_app(desk: Desk) -> FastAPI:
    """Return the app around a desk. Changes are JSON, which no other site's form can send."""
    app = FastAPI(title="Review", openapi_url=None)
    app.add_exception_handler(UserError, conflict)
    # A page of another site whose name is made to point here is refused.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    page = filled_template(PAGE, {"labels": desk.labels})

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

    return app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.parts.review", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100, help="rows to review (default: 100)")
    parser.add_argument("--port", type=int, default=8010, help=f"on {HOST} (default: 8010)")
    given = parser.parse_args()
    with command("review"):
        check_port(given.port, HOST)
        desk = Desk(rows_to_review(load_params(), given.rows), read_json(paths.LABELS), paths.DECISIONS)
    print(
        f"review {len(desk.waiting)} rows on http://{HOST}:{given.port}; Ctrl-C ends it, decisions are in "
        f"{paths.DECISIONS}",
        flush=True,
    )
    uvicorn.run(create_app(desk), host=HOST, port=given.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
