"""Start, run and stop: one process, one port, one engine."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from tqdm import tqdm

from model import ConfigError as ModelConfigError
from model.checkpoint import CheckpointError
from streamer.assistant import Assistant
from streamer.config import Config, ConfigError, ServerConfig
from streamer.errors import AssistantError
from streamer.logs import output_aside
from streamer.outputs.feed import KEPT
from streamer.outputs.outputs import Outputs
from streamer.prompt import default_sampling
from streamer.reload import SERVER_FIXED
from streamer.server.app import close_connections, create_app
from streamer.server.listening import DaemonError, Server, listen, server_options, url_of
from streamer.server.tokens import known_tokens, signed_tokens
from streamer.systemd import notify, watchdog_seconds
from streamer.watches.watches import Watches

log = logging.getLogger("streamer")
REVOKE_SECONDS = 1.0
"""How late what an expired token opened is closed."""


class Daemon:
    """An assistant behind its port. Everything lives on the event loop that calls `start`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.assistant = Assistant(config, _progress_bar())
        self.outputs = Outputs(config.outputs)
        join(self.assistant.watches, self.outputs)
        self._app = create_app(self.assistant, config, self.outputs)
        self._server = Server(uvicorn.Config(self._app, lifespan="off", **server_options(config)))
        self._serving: asyncio.Task[None] | None = None
        self._revoking: asyncio.Task[None] | None = None
        self._capacity = 0.0
        self._more_slots: int | None = None
        self.listening: str | None = None
        """The URL, as soon as the port is taken."""

    async def start(self) -> str:
        """Takes the port and serves, unready at first; loads the model and opens the streams. Returns the URL.

        Raises DaemonError.
        """
        listener, engine = listen(self.config.server), self.assistant.engine
        self.listening = url_of(listener, self.config.server)
        self.assistant.watches.links.address = address = self.address(self.config.server)
        if self.config.outputs.all and "://" not in address:
            log.warning(
                "links in events are paths, as nobody says where others reach this daemon: set server.public_url"
            )
        self._serving = asyncio.create_task(self._server.serve([listener]))
        self._revoking = asyncio.create_task(self._revoke_expired())
        try:
            await self.assistant.start()
            told = await self.assistant.watches.kept.after("", KEPT, newest=True)
            for event in told:
                del event["feedback"]  # what was said of it since is no part of what was told
            told = [self.assistant.watches.links.of(event) for event in told]
            await self.outputs.start(None if self.assistant.keeper is None else self.assistant.keeper.store, told)
            self._capacity, _ = await asyncio.wrap_future(engine.load())
            self._more_slots = await asyncio.wrap_future(engine.call(lambda: engine.runner.more_slots))
        except (AssistantError, CheckpointError, ModelConfigError) as error:
            await self.stop()
            raise DaemonError(str(error)) from None
        except BaseException:
            await self.stop()
            raise
        return self.listening

    def address(self, server: ServerConfig) -> str:
        """What links in events begin with: where others reach the daemon, as far as that is known, or else a proxy's prefix."""
        if server.public_url is not None:
            return server.public_url
        found = urlsplit(self.listening or "")
        if server.root_path or server.proxies or not found.hostname or ip_address(found.hostname).is_unspecified:
            return server.root_path
        # As it is configured: a certificate is of a name.
        host = f"[{server.host}]" if ":" in server.host else server.host
        return f"{found.scheme}://{host}:{found.port}"

    async def _revoke_expired(self) -> None:
        """Closes what signed tokens that have expired meanwhile opened, until cancelled."""
        while True:
            await asyncio.sleep(REVOKE_SECONDS)
            self._app.state.routes.revoke()

    async def stop(self) -> None:
        """Ends answers as cancelled, closes websockets with 1001, and lets everything go; at most about two seconds.

        Where a recording is being read, what was read of it is kept first: see `Library.stop`.
        """
        self._server.should_exit = True
        if self._revoking is not None:
            self._revoking.cancel()
        await self.outputs.stop()
        await asyncio.gather(close_connections(self._app), self.assistant.stop())
        if self._serving is not None:
            done, _ = await asyncio.wait([self._serving], timeout=0.5)
            if not done:
                self._serving.cancel()
                with suppress(asyncio.CancelledError):
                    await self._serving

    async def reload(self, config: Config) -> list[str]:
        """Applies a changed configuration as far as it can change live; a line for each thing that was or was not done.

        Raises ConfigError, and then nothing has changed.
        """
        # As the server goes on where it is, it is that address which tokens must guard.
        kept = {name: getattr(self.config.server, name) for name in SERVER_FIXED}
        guarded = config.model_copy(update={"server": config.server.model_copy(update=kept)})
        tokens, signed = await asyncio.to_thread(lambda: (known_tokens(guarded), signed_tokens(guarded)))
        lines = await self.assistant.reload(config)
        lines += await self.outputs.reload(config.outputs)
        told = self._app.state.routes.reload(self.assistant.config, tokens, signed)
        self.assistant.watches.links.address = self.address(self.assistant.config.server)
        return [*(line for line in lines if line != "nothing changed"), *told] or ["nothing changed"]

    async def failed(self) -> str:
        """Returns once the engine is beyond help, with the reason."""
        while self.assistant.engine.alive:
            await asyncio.sleep(0.5)
        return self.assistant.trouble or "the engine has stopped"

    def _forgetting(self) -> str:
        """What a model with full attention can't do: keep all of an endless stream."""
        model = self.assistant.model
        if model.context is None:
            return ""
        rate = model.trained_rate or 25
        seconds = model.context / (model.tokens_per_step / model.frames_per_step * rate)
        return (
            f"  FULL ATTENTION: keys older than {model.context} tokens ({seconds:.0f} s at {rate:g} frames/s) are forgotten; "
            "model.attention {sinks, window} chooses what stays\n"
        )

    def _suiting(self) -> str:
        """What streams and answers are like with this model unless they are asked to be otherwise."""
        model = self.assistant.model
        if model.trained_rate is None:
            return ""
        side = model.picture_side
        drawn = ", ".join(f"{name} {value:g}" for name, value in default_sampling(model.config).items())
        return (
            f"  it sees {model.trained_rate:g} frames a second of a stream, as it was trained, {model.frames_per_step} a step, of up "
            f"to {side}×{side} pixels (streams.fps, model.picture_tokens); this machine sees "
            f"{self._capacity / model.frames_per_step:.1f} such steps a second\n"
            f"  answers are drawn with {drawn}; it thinks only where asked to\n"
        )

    def banner(self, url: str) -> str:
        """What a user sees first, once the daemon has started."""
        model, limits = self.assistant.model, self.config.limits
        usual = model.trained_rate or 25
        weights = "" if model.trained else "  RANDOM WEIGHTS: answers mean nothing\n"
        more, capacity = self._more_slots, self._capacity
        memory = "" if more is None else f"; free memory would hold {more} more of their slots"
        beyond = "are refused" if limits.admission == "measured" else "lower the rate of all"
        streams = "".join(f"  {status.name}: {status.source}\n" for status in self.assistant.streams())
        return (
            f"streamer is ready at {url}\n"
            f"  model {model.name} on {self.config.model.device}, {model.state_bytes / 1e6:.1f} MB of memory a stream, for ever\n"
            f"{weights}{self._forgetting()}{self._suiting()}"
            f"  room for {limits.streams} streams and {limits.answers} answers at once{memory}\n"
            f"  the device sees up to {capacity:.0f} frames a second in all, as measured: "
            f"{capacity / usual:.1f} streams of {usual:g}; more {beyond} (limits.admission)\n"
            f"{streams}"
        )


def join(watches: Watches, outputs: Outputs) -> None:
    """Has outputs tell what watches see, and ask of them what brokers are asked."""
    watches.feed.callbacks.append(lambda event: outputs.publish(watches.links.of(event.facts())))
    watches.outputs = lambda: outputs.names
    watches.changed = lambda: outputs.watches_changed(watches.standing())
    outputs.still, outputs.snooze = lambda event: watches.kept.still(event), watches.snooze


class OutOfFiles:
    """A loop's exception handler: that no file is left for a connection is told once a minute, not at each of the loop's tries."""

    def __init__(self) -> None:
        self.told = float("-inf")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif loop.time() - self.told > 60:
            self.told = loop.time()
            log.error("no connection can be taken (%s): raise ulimit -n, LimitNOFILE under systemd", error.strerror)


def run(
    config: Config,
    announce: Callable[[str], None] = lambda url: None,
    reload: Callable[[], Config] | None = None,
) -> int:
    """Runs until SIGINT or SIGTERM; returns the exit code. `announce` is told the URL once all is ready.

    On SIGHUP, `reload` reads the configuration again, and what can change live does.
    """
    with output_aside():
        code = asyncio.run(_run(config, announce, reload))
    if any(thread.name == "engine" for thread in threading.enumerate()):
        # It is inside of a long call of torch's, which aborts the process if the interpreter is taken down around it.
        os._exit(code)
    # All is closed; to look through torch's objects for cycles once more would take longer than the rest of the end.
    gc.freeze()
    return code


async def _run(config: Config, announce: Callable[[str], None], reload: Callable[[], Config] | None) -> int:
    loop, asked_to_stop = asyncio.get_running_loop(), asyncio.Event()
    loop.set_exception_handler(OutOfFiles())
    asked_to_reload = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked_to_stop.set)
    loop.add_signal_handler(signal.SIGHUP, asked_to_reload.set)
    try:
        daemon = Daemon(config)
    except ConfigError as error:
        print(f"streamer: {error}", file=sys.stderr)
        return 1
    starting = asyncio.create_task(daemon.start())
    stopping = asyncio.create_task(asked_to_stop.wait())
    await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        return 0
    try:
        url = starting.result()
    except DaemonError as error:
        print(f"streamer: {error}", file=sys.stderr)
        return 1
    print(daemon.banner(url), end="", flush=True)
    announce(url)
    notify("READY=1")
    failing = asyncio.create_task(daemon.failed())
    others = [asyncio.create_task(_keep_alive(daemon)), asyncio.create_task(_reload(daemon, asked_to_reload, reload))]
    await asyncio.wait([failing, stopping], return_when=asyncio.FIRST_COMPLETED)
    notify("STOPPING=1")
    if failing.done():
        print(f"streamer: {failing.result()}", file=sys.stderr)
    for task in others:
        task.cancel()
    await daemon.stop()
    failed = failing.done() and not stopping.done()
    failing.cancel()
    return 1 if failed else 0


async def _keep_alive(daemon: Daemon) -> None:
    """Tells systemd's watchdog that we are alive for as long as the engine gets on."""
    seconds = watchdog_seconds()
    while seconds is not None:
        if daemon.assistant.ready:
            notify("WATCHDOG=1")
        await asyncio.sleep(seconds)


async def _reload(daemon: Daemon, asked: asyncio.Event, read: Callable[[], Config] | None) -> None:
    """Reads the configuration again whenever asked; a bad one changes nothing."""
    while True:
        await asked.wait()
        asked.clear()
        if read is None:
            log.warning("there is no configuration to read again")
            continue
        try:
            for line in await daemon.reload(await asyncio.to_thread(read)):
                log.info("%s", line)
        except ConfigError as error:
            for problem in error.problems:
                log.error("the configuration is refused, nothing changed: %s", problem)
        except Exception as error:  # whatever it is: the next SIGHUP must find somebody who listens
            log.error("the configuration could not be applied whole: %s", error, exc_info=error)


def _progress_bar() -> Callable[[int, int], None]:
    """Shows a terminal how far the model's warm-up is; nothing where nobody watches."""
    bar = tqdm(desc="warming up", unit="step", leave=False, disable=not sys.stderr.isatty())

    def show(done: int, of: int) -> None:
        bar.total, bar.n = of, done
        bar.refresh()
        if done == of:
            bar.close()

    return show
