"""A Hugging Face hub on loopback that serves folders as repositories: what `snapshot_download` asks, and no more."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(repositories: Mapping[str, Path]) -> Iterator[str]:
    """Serves each repository's folder; gives the endpoint's URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            named = re.match(r"(?:/api/models)?/([^/]+/[^/]+)", path)
            repository = named[1] if named else ""
            folder = repositories.get(repository)
            if folder is None:
                self.reply(404, b"{}", body)
                return
            file = folder / path.rpartition("/")[2]
            listing = [{"rfilename": found.name} for found in sorted(folder.iterdir())]
            tree = [
                {"type": "file", "path": found.name, "size": found.stat().st_size, "oid": COMMIT}
                for found in sorted(folder.iterdir())
            ]
            if path.startswith(f"/api/models/{repository}/tree/"):
                self.reply(200, json.dumps(tree).encode(), body)
            elif path.startswith(f"/api/models/{repository}"):
                self.reply(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": listing}).encode(), body)
            elif path.startswith(f"/{repository}/resolve/") and file.is_file():
                self.reply(200, file.read_bytes(), body)
            else:
                self.reply(404, b"{}", body)

        def reply(self, status: int, content: bytes, body: bool) -> None:
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
