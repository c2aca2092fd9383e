"""The response to each failure: `{"detail": ...}`, and below /v1 the form that OpenAI's clients read."""

from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from serve.service import BlankQuery, NotReady, Overloaded, TooLarge
from stages.parts.engines.errors import EngineError, EngineTimeout, QueryRefused

# Exception -> status, and seconds after which it is worth trying again. The most specific class counts.
FAILURES: dict[type[Exception], tuple[int, int | None]] = {
    NotReady: (503, 5),
    Overloaded: (429, 1),
    TooLarge: (413, None),
    QueryRefused: (413, None),
    EngineTimeout: (504, None),
    EngineError: (503, 1),
}
# Status -> OpenAI's `type` and `code`; other 4xx are an invalid_request_error without a code, 5xx a server_error.
OPENAI_CODES = {
    401: ("authentication_error", "invalid_api_key"),
    404: ("invalid_request_error", "not_found"),
    413: ("invalid_request_error", "context_length_exceeded"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


class Unsupported(HTTPException):
    """A parameter of OpenAI's request that would change the answer, and that this service can't honour."""

    def __init__(self, param: str, why: str, status: int = 400) -> None:
        super().__init__(status, f"{param}: {why}")
        self.param = param


def openai_error(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """Return the body of an error in OpenAI's form."""
    kind, code = OPENAI_CODES.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def is_openai(request: Request) -> bool:
    """Whether a request is below /v1, of this app or of one that is mounted under a student's name."""
    return str(request.scope["path"]).removeprefix(request.scope.get("root_path", "")).startswith("/v1/")


def problem(
    request: Request, status: int, detail: str, headers: dict[str, str] | None = None, param: str | None = None
) -> JSONResponse:
    """Return the response for one failure, in the form of the route that it came from."""
    body = openai_error(status, detail, param) if is_openai(request) else {"detail": detail}
    return JSONResponse(body, status, headers)


async def known_failure(request: Request, error: Exception) -> JSONResponse:
    """Answer one of FAILURES."""
    status, retry_after_s = next(FAILURES[kind] for kind in type(error).__mro__ if kind in FAILURES)
    return problem(request, status, str(error), {"Retry-After": str(retry_after_s)} if retry_after_s else None)


async def http_failure(request: Request, error: Exception) -> JSONResponse:
    """Answer what a route, or the framework, raised with a status: 401, 404, 405, 408, 413, 415, ..."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    return problem(request, error.status_code, str(error.detail), headers, getattr(error, "param", None))


async def invalid_request(request: Request, error: Exception) -> JSONResponse:
    """Answer what does not fit the schema, without the input, which may be private, large, or not valid Unicode."""
    assert isinstance(error, RequestValidationError)
    problems: Sequence[dict[str, Any]] = error.errors()
    if is_openai(request):
        first = problems[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body") or None
        return problem(request, 400, f"{param or 'the body'}: {first['msg']}", param=param)
    return JSONResponse({"detail": [{key: each[key] for key in ("loc", "msg", "type")} for each in problems]}, 422)


async def blank_query(request: Request, error: Exception) -> JSONResponse:
    """Answer a query with nothing to read, as FastAPI would answer one that is too short."""
    assert isinstance(error, BlankQuery)
    if is_openai(request):
        return problem(request, 422, f"the last user message: {error}", param="messages")
    loc = ["body", "query"] if error.number is None else ["body", "queries", error.number]
    return JSONResponse({"detail": [{"loc": loc, "msg": str(error), "type": "blank"}]}, 422)


async def unforeseen(request: Request, _: Exception) -> JSONResponse:
    """Answer a fault of our own. The traceback goes to the log."""
    return problem(request, 500, "internal error: the service's log says more")


def add_failure_handlers(app: Starlette) -> None:
    """Register all of the above with an app."""
    for kind in FAILURES:
        app.add_exception_handler(kind, known_failure)
    app.add_exception_handler(HTTPException, http_failure)
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_exception_handler(BlankQuery, blank_query)
    app.add_exception_handler(Exception, unforeseen)
