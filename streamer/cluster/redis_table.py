"""A fleet's table in Redis, for a head that may come back on another machine.

The head that has the table knows all of it; Redis has what the next head needs. One head at a time holds `KEY:head`, for `HOLD`
seconds beyond its last word; each change is made by a script that looks first whether it is still held. A head that can't be sure
any more grants no leases, so that nothing goes on twice; where Redis comes back empty, the head that had the table writes it anew.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from streamer.cluster.processes import began, is_gone, machine
from streamer.cluster.table import Owner, TableError

log = logging.getLogger("streamer.fleet")
HOLD = 10.0
"""Seconds that a head has the table without being heard of."""
MARGIN = 1.0
"""Seconds before that at which it is not sure any more: clocks don't run alike."""
RENEW_SECONDS = 1.0
ANSWER_SECONDS = 2.0
OWN_SECONDS = 5.0
"""Within which owners must be kept, before it is tried again."""
KEY = "{streamer}"
"""In braces, so that a cluster of Redis keeps all of it together. A database number keeps fleets apart."""
SCRIPT = """
local held = redis.call('get', KEYS[1])
if held ~= ARGV[1] then return held or '' end
redis.call('pexpire', KEYS[1], ARGV[2])
for _, each in ipairs(cjson.decode(ARGV[3])) do redis.call(unpack(each)) end
return 1
"""
STEAL = """
if (redis.call('get', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[2], 'px', ARGV[3])
return 1
"""
HASHES = ("engines", "streams", "listed", "watches", "known")
Command = list[str]


class RedisTable:
    """See `Table`. All but `own` return at once: what they change is written within moments, or once Redis is there again."""

    def __init__(self, url: str, wait: float = HOLD + 1.0) -> None:
        """Takes the table; waits for a head that is not heard of any more. Raises TableError, also where another head has it."""
        try:
            redis = import_module("redis")
        except ModuleNotFoundError:
            raise TableError("the Redis client is not installed: pip install 'streamer[redis]'") from None
        self._where = shown(url)
        self._fault: type[Exception] = redis.RedisError
        try:
            self._redis = redis.Redis.from_url(
                url, decode_responses=True, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS
            )
        except ValueError as error:
            raise TableError(f"{self._where}: {error}") from None
        self._mine = json.dumps(
            {"machine": machine(), "pid": os.getpid(), "began": began(os.getpid()), "id": secrets.token_hex(8)}
        )
        self._rows: dict[str, dict[str, Any]] = {each: {} for each in HASHES}
        self._epoch = 0
        self._changed = threading.Condition()
        self._waiting: list[Command] = []
        self._written = self._asked = 0
        self._until = float("-inf")
        self._closing, self._told, self.taken = False, False, ""
        try:
            self._take(wait)
            self._read()
        except self._fault as error:
            raise TableError(f"{self._where} can't be used ({_line(error)}): is Redis running there?") from None
        self._writer = threading.Thread(target=self._write_all, name="table", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """See `Table.close`; what waits is written first, if Redis is there."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._writer.join(2 * ANSWER_SECONDS)
        try:
            self._redis.eval(
                "if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end",
                1,
                f"{KEY}:head",
                self._mine,
            )
            self._redis.close()
        except self._fault:
            return  # it runs out by itself

    def holds(self) -> bool:
        return not self.taken and time.monotonic() < self._until

    def engines(self) -> dict[str, dict[str, Any]]:
        return dict(self._rows["engines"])

    def streams(self) -> list[tuple[dict[str, Any], str | None, int]]:
        rows = sorted(self._rows["streams"].values(), key=lambda each: (each["added"], each["config"]["name"]))
        return [(each["config"], each["engine"], each["epoch"]) for each in rows]

    def listed(self) -> set[str]:
        return set(self._rows["listed"])

    def watches(self) -> dict[str, dict[str, Any]]:
        return dict(self._rows["watches"])

    def known(self) -> dict[str, dict[str, Any]]:
        return dict(self._rows["known"])

    @property
    def epoch(self) -> int:
        return self._epoch

    def keep_engine(self, name: str, facts: Mapping[str, Any] | None) -> None:
        self._keep("engines", name, facts)

    def keep_stream(self, config: Mapping[str, Any], listed: bool = False) -> None:
        rows = self._rows["streams"]
        old = rows.get(config["name"], {"engine": None, "epoch": 0, "added": time.time()})
        self._keep("streams", config["name"], {**old, "config": dict(config)})
        self._keep("listed", config["name"], {} if listed else None)

    def drop_stream(self, name: str) -> None:
        for kind in ("streams", "listed", "known"):
            self._keep(kind, name, None)

    def own(self, owners: Iterable[Owner]) -> None:
        with self._changed:
            for stream, engine, epoch in owners:
                self._epoch = max(self._epoch, epoch)
                if (row := self._rows["streams"].get(stream)) is not None:
                    self._put("streams", stream, {**row, "engine": engine, "epoch": epoch})
            self._waiting.append(["set", f"{KEY}:epoch", str(self._epoch)])
            self._asked += 1
            mine = self._asked
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._written >= mine or self.taken, OWN_SECONDS) or self.taken:
                raise TableError(self.taken or f"{self._where} does not answer")

    def keep_watch(self, name: str, config: Mapping[str, Any] | None) -> None:
        self._keep("watches", name, config)

    def know(self, states: Mapping[str, Any]) -> None:
        for stream, each in states.items():
            self._keep("known", stream, each)

    def _keep(self, kind: str, name: str, row: Mapping[str, Any] | None) -> None:
        with self._changed:
            self._put(kind, name, row)
            self._asked += 1
            self._changed.notify_all()

    def _put(self, kind: str, name: str, row: Mapping[str, Any] | None) -> None:
        """The lock is held."""
        if row is None:
            self._rows[kind].pop(name, None)
            self._waiting.append(["hdel", f"{KEY}:{kind}", name])
        else:
            self._rows[kind][name] = dict(row)
            self._waiting.append(["hset", f"{KEY}:{kind}", name, json.dumps(row)])

    # Who has it

    def _take(self, wait: float) -> None:
        """Takes the table where nobody has it: a head that is gone leaves it at once, one on another machine after `HOLD`."""
        end = time.monotonic() + wait
        while True:
            asked = time.monotonic()
            held = self._redis.get(f"{KEY}:head") or ""
            if (not held or gone(held)) and self._redis.eval(
                STEAL, 1, f"{KEY}:head", held, self._mine, int(HOLD * 1000)
            ):
                self._until = asked + HOLD - MARGIN
                return
            if asked > end:
                raise TableError(f"{self._where}: {_who(held)} has it: stop that one, or name another")
            time.sleep(0.2)

    def _read(self) -> None:
        for kind in HASHES:
            self._rows[kind] = {name: json.loads(row) for name, row in self._redis.hgetall(f"{KEY}:{kind}").items()}
        self._epoch = max(
            [int(self._redis.get(f"{KEY}:epoch") or 0), *(each["epoch"] for each in self._rows["streams"].values())]
        )

    def _write_all(self) -> None:
        """The writer's thread: writes what waits, and holds the table, until it is closed or another head has it."""
        while not self.taken:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing, RENEW_SECONDS)
                work, self._waiting = self._waiting, []
                upto, closing = self._asked, self._closing
            if not self._written_now(work, upto):
                with self._changed:
                    self._waiting = work + self._waiting
                if closing:
                    return
                time.sleep(0.1)
            elif closing:
                return

    def _written_now(self, work: list[Command], upto: int) -> bool:
        asked = time.monotonic()
        try:
            held = self._said(work)
            if held == "":  # it is empty, or this head was silent for too long and nobody came
                log.warning("%s has lost that this head has the table: all of it is written anew", self._where)
                if self._redis.set(f"{KEY}:head", self._mine, nx=True, px=int(HOLD * 1000)):
                    held = self._said(self._whole())
                else:
                    held = self._redis.get(f"{KEY}:head") or ""
        except self._fault as error:
            if not self._told:
                log.error("the table at %s can't be written: %s", self._where, _line(error))
            self._told = True
            return False
        if self._told:
            log.warning("the table at %s can be written again", self._where)
        self._told = False
        with self._changed:
            if held == 1:
                self._until, self._written = asked + HOLD - MARGIN, max(self._written, upto)
            elif held:
                self.taken = f"{_who(str(held))} has the table at {self._where}"
            self._changed.notify_all()
        return bool(held == 1)

    def _said(self, work: list[Command]) -> Any:
        return self._redis.eval(SCRIPT, 1, f"{KEY}:head", self._mine, int(HOLD * 1000), json.dumps(work))

    def _whole(self) -> list[Command]:
        with self._changed:
            out: list[Command] = [
                ["del", *(f"{KEY}:{kind}" for kind in HASHES)],
                ["set", f"{KEY}:epoch", str(self._epoch)],
            ]
            for kind, rows in self._rows.items():
                out += [["hset", f"{KEY}:{kind}", name, json.dumps(row)] for name, row in rows.items()]
            return out


def shown(url: str) -> str:
    """An address without its password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def gone(held: str) -> bool:
    """Whether the head that holds the table was a process of this machine's, and is no more."""
    try:
        told = json.loads(held)
        return is_gone(told["machine"], int(told["pid"]), told["began"])
    except (ValueError, KeyError, TypeError):
        return False


def _who(held: str) -> str:
    try:
        told = json.loads(held)
        return f"another head (process {told['pid']} on {str(told['machine']).partition(' ')[0] or 'another machine'})"
    except (ValueError, KeyError, TypeError):
        return "another head"


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
