"""Slots against a virtual amount of free memory."""

import gc
import weakref

import pytest
import torch

import model.serving.runner
from model.serving.capacity import Capacity, CapacityError, capacity

GB = 10**9


def test_what_fits_is_counted_beside_what_steps_need() -> None:
    assert Capacity(free=10 * GB, each=GB).slots == 10
    assert Capacity(free=10 * GB, each=GB, working=2 * GB + 1).slots == 7
    assert Capacity(free=GB, each=GB, working=2 * GB).slots == 0


def test_too_many_are_refused_by_name_and_number() -> None:
    small = Capacity(free=10 * GB, each=GB, working=3 * GB)
    small.check(7)
    with pytest.raises(CapacityError) as error:
        small.check(9)
    assert error.value.fit == 7
    for part in ("9 slots of 1000.0 MB need 9.00 GB", "7.00 GB are free", "2.00 GB are missing", "7 of them fit"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_runner_is_refused_before_its_slots_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    allocated: list[int] = []
    allocate = model.serving.runner.StreamState.allocate

    def counted(config: object, slots: int, device: object, dtype: torch.dtype) -> object:
        if str(device) != "meta":
            allocated.append(slots)
        return allocate(config, slots, device, dtype)  # type: ignore[arg-type]

    monkeypatch.setattr(model.serving.runner.StreamState, "allocate", counted)
    monkeypatch.setattr(model.serving.runner, "capacity", lambda device, each: Capacity(3 * each + 1, each))
    with pytest.raises(CapacityError, match="4 slots of 2"):
        model.serving.runner.load_runner(random_weights=True, slots=4)
    assert allocated == []
    assert model.serving.runner.load_runner(random_weights=True, slots=3).slots == 3


def test_this_machine_tells_what_is_free() -> None:
    found = capacity(torch.device("cpu"), 1000)
    assert found is not None and 1000 < found.slots < 10**10


def test_a_released_runner_keeps_its_facts_alone() -> None:
    runner = model.serving.runner.load_runner(random_weights=True, slots=2)
    network, pool = weakref.ref(runner.model), weakref.ref(runner.state.keys)
    size = runner.state_bytes
    runner.release()
    gc.collect()
    assert network() is None and pool() is None
    assert runner.state_bytes == size > 1_000_000 and runner.name == "nano" and runner.tokenizer.encode("a")
