"""Whether a process that ran on this machine is certainly no more."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


@cache
def machine() -> str:
    """This boot of this machine, and its processes as they are counted here: a container's are its own. Nothing where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{os.uname().nodename} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def began(pid: int) -> str:
    """When a process began, by its machine's own count; nothing where there is no such process, or it has ended."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if facts[0] in "ZX" else facts[19]
    except (OSError, IndexError):
        return ""


def is_gone(where: str, pid: int, since: str) -> bool:
    """Whether a process of the machine `where`, which began at `since`, is no more; False where that can't be seen from here."""
    return bool(where) and where == machine() and began(pid) != since
