"""How engines come to run: as processes of this machine, or as actors of a Ray cluster."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from streamer.cluster.config import EnginesConfig, FleetConfig
from streamer.cluster.processes import began, is_gone, machine
from streamer.config import ConfigError
from streamer.errors import AssistantError
from streamer.logs import about, log_to_stderr

log = logging.getLogger("streamer.fleet")
STARTING_SECONDS = 120.0
NAMESPACE = "streamer"


@dataclass(frozen=True, slots=True)
class Launched:
    """An engine that runs: where, and which of its processes that is."""

    url: str
    incarnation: str
    pid: int
    node: str
    machine: str = ""
    """Where its process is counted, and since when: see `processes`."""
    began: str = ""

    @property
    def gone(self) -> bool:
        """Whether it is certain that its process is no more: that nobody answers proves nothing of another machine's."""
        return is_gone(self.machine, self.pid, self.began)

    @property
    def here(self) -> bool:
        """Whether that can be seen from here."""
        return bool(self.machine) and self.machine == machine()


class Launcher(Protocol):
    """Begins engines, which outlive it."""

    async def start(self, name: str) -> Launched:
        """Begins an engine, or begins it anew. Raises AssistantError: engine_failed."""
        ...

    def close(self) -> None: ...


def launcher(fleet: FleetConfig) -> Launcher:
    """The one that a configuration asks for. Raises ConfigError."""
    return Processes(fleet) if fleet.ray is None else Actors(fleet)


class Processes:
    """Engines as processes of this machine, each the leader of a group of its own; `command` begins one."""

    def __init__(
        self, fleet: FleetConfig, command: Sequence[str] = (sys.executable, "-m", "streamer.cluster.engine")
    ) -> None:
        self._fleet, self._command = fleet.model_dump(mode="json", exclude_unset=True), command
        self._children: list[asyncio.subprocess.Process] = []

    async def start(self, name: str) -> Launched:
        incarnation = secrets.token_hex(8)
        child = await asyncio.create_subprocess_exec(
            *self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._children.append(child)
        assert child.stdin is not None and child.stdout is not None
        told = {"fleet": self._fleet, "name": name, "incarnation": incarnation}
        child.stdin.write(json.dumps(told).encode() + b"\n")
        child.stdin.close()
        try:
            async with asyncio.timeout(STARTING_SECONDS):
                line = json.loads(await child.stdout.readline() or b"null")
        except (TimeoutError, ValueError):
            line = None
        except asyncio.CancelledError:  # nobody would know of it
            with suppress(ProcessLookupError):
                child.kill()
            raise
        if line is None:
            raise AssistantError("engine_failed", f"Engine {name!r} did not start: its output says why.")
        return Launched(line["url"], incarnation, line["pid"], os.uname().nodename, machine(), began(line["pid"]))

    def close(self) -> None:
        """Forgets them; they go on."""


class Actors:
    """Engines as detached actors of Ray, found again by their names after a head's death."""

    def __init__(self, fleet: FleetConfig) -> None:
        """Reaches the cluster, or begins one. Raises ConfigError."""
        try:
            ray = import_module("ray")
        except ModuleNotFoundError:
            raise ConfigError(["ray: is not installed: pip install 'streamer[fleet]', or leave out ray"]) from None
        self._fleet, self._ray = fleet, ray
        assert fleet.ray is not None
        quiet: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if fleet.ray.address == "local":
                cpus = sum(each.cpus for each in fleet.names.values())
                some = {"num_cpus": max(1, round(cpus)), "object_store_memory": 100 * 2**20, "include_dashboard": False}
                ray.init(**quiet, **some)
            else:
                ray.init(address=fleet.ray.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                [f"ray.address: {fleet.ray.address!r} can't be reached ({error}): ray start --head"]
            ) from None

    async def start(self, name: str) -> Launched:
        kind, incarnation = self._fleet.names[name], secrets.token_hex(8)
        told = {
            "fleet": self._fleet.model_dump(mode="json", exclude_unset=True),
            "name": name,
            "incarnation": incarnation,
        }
        lack = ""
        try:
            await asyncio.to_thread(self._end, name)
            lack = missing(kind, await asyncio.to_thread(self._ray.cluster_resources))
            if lack:  # a cluster that grows by itself may begin such a node for it
                log.warning("engine %s waits for a node: %s", name, lack)
            actor = (
                self._ray.remote(Actor)
                .options(name=f"streamer-{name}", lifetime="detached", max_restarts=0, **_wants(kind))
                .remote()
            )
            url, pid, node, place, since = await asyncio.wait_for(
                actor.start.remote(json.dumps(told)), STARTING_SECONDS
            )
        except (self._ray.exceptions.RayError, ValueError, TimeoutError) as error:
            why = lack or (str(error).strip().splitlines()[0] if str(error).strip() else "nothing was heard of it")
            raise AssistantError("engine_failed", f"Engine {name!r} did not start as an actor of Ray: {why}") from None
        return Launched(url, incarnation, pid, node, place, since)

    def _end(self, name: str) -> None:
        """An actor of that name whose process is of no use any more."""
        try:
            self._ray.kill(self._ray.get_actor(f"streamer-{name}"))
        except ValueError:
            return

    def close(self) -> None:
        self._ray.shutdown()


def missing(kind: EnginesConfig, there: Mapping[str, float]) -> str:
    """What no node of a cluster has of that which an engine asks for, and the mend; nothing where all is there in sum."""
    for what, wanted in _wants(kind)["resources"].items():
        if there.get(what, 0.0) < wanted:
            return f"no node of the Ray cluster has the label {what}: there, ray start --resources='{{\"{what}\": 1}}'"
    for name, wanted in (("GPU", kind.gpus), ("CPU", kind.cpus)):
        if there.get(name, 0.0) < wanted:
            return f"{wanted:g} {name}s are asked for, the Ray cluster has {there.get(name, 0.0):g}: start a node, or ask for less"
    return ""


def _wants(kind: EnginesConfig) -> Mapping[str, Any]:
    labels = {f"{key}:{value}": 0.001 for key, value in kind.labels.items()}
    return {"num_cpus": kind.cpus, "num_gpus": kind.gpus, "resources": labels}


class Actor:
    """An engine inside of a Ray worker; all but its start is said over its port, so that Ray carries nothing that a client sent."""

    async def start(self, told: str) -> tuple[str, int, str, str, str]:
        """Takes the port and begins to load the model; returns URL, process id, node, and where and since when that is counted."""
        ray = import_module("ray")
        from streamer.cluster.engine import EngineDaemon

        asked = json.loads(told)
        about(node=ray.util.get_node_ip_address(), engine=asked["name"])
        log_to_stderr()
        if asked["fleet"].get("engine", {}).get("host") == "node":
            asked["fleet"]["engine"]["host"] = ray.util.get_node_ip_address()
        self._daemon = EngineDaemon(FleetConfig.model_validate(asked["fleet"]), asked["name"], asked["incarnation"])
        self._running = asyncio.create_task(self._run())
        while self._daemon.listening is None:
            if self._running.done():
                await self._running
            await asyncio.sleep(0.01)
        node, pid = ray.util.get_node_ip_address(), os.getpid()
        return self._daemon.listening, pid, node, machine(), began(pid)

    async def _run(self) -> None:
        await self._daemon.start()
        await asyncio.wait(
            [asyncio.create_task(self._daemon.failed()), asyncio.create_task(self._daemon.alone())],
            return_when=asyncio.FIRST_COMPLETED,
        )
        await self._daemon.stop()
        os._exit(0)
