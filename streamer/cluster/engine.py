"""One engine of a fleet: a daemon whose streams are given to it. `python -m streamer.cluster.engine` runs one, told by stdin."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from protocols.fields import read_object
from streamer.cluster.alike import streamer_version
from streamer.cluster.config import FleetConfig
from streamer.cluster.depot import depot
from streamer.cluster.holder import Holder
from streamer.cluster.passes import HEAD, audience, link_key
from streamer.config import ServerConfig
from streamer.daemon import Daemon
from streamer.logs import about, output_aside
from streamer.server.bodies import read_body
from streamer.server.errors import RequestError
from streamer.server.listening import DaemonError

ALONE_SECONDS = 600.0
"""An engine that has heard of no head for so long ends."""


class EngineDaemon(Daemon):
    """A daemon with the routes by which the head orders it about."""

    def __init__(self, fleet: FleetConfig, name: str, incarnation: str) -> None:
        """Raises ConfigError and OSError."""
        self.depot = depot(fleet.folder)
        super().__init__(fleet.daemon(name, audience(name, incarnation), self.depot.folder(name)))
        self.name, self.incarnation = name, incarnation
        self.assistant.watches.key = link_key(fleet.secret())
        self.holder = Holder(self.assistant, name, fleet.lease, self.depot)
        self.heard = time.monotonic()
        self.ended = asyncio.Event()
        self._app.router.routes[:0] = [
            Route("/fleet/hello", self.hello, methods=["POST"]),
            Route("/fleet/lease", self.lease, methods=["POST"]),
            Route("/fleet/own", self.own, methods=["POST"]),
            Route("/fleet/prepare", self.prepare, methods=["POST"]),
            Route("/fleet/release", self.release, methods=["POST"]),
            Route("/fleet/end", self.end, methods=["POST"]),
        ]

    async def start(self) -> str:
        """See `Daemon.start`."""
        self.holder.begin()
        return await super().start()

    def address(self, server: ServerConfig) -> str:
        """See `Daemon.address`: others reach the gateway alone."""
        return server.public_url or server.root_path

    async def stop(self) -> None:
        """See `Daemon.stop`."""
        await self.holder.stop()
        await super().stop()

    async def hello(self, request: Request) -> Response:
        """Who this is."""
        await self._order(request)
        assistant = self.assistant
        try:
            probe = await asyncio.to_thread(self.depot.probe)
        except OSError as error:
            probe = str(error)
        return JSONResponse(
            {
                "name": self.name,
                "version": streamer_version(),
                "probe": probe,
                "wall": time.time(),
                "model": assistant.model.name if assistant.ready else None,
                "fingerprint": assistant.model.fingerprint if assistant.ready else None,
                "trained": assistant.model.trained if assistant.ready else None,
            }
        )

    async def lease(self, request: Request) -> Response:
        told = await self._order(request)
        self.heard = time.monotonic()
        return JSONResponse(await self.holder.renew(told.get("until"), told.get("watches")))

    async def own(self, request: Request) -> Response:
        told = await self._order(request)
        return JSONResponse(await self.holder.own(told["stream"], told["epoch"], told["before"], told["watched"]))

    async def prepare(self, request: Request) -> Response:
        told = await self._order(request)
        return JSONResponse(await self.holder.prepare(told["stream"]))

    async def release(self, request: Request) -> Response:
        told = await self._order(request)
        return JSONResponse(await self.holder.release(told["stream"], told["epoch"], forget=told["forget"]))

    async def end(self, request: Request) -> Response:
        await self._order(request)
        self.ended.set()
        return Response(status_code=204)

    async def _order(self, request: Request) -> dict[str, Any]:
        """What the head sent. Raises RequestError: forbidden for anybody else."""
        address = request.client.host if request.client else "unknown"
        visitor = self._app.state.routes.gate.admit(request.headers, address)
        if visitor.name != HEAD:
            raise RequestError("forbidden", "Only the head of the fleet may say this.")
        return read_object(await read_body(request) or b"{}")

    async def alone(self) -> None:
        """Returns when the head says so, or has been silent for too long."""
        while time.monotonic() - self.heard < ALONE_SECONDS:
            try:
                await asyncio.wait_for(self.ended.wait(), 5.0)
            except TimeoutError:
                continue
            return


async def run(told: dict[str, Any]) -> int:
    """Serves until the head is done with it; the first line of stdout says where."""
    try:
        daemon = EngineDaemon(FleetConfig.model_validate(told["fleet"]), told["name"], told["incarnation"])
        starting = asyncio.create_task(daemon.start())
        while daemon.listening is None and not starting.done():
            await asyncio.sleep(0.01)
        if daemon.listening is not None:
            print(json.dumps({"url": daemon.listening, "pid": os.getpid()}), flush=True)
        await starting
    except (DaemonError, OSError, ValueError) as error:
        print(f"streamer: engine {told['name']}: {error}", file=sys.stderr)
        return 1
    failing, alone = asyncio.create_task(daemon.failed()), asyncio.create_task(daemon.alone())
    await asyncio.wait([failing, alone], return_when=asyncio.FIRST_COMPLETED)
    await daemon.stop()
    for task in (failing, alone):
        task.cancel()
    return 0


def main() -> int:
    told = json.loads(sys.stdin.readline())
    about(node=os.uname().nodename, engine=told["name"])
    with output_aside():
        code = asyncio.run(run(told))
    if any(thread.name == "engine" for thread in threading.enumerate()):
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
