"""A Hugging Face hub on loopback that serves one folder as one repository: what `snapshot_download` asks, and no more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(repository: str, folder: Path) -> Iterator[str]:
    """Serves `folder` as `repository`; gives the endpoint's URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            file = folder / path.rpartition("/")[2]
            listing = [{"rfilename": found.name} for found in sorted(folder.iterdir())]
            tree = [
                {"type": "file", "path": found.name, "size": found.stat().st_size, "oid": COMMIT}
                for found in sorted(folder.iterdir())
            ]
            if path.startswith(f"/api/models/{repository}/tree/"):
                status, content = 200, json.dumps(tree).encode()
            elif path.startswith(f"/api/models/{repository}"):
                status, content = 200, json.dumps({"id": repository, "sha": COMMIT, "siblings": listing}).encode()
            elif path.startswith(f"/{repository}/resolve/") and file.is_file():
                status, content = 200, file.read_bytes()
            else:
                status, content = 404, b"{}"
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
