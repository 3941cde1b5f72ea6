"""What of this machine a process may use."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> int:
    """Cores that this process may use. A container's share counts, too, where it is given as time."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return min(here, max(int(quota) // int(period), 1))
    except (OSError, ValueError):  # no such file, or "max" for no limit
        return here
