"""Routes that look at a request's headers before they read its body, and a way that is shorter than FastAPI's."""

from collections.abc import Awaitable, Callable

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError

from serve.http.keys import KeyCheck
from serve.schemas import ClassifyRequest

Handler = Callable[[Request], Awaitable[Response]]


def check_headers(request: Request) -> None:
    """Raise HTTPException, with the header's name, for a body that is not plain JSON. FastAPI would parse it as
    something else and complain about the fields that it then lacks.
    """
    if request.method != "POST":
        return
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        got = f"not {given[:50]!r}" if given else "and the request has none"
        raise HTTPException(415, f"the header Content-Type must be application/json, {got}")
    if (coding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise HTTPException(415, f"the header Content-Encoding must be left out, not {coding[:50]!r}")


def checked_route(
    keys: KeyCheck, shortcut: Callable[[ClassifyRequest], Awaitable[Response]] | None = None
) -> type[APIRoute]:
    """Make a class for routes that check key and headers first: FastAPI reads the body before any dependency.

    With a `shortcut`, a valid ClassifyRequest goes straight to it, past FastAPI's dependencies and validators, which
    cost more than reading the engine's answer. Everything else takes FastAPI's way and gets its error messages. See
    FastAPI's "Custom Request and APIRoute class".
    """

    class CheckedRoute(APIRoute):
        def get_route_handler(self) -> Handler:  # type: ignore[override]
            thorough: Handler = super().get_route_handler()

            async def handle(request: Request) -> Response:
                keys.check(request)
                check_headers(request)
                if shortcut and request.headers["content-type"] == "application/json":
                    try:
                        query = ClassifyRequest.model_validate_json(await request.body())
                    except ValidationError:
                        return await thorough(request)
                    return await shortcut(query)
                return await thorough(request)

            return handle

    return CheckedRoute
