"""Whether a probability is what it says: a calibration is fitted, and its error is measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from model.serving.calibration import Calibration

BINS = 15
STEPS = 30
"""Of Newton's method, which is done after a few."""
TINY = 1e-7
"""The least distance of a probability from 0 and 1: a float32 has none that is much less."""


def logits(probabilities: Sequence[float]) -> torch.Tensor:
    """Of yes against no, float64."""
    return torch.tensor(probabilities, dtype=torch.float64).clamp(TINY, 1 - TINY).logit()


def fitted(probabilities: Sequence[float], truths: Sequence[bool]) -> Calibration:
    """The scale and shift under which the truths are likeliest (Platt, 1999), for uncalibrated probabilities of yes."""
    x, y = logits(probabilities), torch.tensor(truths, dtype=torch.float64)
    # Platt's targets, a little off 0 and 1: where all are told apart no finite scale would be the best.
    yes, no = y.sum(), (1 - y).sum()
    y = torch.where(y > 0.5, (yes + 1) / (yes + 2), 1 / (no + 2))
    numbers, columns = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.stack((x, torch.ones_like(x)))
    for _ in range(STEPS):  # Newton's, halved while they overshoot: the loss is convex
        p = (numbers @ columns).sigmoid()
        slope, bend = columns @ (p - y), (columns * (p * (1 - p))) @ columns.T
        step = torch.linalg.solve(bend + 1e-9 * torch.eye(2, dtype=torch.float64), slope)
        before = cross_entropy(numbers @ columns, y)
        while cross_entropy((numbers - step) @ columns, y) > before and float(step.norm()) > 1e-9:
            step = step / 2
        numbers = numbers - step
    scale, shift = numbers.tolist()
    return Calibration(scale, shift)


def applied(calibration: Calibration, probabilities: Sequence[float]) -> list[float]:
    """What uncalibrated probabilities are under a calibration."""
    return list(calibration.probability(logits(probabilities)).tolist())


def expected_error(probabilities: Sequence[float], truths: Sequence[bool]) -> float:
    """Expected calibration error (Naeini et al., 2015): how far off the mean of each of `BINS` bins is, weighed by its size."""
    p, y = np.asarray(probabilities), np.asarray(truths, dtype=float)
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    parts = (bins == i for i in range(BINS))
    return float(sum(abs(p[part].sum() - y[part].sum()) for part in parts) / len(p)) if len(p) else 0.0


def log_loss(probabilities: Sequence[float], truths: Sequence[bool]) -> float:
    """The mean of -log of what was given to what is true, in nats."""
    y = torch.tensor(truths, dtype=torch.float64)
    return float(cross_entropy(logits(probabilities), y)) if len(truths) else 0.0
