"""The server under an app: what a client may do before any handler sees its request, and an end in good order.

uvicorn's parser takes headers of any length, and waits for ever for a client that says nothing. `LimitedProtocol`
closes both, and keeps connections below the number of descriptors that the process may open.
"""

import asyncio
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serve.backend import Backend
from serve.http.guard import MAX_BODY, MAX_BODY_S, HangUp
from stages.parts.engines.errors import EngineError
from stages.parts.run.commands import command
from stages.parts.run.params import Serve

MAX_HEADERS = 2**16  # bytes of request line, headers and trailers together
MAX_HEADERS_S = 10  # from the connection, or a request's first byte, to the end of its headers
MAX_RESPONSE_S = 30  # for a client to read what is waiting for it
MAX_CONNECTIONS = 4096
# longer than load balancers keep idle connections, so that none sends a query into one that is closing
KEEP_ALIVE_S = 75
# A body in many small chunks has more framing than content; this much is let through before the connection is cut.
MAX_CHUNKED = MAX_HEADERS + 4 * MAX_BODY


@contextmanager
def serving_command() -> Iterator[None]:
    """Run a command that serves, with the service's log on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("serve").setLevel(logging.INFO)
    with command("serve", EngineError):
        yield


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection with limits: 64 KiB of headers within 10 s, a body that comes in time even after
    its answer, a response that is read within 30 s.

    When `limit_concurrency` connections are open, the one that has been idle for longest makes room for a new one:
    first those that never sent a request. If all are at work, the new one is closed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deadline: asyncio.TimerHandle | None = None  # for what the client has to send next
        self.read_deadline: asyncio.TimerHandle | None = None  # for the client to read its response
        self.idle_since = self.loop.time()
        self.hang_ups: list[HangUp] = []  # of requests without a whole response; several if they are pipelined
        self.in_headers = False
        self.received = 0  # bytes of the current request
        self.chunk = 0  # bytes that are being parsed
        self.header_bytes = 0  # as parsed: a single read may bring more headers than are allowed, complete ones

    @property
    def idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limit = self.config.limit_concurrency
        if limit is not None and len(self.connections) >= limit:
            others = [cast(LimitedProtocol, other) for other in self.connections if other is not self]
            resting = [other for other in others if other.idle and not other.transport.is_closing()]
            # who never sent a request goes first: (False, oldest)
            chosen = min(resting, key=lambda other: (other.cycle is not None, other.idle_since), default=self)
            chosen.transport.abort()
            self.connections.discard(chosen)  # now: while they are as many as the limit, uvicorn answers 503
        self.expect_within(MAX_HEADERS_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self.expect_within(None)
        if self.read_deadline:
            self.read_deadline.cancel()
        super().connection_lost(exc)
        for hang_up in self.hang_ups:
            hang_up.cancel()

    def expect_within(self, seconds: float | None) -> None:
        """Close the connection unless this is called again within so many seconds; None waits without a limit."""
        if self.deadline:
            self.deadline.cancel()
        self.deadline = self.loop.call_later(seconds, self.give_up) if seconds else None

    def give_up(self) -> None:
        if self.in_headers and self.idle:
            self.refuse(408, "the headers did not come in time")
        else:
            self.transport.close()

    def refuse(self, status: int, reason: str) -> None:
        """Answer in plain text, below any app, and close."""
        body = reason.encode()
        head = f"content-type: text/plain; charset=utf-8\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn answers to bytes that it can't parse; also called for what `on_header` refuses."""
        if not self.idle:
            self.transport.close()  # a response is on its way on this connection: another would be read as a part of it
        elif self.header_bytes > MAX_HEADERS:
            self.refuse(431, f"the headers are larger than {MAX_HEADERS} bytes")
        else:
            self.refuse(400, "this is not HTTP/1.1")

    def data_received(self, data: bytes) -> None:
        self.chunk = len(data)
        self.received += self.chunk
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("")
        if self.transport.is_closing():
            return
        # httptools holds an unfinished header in memory until its end, without a call that could count it
        if self.received > (MAX_HEADERS if self.in_headers else MAX_CHUNKED):
            self.header_bytes = self.received
            self.send_400_response("")

    def _should_upgrade(self) -> bool:
        return True  # keeps uvicorn from starting on a request that offers another protocol

    def decline_upgrade(self, rest: bytes) -> None:
        """Parse a request again without its offer of another protocol. Java's client offers HTTP/2 with every request;
        httptools then skips the body.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.refuse(405, "this is no proxy")
            return
        head = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b"close" if b"close" in value.lower() else b"keep-alive"
            if name not in (b"upgrade", b"http2-settings"):
                head.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join(head) + b"\r\n\r\n" + rest)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.in_headers, self.header_bytes, self.received = True, 0, self.chunk
        self.expect_within(MAX_HEADERS_S)

    def on_url(self, url: bytes) -> None:
        self.count_header(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.count_header(len(name) + len(value))
        super().on_header(name, value)

    def count_header(self, size: int) -> None:
        self.header_bytes += size
        if self.header_bytes > MAX_HEADERS:
            raise ValueError("too many headers")  # httptools turns it into the HttpParserError that uvicorn answers

    def on_headers_complete(self) -> None:
        self.in_headers = False
        # The guard answers 408 when a body is late. This is for one that goes on trickling in after its answer.
        self.expect_within(MAX_BODY_S + MAX_HEADERS_S)
        self.hang_ups.append(HangUp())
        self.scope["extensions"] = {HangUp.EXTENSION: self.hang_ups[-1]}  # type: ignore[dict-item]
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.expect_within(None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.idle_since = self.loop.time()
        if self.hang_ups:
            del self.hang_ups[0]
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.read_deadline = self.loop.call_later(MAX_RESPONSE_S, self.transport.abort)

    def resume_writing(self) -> None:
        if self.read_deadline:
            self.read_deadline.cancel()
        super().resume_writing()


def connection_limit() -> int:
    """How many clients may be connected at a time: as many as leave a descriptor for each one's query to the engine.

    Raises the process's soft limit to its hard one first, as servers do.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2**16 if hard == resource.RLIM_INFINITY else min(hard, 2**16)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return min(MAX_CONNECTIONS, max(16, (most - 64) // 2))


async def listen(app: ASGIApp, backend: Backend, settings: Serve, path: str) -> None:
    """Serve until SIGINT or SIGTERM, then finish the accepted requests and stop the backend. `path` is printed as an
    example of an address. Raises UserError or EngineError if the backend never comes up."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=LimitedProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        root_path=settings.root_path,
        limit_concurrency=connection_limit(),
        timeout_graceful_shutdown=settings.timeout_s,
        timeout_keep_alive=KEEP_ALIVE_S,
        server_header=False,
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(backend.run())
    printing = asyncio.create_task(print_address(backend, server, path))
    running.add_done_callback(lambda _: setattr(server, "should_exit", True))  # the backend never came up
    try:
        await server.serve()
    finally:
        printing.cancel()
        running.cancel()
        backend.stop()
    await asyncio.wait([running])
    if not running.cancelled():
        running.result()  # raises why the backend never came up


async def print_address(backend: Backend, server: uvicorn.Server, path: str) -> None:
    """Print where the service is, once it is ready."""
    await backend.was_ready.wait()
    while not server.started:
        await asyncio.sleep(0.05)
    print(f"serving on {http_address(server.config.host, server.config.port)}{path}", flush=True)


def http_address(host: str, port: int) -> str:
    """The address as a client writes it: an IPv6 host goes into brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
