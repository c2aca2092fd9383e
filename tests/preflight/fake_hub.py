"""A Hugging Face hub on loopback, as far as checks before a download go: file lists, licences, small files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "9213176726f574b556790deb65791e0c5aa438b6"


@dataclass
class Repository:
    """Small files by name, the sizes of large ones, and whether a licence has to be accepted first."""

    files: dict[str, str]
    large: dict[str, int] = field(default_factory=dict)
    gated: bool = False

    def sizes(self) -> dict[str, int]:
        return {file: len(text) for file, text in self.files.items()} | self.large


@contextmanager
def fake_hub(repositories: dict[str, Repository]) -> Iterator[str]:
    """Serve repositories by name, all at COMMIT; yields the address for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/api/models").strip("/")
            name = "/".join(path.split("/")[:2])
            repository = repositories.get(name)
            rest = path.removeprefix(name).strip("/")
            if repository is None:
                self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif rest == f"tree/{COMMIT}":
                files = repository.sizes()
                tree = [{"type": "file", "path": file, "size": size, "oid": "0" * 40} for file, size in files.items()]
                self.answer(200, json.dumps(tree).encode())
            elif rest == f"revision/{COMMIT}":
                files = repository.sizes()
                listed = [{"rfilename": file, "size": size, "blobId": "0" * 40} for file, size in files.items()]
                self.answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": listed}).encode())
            elif repository.gated:
                self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
            elif rest == "auth-check":
                self.answer(200, b"{}")
            elif (file := rest.removeprefix(f"resolve/{COMMIT}/")) in repository.files:
                text = repository.files[file].encode()
                self.answer(200, text, {"ETag": f'"{hash(text)}"', "X-Repo-Commit": COMMIT})
            else:
                self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})

        do_HEAD = do_GET

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
