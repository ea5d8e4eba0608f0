"""`streamer models`: the models that are known, and which of them this machine has memory for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any


def run(options: argparse.Namespace) -> int:
    """Prints a few lines a model; returns 0."""
    found = list(choices())
    if options.json:
        print(json.dumps({"models": found}, ensure_ascii=False))
        return 0
    last = None
    for each in found:
        if each["name"] != last:
            last = each["name"]
            print(f"{last}: {each['kind']}; {each['parameters'] / 1e6:,.0f} M parameters; {each['licence']}")
        bound = "at most " if each["dtype"] in ("fp8", "int8") else ""
        facts = f"weights {bound}{each['weight_bytes'] / 1e9:.2f} GB, a stream {each['state_bytes'] / 1e6:,.1f} MB"
        lacking = f"not here: {each['missing_bytes'] / 1e9:.1f} GB of memory are missing"
        print(f"  {each['dtype']}: {facts}; {lacking if each['missing_bytes'] else each['command']}")
    return 0


def choices() -> Iterator[dict[str, Any]]:
    """Every known model in each dtype that makes sense on this machine's device, with the slots that a daemon has by default."""
    import torch

    from model.serving.catalogue import dtypes, fit, known, outline
    from streamer.config import LimitsConfig

    limits = LimitsConfig()
    for one in known():
        # The nano is made for a CPU.
        device = torch.device("cuda" if torch.cuda.is_available() and one.name != "nano" else "cpu")
        model = outline(one.config)
        for dtype in dtypes(device):
            found = fit(model, dtype, device, limits.streams + limits.answers)
            yield {
                "name": one.name,
                "kind": one.kind,
                "licence": one.licence,
                "parameters": sum(x.numel() for x in model.parameters()),
                "device": device.type,
                "dtype": dtype,
                "weight_bytes": found.weights,
                "state_bytes": found.state,
                "missing_bytes": found.missing,
                "command": command(one.name, device.type, dtype),
            }


def command(name: str, device: str, dtype: str) -> str:
    """What runs it: device and dtype have no option, only a configuration file says them."""
    if (device, dtype) == ("cpu", "float32"):
        return "streamer run" if name == "nano" else f"streamer run --model {name}"
    return f"streamer run CONFIG.yaml, in it model: {{name: {name}, device: {device}, dtype: {dtype}}}"
