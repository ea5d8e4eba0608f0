"""`streamer fleet`: the head of many engines, and what is said to one that runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

from streamer.cli.remote import _tls, _token, reach, waited
from streamer.client import DEFAULT_URL, ClientError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options, and its own commands."""
    parser.add_argument("--config", metavar="FLEET.yaml", help="start the head of the fleet that this file describes")
    parser.add_argument("--gateway-of", metavar="URL", help="run a gateway alone, beside the head at this address")
    parser.set_defaults(command=run)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    status = commands.add_parser("status", help="engines, and where each stream is")
    reach(status)
    status.set_defaults(command=lambda options: _show(options, _ask(options, "GET", "/v1/fleet")))
    drain = commands.add_parser("drain", help="move all streams away from an engine")
    drain.add_argument("engine")
    drain.add_argument("--end", action="store_true", help="let it have streams again")
    reach(drain)
    drain.set_defaults(
        command=lambda options: _show(
            options, _ask(options, "POST", "/v1/fleet/drain", {"engine": options.engine, "draining": not options.end})
        )
    )
    move = commands.add_parser("move", help="move a stream to another engine")
    move.add_argument("stream")
    move.add_argument("engine", nargs="?", help="which; left out, where it fits best")
    reach(move)
    move.set_defaults(
        command=lambda options: _show(
            options, _ask(options, "POST", "/v1/fleet/move", {"stream": options.stream, "engine": options.engine})
        )
    )


def run(options: argparse.Namespace) -> int:
    from streamer.config import ConfigError

    if options.config is None:
        print("streamer fleet: name the fleet's file with --config, or say status, drain or move", file=sys.stderr)
        return 2
    try:
        from streamer.cluster.config import load_fleet
        from streamer.cluster.run import run as run_fleet

        fleet = load_fleet(options.config)
        fleet.secret()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    return run_fleet(fleet, follows=options.gateway_of)


def _ask(options: argparse.Namespace, method: str, path: str, told: dict[str, Any] | None = None) -> dict[str, Any]:
    return waited(lambda: _answered(options, method, path, told), options.wait)


def _answered(options: argparse.Namespace, method: str, path: str, told: dict[str, Any] | None) -> dict[str, Any]:
    url = options.url or os.environ.get("STREAMER_URL", DEFAULT_URL)
    token = _token(options) or os.environ.get("STREAMER_TOKEN")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    body = None if told is None else json.dumps(told).encode()
    request = urllib.request.Request(url.rstrip("/") + path, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10, context=_tls(options)) as reply:
            found: dict[str, Any] = json.load(reply)
            return found
    except urllib.error.HTTPError as error:
        try:
            why = json.load(error)["error"]["message"]
        except (ValueError, KeyError):
            why = f"{url} answered {error.code}: is it a fleet's gateway?"
        raise ClientError("refused", why) from None
    except OSError as error:
        raise ClientError("unreachable", f"Nothing answers at {url} ({error}).") from None


def _show(options: argparse.Namespace, view: dict[str, Any]) -> int:
    if options.json:
        print(json.dumps(view))
        return 0
    print(f"{'ENGINE':<16} {'STATE':<9} {'STREAMS':>9}  {'LOAD':>5}  {'A FRAME':>8}  WHERE")
    for each in view["engines"]:
        of, cost = (
            f"{each['streams']}/{each['slots']}",
            "" if each["frame_ms"] is None else f"{each['frame_ms']:.1f} ms",
        )
        print(
            f"{each['name']:<16} {each['state']:<9} {of:>9}  {each['load']:>4.0%}  {cost:>8}  {each['trouble'] or each['url']}"
        )
    print(f"\n{'STREAM':<24} {'STATE':<9} {'ENGINE':<16} EPOCH")
    for each in view["streams"]:
        print(
            f"{each['name']:<24} {each['state']:<9} {each['engine'] or '-':<16} {each['epoch']}  {each['why']}".rstrip()
        )
    print(f"\n{view['moves']} moves")
    return 0
