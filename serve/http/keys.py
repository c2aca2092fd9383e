"""API keys: from the environment, compared in constant time, required if others can reach the service."""

import hmac
import ipaddress
import os
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param

from stages.parts.run.errors import UserError

VARIABLE = "SERVE_API_KEYS"
SHORTEST = 16  # characters
bearer = HTTPBearer(auto_error=False, description=f"One of the keys in {VARIABLE}; not needed if that is empty.")


def read_keys(host: str) -> list[str]:
    """Read the keys of SERVE_API_KEYS, separated by commas; raises UserError if the service needs some and has none, or
    if one is weak.
    """
    keys = [key.strip() for key in os.environ.get(VARIABLE, "").split(",") if key.strip()]
    if not keys and not is_loopback(host):
        raise UserError(
            f"others can reach {host}: set {VARIABLE} to one or more keys, separated by commas, or serve on 127.0.0.1"
        )
    if any(len(key) < SHORTEST or not key.isascii() for key in keys):
        raise UserError(
            f"a key in {VARIABLE} is not ASCII or shorter than {SHORTEST} characters: make one with `openssl rand "
            f"-hex 24`"
        )
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class KeyCheck:
    """A FastAPI dependency that lets a request pass if it has one of the keys, or if there are no keys."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = [key.encode() for key in keys]

    async def __call__(
        self, _: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)], request: Request
    ) -> None:
        self.check(request)

    def check(self, request: Request) -> None:
        """Raise HTTPException unless the request may pass."""
        scheme, given = get_authorization_scheme_param(request.headers.get("authorization"))
        # every key is compared: the time taken must not depend on which one matches
        matches = [hmac.compare_digest(given.encode(), key) for key in self.keys]
        if self.keys and not (scheme.lower() == "bearer" and any(matches)):
            raise HTTPException(
                401, "a valid API key is needed: Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"}
            )
