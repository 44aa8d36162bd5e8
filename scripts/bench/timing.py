"""How time is measured: one thread, methods in turn, medians."""

import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from scripts.arguments import CommandError

_EVICTION_BYTES = 256 * 1024 * 1024

Call = Callable[[int], object]
"""One call of a method, with the number of the call, to ask a different query each time."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep faiss and BLAS to one thread. Raises: CommandError without the extra `bench`."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise CommandError("needs the extra `bench`: pip install nearhit[bench]") from error
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        faiss.omp_set_num_threads(threads)


def interleaved_seconds(
    calls: Mapping[str, Call], *, rounds: int, group: int = 1, prepare: Callable[[], object] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Time methods in turn, so that what else the machine does hits all of them alike.

    In each round every method makes `group` calls in a row, numbered on over the rounds. prepare: called,
    untimed, before each call; without it each group begins with one untimed call, so that what is timed finds
    in cache what the same method's last call left there. Returns seconds [rounds * group] by method.
    """
    taken = {name: np.empty(rounds * group) for name in calls}
    for round_number in range(rounds):
        for name, call in calls.items():
            first = round_number * group
            if prepare is None:
                call(first + group - 1)
            for number in range(first, first + group):
                if prepare is not None:
                    prepare()
                started = time.perf_counter()
                call(number)
                taken[name][number] = time.perf_counter() - started
    return taken


def median_ms(seconds: NDArray[np.float64]) -> float:
    """The median in milliseconds."""
    return float(np.median(seconds)) * 1000


def cache_eviction() -> Callable[[], object]:
    """A call that leaves none of anybody's rows in the processor's caches."""
    filler = np.ones(_EVICTION_BYTES // 8)
    return filler.sum


def cpu_seconds() -> float:
    """CPU seconds of this process so far, all threads, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed_cpu(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the CPU seconds of it, on one thread: several count what they wait as well."""
    with one_thread():
        started = cpu_seconds()
        result = work()
        return result, cpu_seconds() - started
