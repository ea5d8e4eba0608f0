"""A second runner over the weights of a first, whose attention retrieves: recordings are read and asked beside streams."""

from __future__ import annotations

import copy
from dataclasses import replace

from model.config import ConfigError
from model.policy import RetrievalPolicy
from model.serving.runner import Runner
from model.serving.streams import in_line


def retrieving(runner: Runner, policy: RetrievalPolicy, slots: int) -> Runner:
    """A runner of the same weights under `policy`, with `slots` of its own; one thread must own both.

    Raises ConfigError where the weights are in a precision that such attention has no kernels for, CapacityError.
    """
    if runner.precision == "fp8":
        raise ConfigError("dtype 'fp8' is not to be had for attention that retrieves yet: choose bfloat16")
    model = copy.copy(runner.model)  # its modules are shared, as their weights are
    model.config = replace(runner.config, policy=policy)
    with in_line(runner.stream):  # whichever thread calls
        beside = Runner(runner.name, model, runner.tokenizer, slots, runner.trained)
    beside.calibration = runner.calibration
    return beside
