"""What a client can do to the service below HTTP's meaning: hang up, stay silent, send without an end, not read."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import requests
import uvicorn
from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from serve.http import server
from serve.http.guard import Guard
from serve.http.server import LimitedProtocol, http_address
from serve.service import ServiceMetrics
from stages.parts.run.machine import free_port
from tests.conftest import ROOT
from tests.serve.shop import ENGINE_KEY, Shop, ended, make_shop, serving, start_engine, stub_counts, until, wait_until

QUERIES = [f"query {number}" for number in range(4)]
BODIES = {
    "classify_intent": {"query": QUERIES[0]},
    "classify_intent/batch": {"queries": QUERIES},
    "v1/chat/completions": {"messages": [{"role": "user", "content": QUERIES[1]}]},
    "v1/chat/completions?stream": {"messages": [{"role": "user", "content": QUERIES[2]}], "stream": True},
}


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def post(url: str, path: str, body: object) -> socket.socket:
    """A connection on which a request was sent, and nothing read."""
    data = json.dumps(body).encode()
    head = f"POST /{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    client = connect(url)
    client.sendall(head.encode() + data)
    return client


def read_all(client: socket.socket) -> bytes:
    """What the other side sends until it closes."""
    received = b""
    try:
        while data := client.recv(2**16):
            received += data
    except ConnectionError:  # it closed while we were still sending
        pass
    return received


def in_flight(url: str) -> float:
    text = requests.get(f"{url}/metrics", timeout=10).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("queries_in_flight "))


@pytest.fixture(scope="module")
def slow_shop(tmp_path_factory) -> Iterator[Shop]:
    """A shop whose engine takes a minute for a query."""
    made = make_shop(tmp_path_factory.mktemp("connections") / "shop", timeout_s=90, queue=12, cached_answers=100)
    with ended(start_engine(made, latency_ms=60_000)):
        yield made


@pytest.fixture(scope="module")
def slow_url(slow_shop) -> Iterator[str]:
    with serving(slow_shop) as address:
        yield address


@pytest.mark.parametrize("path", BODIES)
def test_a_client_that_hangs_up_frees_its_slots_and_cancels_its_queries(slow_shop, slow_url, path):
    slots = len(BODIES[path].get("queries", [1]))
    before = stub_counts(slow_shop)["cancelled"]
    clients = [post(slow_url, path.partition("?")[0], BODIES[path]) for _ in range(12 // slots)]
    until(lambda: in_flight(slow_url) == 12, 10)
    assert requests.post(f"{slow_url}/classify_intent", json={"query": "one more"}, timeout=10).status_code == 429
    for client in clients[1:]:
        client.close()
    until(lambda: in_flight(slow_url) == slots, 2)
    assert stub_counts(slow_shop)["cancelled"] == before, "the first client still waits for the shared prediction"
    clients[0].close()
    until(lambda: in_flight(slow_url) == 0, 2)
    until(lambda: stub_counts(slow_shop)["cancelled"] == before + slots, 2)
    assert "Traceback" not in (slow_shop.folder / "log").read_text()


class Server:
    """A server with the service's protocol around an app, in a thread; its limits may be patched."""

    def __init__(self, app: object, limit: int) -> None:
        config = uvicorn.Config(
            app, port=free_port(), http=LimitedProtocol, ws="none", log_level="error", limit_concurrency=limit,
            lifespan="off", timeout_keep_alive=60,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.url = http_address("127.0.0.1", config.port)
        self.thread = threading.Thread(target=self.server.run)

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)


@contextmanager
def running_server(app: object, limit: int = 1000) -> Iterator[Server]:
    made = Server(app, limit)
    made.thread.start()
    try:
        until(lambda: made.server.started, 10)
        yield made
    finally:
        made.server.should_exit = made.server.force_exit = True
        made.thread.join(10)
        assert not made.thread.is_alive()


async def small_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers before it reads a body, as the service does without a key."""
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


async def large_app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(64):
        await send({"type": "http.response.body", "body": b"x" * 2**20, "more_body": True})
    await send({"type": "http.response.body"})


@pytest.mark.parametrize("requests_sent", [1, 2])
def test_a_mounted_app_is_cancelled_too_and_so_are_pipelined_requests(requests_sent):
    """As `serve.many` mounts one under each student's name."""
    metrics, begun = ServiceMetrics(), threading.Event()

    async def never_answers(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        begun.set()
        await asyncio.sleep(60)

    mounted = Starlette(routes=[Mount("/cards", Guard(never_answers, metrics))])
    with running_server(mounted) as served:
        with connect(served.url) as client:
            client.sendall(b"GET /cards/x HTTP/1.1\r\nHost: x\r\n\r\n" * requests_sent)
            assert begun.wait(5)
        until(lambda: b'status="499"} 1.0' in generate_latest(metrics.registry), 5)
        until(lambda: not served.server.server_state.tasks, 5)


ENDLESS = {
    "one header": (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"x" * 2**14),
    "many headers": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n" * 2**11),
    "the path": (b"GET /", b"x" * 2**14),
    "a name": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"x" * 2**14),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_headers_without_an_end_are_refused(name):
    start_of, more = ENDLESS[name]
    with running_server(small_app) as served, connect(served.url) as client:
        client.sendall(start_of)
        sent = 0
        try:
            while sent < 2**24:
                client.sendall(more)
                sent += len(more)
        except ConnectionError:
            pass
        assert sent < 2**24, "the server still reads"
        until(lambda: served.connections == 0, 5)


@pytest.mark.parametrize("name", ENDLESS)
def test_headers_that_are_too_large_get_a_431(name):
    start_of, more = ENDLESS[name]
    with running_server(small_app) as served, connect(served.url) as client:
        client.sendall(start_of + more * (2**16 // len(more) + 1))
        assert read_all(client).startswith(b"HTTP/1.1 431 ")


def test_headers_of_just_under_the_limit_pass():
    with running_server(small_app) as served:
        headers = {f"X-{number}": "y" * 4000 for number in range(15)}
        assert requests.get(served.url, headers=headers, timeout=10).text == "ok"


def test_trailers_without_an_end_are_cut_off(monkeypatch):
    monkeypatch.setattr(server, "MAX_CHUNKED", 2**18)
    with running_server(small_app) as served, connect(served.url) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: ")
        with pytest.raises(ConnectionError):
            for _ in range(2**10):
                client.sendall(b"x" * 2**14)
        until(lambda: served.connections == 0, 5)


PARTS = {
    "nothing": (b"", b""),
    "half a header": (b"GET / HTTP/1.1\r\nHos", b"HTTP/1.1 408 "),
    "a body after its answer": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx", b"HTTP/1.1 200 "),
    "half a second request": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT", b"HTTP/1.1 200 "),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_client_that_does_not_go_on_is_disconnected(monkeypatch, name):
    monkeypatch.setattr(server, "MAX_HEADERS_S", 0.2)
    monkeypatch.setattr(server, "MAX_BODY_S", 0.2)
    sent, response = PARTS[name]
    with running_server(small_app) as served, connect(served.url) as client:
        client.sendall(sent)
        before = time.monotonic()
        assert read_all(client).startswith(response) and time.monotonic() - before < 5


def test_a_trickle_does_not_keep_a_connection_open(monkeypatch):
    """One byte now and then unsets uvicorn's keep-alive timer, and nothing sets it again."""
    monkeypatch.setattr(server, "MAX_HEADERS_S", 0.3)
    with running_server(small_app) as served, connect(served.url) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: ")
        with pytest.raises(ConnectionError):
            for _ in range(100):
                client.sendall(b"x")
                time.sleep(0.05)


def test_a_client_that_does_not_read_is_disconnected(monkeypatch):
    monkeypatch.setattr(server, "MAX_RESPONSE_S", 0.3)
    with running_server(large_app) as served, connect(served.url) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: served.connections == 1, 5)
        until(lambda: served.connections == 0, 5)


def test_a_response_that_is_read_slowly_arrives_whole(monkeypatch):
    monkeypatch.setattr(server, "MAX_RESPONSE_S", 5)
    with running_server(large_app) as served:
        assert len(requests.get(served.url, timeout=30).content) == 2**26


def test_silent_connections_make_room_and_one_at_work_stays():
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with running_server(small_app, limit=20) as served, connect(served.url) as kept_alive, ExitStack() as stack:
        kept_alive.sendall(request)
        assert kept_alive.recv(2**16).endswith(b"ok")
        for _ in range(60):
            stack.enter_context(connect(served.url))
        until(lambda: served.connections <= 20, 5)
        assert requests.get(served.url, timeout=5).text == "ok"
        kept_alive.sendall(request)
        assert kept_alive.recv(2**16).endswith(b"ok"), "those that never sent a request go first"


@pytest.mark.slow
def test_pipelined_requests_are_answered_in_order():
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.1 if scope["path"] == "/1" else 0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    with running_server(echo) as served, connect(served.url) as client:
        client.sendall(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in (1, 2, 3)))
        received = b""
        while b"/3" not in received:
            received += client.recv(2**16)
        assert received.index(b"/1") < received.index(b"/2") < received.index(b"/3")


@pytest.mark.slow
def test_the_real_service_answers_load_balancers_beside_more_silent_connections_than_it_has_descriptors(tmp_path):
    shop = make_shop(tmp_path / "shop")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))"
    code = f"{limit}; from serve.__main__ import main; main()"
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ENGINE_API_KEY": ENGINE_KEY}
    command = [sys.executable, "-c", code, "--port", str(port)]
    with ended(start_engine(shop)), ExitStack() as stack:
        service = subprocess.Popen(command, cwd=shop.folder, env=environment, text=True)
        stack.enter_context(ended(service))
        url = f"http://127.0.0.1:{port}"
        wait_until(f"{url}/readyz")
        for _ in range(300):
            stack.enter_context(connect(url))
        assert requests.get(f"{url}/healthz", timeout=5).status_code == 200
        answer = requests.post(f"{url}/classify_intent", json={"query": "My card got declined"}, timeout=5)
        assert answer.status_code == 200


@pytest.mark.slow
def test_an_ipv6_host_is_printed_as_a_client_writes_it():
    assert http_address("::1", 8000) == "http://[::1]:8000" and http_address("0.0.0.0", 1) == "http://0.0.0.0:1"
