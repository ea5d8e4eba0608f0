"""Gateways beside the head: each follows what it decides, has engines asked by itself, and brings it what visitors want changed."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from protocols.fields import read_object
from streamer.cluster.config import FleetConfig
from streamer.cluster.directory import Directory
from streamer.cluster.launch import Launched
from streamer.cluster.passes import gateway_pass, is_gateway
from streamer.cluster.placement import Placed, Placement
from streamer.cluster.room import Costs, Engine, Wish
from streamer.config import ConfigError, parse_config
from streamer.errors import AssistantError
from streamer.server.bodies import read_body
from streamer.server.errors import RequestError
from streamer.watch_config import WatchConfig

log = logging.getLogger("streamer.fleet")
STATE, DO = "/fleet/state", "/fleet/do"
LOOK_SECONDS = 1.0
"""How long a gateway waits for something to have changed before it is told what there is all the same."""
PATIENCE = 5.0


class Leading:
    """The head's doors for its gateways, who show the fleet's secret."""

    def __init__(self, head: Directory) -> None:
        self._head = head

    def routes(self) -> list[Route]:
        return [Route(STATE, self.state), Route(DO, self.do, methods=["POST"])]

    async def state(self, request: Request) -> Response:
        """What there is, once it has changed or a second has passed."""
        self._admit(request)
        if "now" not in request.query_params:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._head.orders.changed.wait(), LOOK_SECONDS)
        head, confirmed = self._head, self._head.orders.confirmed
        streams = [
            {"config": head.configs[each.name].model_dump(mode="json", exclude_unset=True), "state": each.state, "engine": each.engine,
             "epoch": each.epoch, "why": each.why, "priority": each.wish.priority, "confirmed": confirmed.get(each.name)}
            for each in head.placement.streams.values()
            if each.name in head.configs
        ]  # fmt: skip
        at = {
            name: None if (at := known.at) is None else [at.url, at.incarnation, at.pid, at.node]
            for name, known in head.engines.items()
        }
        watches = [each.model_dump(mode="json", exclude_unset=True) for each in head.watches.values()]
        return JSONResponse({"view": head.view(), "at": at, "streams": streams, "watches": watches})

    async def do(self, request: Request) -> Response:
        self._admit(request)
        told = read_object(await read_body(request))
        try:
            await self._head.do(str(told["what"]), told["told"])
        except (KeyError, TypeError, ConfigError) as error:
            raise AssistantError("bad_option", f"The head can't do that: {error}.") from None
        return JSONResponse({})

    def _admit(self, request: Request) -> None:
        if not is_gateway(self._head.secret, request.headers.get("authorization", "")):
            raise RequestError("unauthorized", "Only a gateway of the fleet may say this, with its secret.")


class Moves:
    """See `Changes`."""

    def __init__(self) -> None:
        self.confirmed: dict[str, int] = {}
        self.moved: deque[dict[str, Any]] = deque()
        self.changed = asyncio.Event()


class Follower(Directory):
    """What a gateway knows of the fleet, from the head at `url`; while that is away, what it knew last."""

    def __init__(self, fleet: FleetConfig, url: str) -> None:
        """Raises ConfigError."""
        super().__init__(fleet)
        self.url = url.rstrip("/")
        self.placement, self.orders = Placement(fleet.lease), Moves()
        self._view: dict[str, Any] = {"engines": [], "streams": [], "moves": 0, "moved": []}
        context = ssl.create_default_context()
        if fleet.server.certificate is not None:  # which the head may have signed by itself
            context.load_verify_locations(fleet.server.certificate)
        self._asking = httpx.AsyncClient(timeout=PATIENCE, trust_env=False, verify=context)
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """See `Directory.start`; a head that is not there yet is waited for."""
        self._following = asyncio.create_task(self._follow())

    async def stop(self, *, end: bool) -> None:
        """See `Directory.stop`; engines are the head's."""
        if self._following is not None:
            self._following.cancel()
        await self.client.aclose()
        await self._asking.aclose()

    def view(self) -> dict[str, Any]:
        """See `Directory.view`."""
        return self._view

    async def do(self, what: str, told: Mapping[str, Any]) -> None:
        """See `Directory.do`. Raises AssistantError: not_ready, where the head does not answer."""
        try:
            reply = await self._asking.post(self.url + DO, json={"what": what, "told": told}, headers=self._pass())
            found = reply.json()
        except (httpx.HTTPError, ValueError) as error:
            raise AssistantError(
                "not_ready", f"The fleet's head does not answer at {self.url} ({type(error).__name__}): try again."
            ) from None
        if reply.is_error:
            raise AssistantError(found["error"]["code"], found["error"]["message"])
        await self._look("?now")

    async def _follow(self) -> None:
        told = ""
        while True:
            try:
                await self._look("" if self.configs or self._view["engines"] else "?now")
                told = ""
            except (httpx.HTTPError, ValueError, KeyError) as error:
                why = f"{error or type(error).__name__}"
                if why != told:
                    log.error("the fleet's head does not answer at %s: %s", self.url, why)
                    for known in self.engines.values():
                        known.trouble = f"the fleet's head does not answer at {self.url}"
                told = why
                await asyncio.sleep(0.2)

    async def _look(self, query: str) -> None:
        reply = await self._asking.get(f"{self.url}{STATE}{query}", headers=self._pass())
        if reply.is_error:
            raise ValueError(reply.json()["error"]["message"])
        self._take(reply.json())

    def _take(self, state: Mapping[str, Any]) -> None:
        now, old = time.monotonic(), {name: (known.at, known.trouble) for name, known in self.engines.items()}
        before = dict(self.orders.confirmed)
        self._view = dict(state["view"])
        self.placement.room.engines.clear()
        for each in self._view["engines"]:
            if (known := self.engines.get(each["name"])) is None:
                continue
            at = state["at"][each["name"]]
            known.trouble = each["trouble"]
            if at is None or known.at is None or known.at.incarnation != at[1]:
                known.at = None if at is None else Launched(*at)
            if each["state"] != "down":
                engine = Engine(each["name"], Costs(each["frame_ms"]), each["slots"], until=now)
                engine.draining = each["state"] == "draining"
                engine._load = each["load"] * 1000
                self.placement.room.engines[each["name"]] = engine
        configs = parse_config({"streams": [each["config"] for each in state["streams"]]}, "the head's streams").streams
        self.configs = {each.name: each for each in configs}
        self.placement.streams, self.orders.confirmed = {}, {}
        for config, each in zip(configs, state["streams"], strict=True):
            placed = Placed(
                Wish(config.name, 0.0, priority=each["priority"]), now, each["state"], each["engine"], each["epoch"]
            )
            placed.why = each["why"]
            self.placement.streams[config.name] = placed
            if each["confirmed"] is not None:
                self.orders.confirmed[config.name] = each["confirmed"]
        self.watches = {each["name"]: WatchConfig.model_validate(each) for each in state["watches"]}
        self.orders.moved = deque(self._view["moved"])
        if before != self.orders.confirmed or old != {n: (k.at, k.trouble) for n, k in self.engines.items()}:
            self.orders.changed.set()
            self.orders.changed = asyncio.Event()

    def _pass(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {gateway_pass(self.secret)}"}
