"""What steps cost on this device, learnt from measurements."""

from __future__ import annotations

from bisect import bisect_left

SELDOM = 3.0
"""Mean deviations above the mean beyond which steps are seldom: one in a hundred of a normal distribution."""


class Costs:
    """Seconds of one kind of step by its size (streams in a batch, answers in a batch, tokens of a question)."""

    def __init__(self, memory: float = 0.1) -> None:
        """`memory` is the weight of a new measurement in the running mean, between 0 and 1."""
        self._memory = memory
        self._mean: dict[int, float] = {}
        self._deviation = 0.0

    def learn(self, size: int, seconds: float) -> None:
        """Takes one measurement; a single hiccup counts for four times the mean at most."""
        known = self._mean.get(size)
        if known is None:
            self._mean[size] = seconds
        else:
            seconds = min(seconds, 4 * known)
            self._mean[size] = known + self._memory * (seconds - known)
            self._deviation += self._memory * (abs(seconds - known) / known - self._deviation) if known else 0.0

    def estimate(self, size: int) -> float:
        """Seconds a step of `size` will take: interpolated, beyond the largest in proportion; 0 while nothing is known."""
        if size in self._mean:
            return self._mean[size]
        sizes = sorted(self._mean)
        if not sizes:
            return 0.0
        at = bisect_left(sizes, size)
        if at == 0:
            return self._mean[sizes[0]]
        if at == len(sizes):
            return self._mean[sizes[-1]] * size / sizes[-1]
        low, high = sizes[at - 1], sizes[at]
        share = (size - low) / (high - low)
        return self._mean[low] + share * (self._mean[high] - self._mean[low])

    def worst(self, size: int) -> float:
        """Seconds that a step of `size` seldom exceeds, by how much all sizes' measurements differ from their means."""
        return (1 + SELDOM * self._deviation) * self.estimate(size)

    def served(self, size: int, batch: int) -> float:
        """Seconds in which `size` members are served in batches of `batch`, the last one of what is left."""
        whole, rest = divmod(size, batch)
        return whole * self.estimate(batch) + (self.estimate(rest) if rest else 0.0)

    def cheapest_each(self, size: int) -> float:
        """Seconds for each of `size` members, served in the batches that are soonest done with all."""
        return min(self.served(size, batch) for batch in range(1, size + 1)) / size

    def thrifty(self, size: int, slack: float) -> int:
        """The smallest batch in which `size` members are served within `slack` times the soonest."""
        best = slack * size * self.cheapest_each(size)
        return next((n for n in range(1, size + 1) if 0 < self.served(size, n) <= best), size)
