"""The page's files, with headers that keep it to its own origin; and what this machine is called."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope as ASGIScope

from streamer.server.addresses import misplaced

WEB = Path(__file__).parent.parent / "web"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Page(StaticFiles):
    """Static files with headers that keep a page to its own origin; and what is said where nothing is."""

    async def get_response(self, path: str, scope: ASGIScope) -> Response:
        """See `StaticFiles.get_response`."""
        try:
            _, found = await asyncio.to_thread(self.lookup_path, path)
        except (OSError, ValueError):  # of a name that no file can have
            found = None
        if found is None:
            raise misplaced(scope, scope["app"].routes)
        return await super().get_response(path, scope)

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: ASGIScope, status_code: int = 200
    ) -> Response:
        """See `StaticFiles.file_response`."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(PAGE_HEADERS)
        return response


def own_names(host: str) -> list[str]:
    """What this machine is called: where it listens, its own name, and that name as its network spells it (mDNS)."""
    name = socket.gethostname()
    return [host, name, f"{name.partition('.')[0]}.local"]
