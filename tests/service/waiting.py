"""Waiting for what another thread or process does."""

import threading
import time
from collections.abc import Callable


def eventually(predicate: Callable[[], object], *, timeout_seconds: float = 10.0) -> None:
    """Return once `predicate` is true; fail when it is not in time."""
    deadline = time.monotonic() + timeout_seconds
    pause = threading.Event()
    while not predicate():
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s"
        pause.wait(0.005)
