"""Lookups without a pause from a process of their own, each answer checked, beside what a benchmark does.

A text that is stored has one right answer, "answer N" of "question number N"; embeddings are random.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
from nearhit import Client, NearhitError
from numpy.typing import NDArray

from scripts.bench.lines import Figure
from scripts.bench.stored import CACHE, CATEGORY, CODE_BITS, unit_vectors

_END_SECONDS = 900.0
_QUERIES = 1_000

Lookup = tuple[float, float, str, str]
"""Start and duration in seconds, generation, and what was wrong ("" for nothing)."""


class Lookups:
    """The process. `end` gives what it measured; without it the process is killed at the end of the body."""

    def __init__(self, address: str, *, row_count: int, clients: int) -> None:
        command = [sys.executable, "-m", "scripts.bench.lookups", address, str(row_count), str(clients)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has begun
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> list[Lookup]:
        """Stop, and return every lookup."""
        answers, _ = self._process.communicate(b"end\n", timeout=_END_SECONDS)
        return [tuple(lookup) for lookup in json.loads(answers)]


def problems(lookups: list[Lookup]) -> list[str]:
    """What failed or was answered wrongly."""
    return [problem for _, _, _, problem in lookups if problem]


def phase_figures(
    bench: str,
    lookups: list[Lookup],
    phases: Mapping[str, tuple[float, float]],
    *,
    case: str,
    row_count: int,
) -> Iterator[Figure]:
    """Latency in each phase, a range of time; the first one is what the others are compared with."""
    first = next(iter(phases))
    reference: dict[str, float] = {}
    for phase, (start, end) in phases.items():
        taken = [
            seconds * 1000 for began, seconds, _, _ in lookups if start <= began + seconds and began < end
        ]
        if not taken:
            continue
        values = np.percentile(taken, [50, 99, 100]).tolist()
        named = dict(zip(("p50_ms", "p99_ms", "max_ms"), values, strict=True))
        figures = {f"lookup_{metric}": (value, "ms") for metric, value in named.items()}
        figures |= {"lookups": (float(len(taken)), ""), "seconds": (end - start, "s")}
        for metric, (value, unit) in figures.items():
            before = reference.setdefault(metric, value) if unit == "ms" and value else None
            compared = before is not None and phase != first
            yield Figure(
                bench=bench,
                case=f"{case}, {phase}",
                metric=metric,
                method="nearhit",
                value=value,
                unit=unit,
                rival=first if compared else None,
                rival_value=before if compared else None,
                ratio=before / value if compared and before is not None else None,
                n=row_count,
                bits=CODE_BITS,
                seeds=1,
            )


def _look_up(address: str, *, row_count: int, clients: int) -> None:
    """Look up until a line comes in, then print what was measured."""
    ended = threading.Event()
    queries = unit_vectors(_QUERIES).astype(np.float32)
    with ThreadPoolExecutor(max_workers=clients) as threads:
        running = [
            threads.submit(_look_up_in_turn, address, queries, row_count, number, ended)
            for number in range(clients)
        ]
        print("begun", flush=True)
        sys.stdin.readline()
        ended.set()
        print(json.dumps([lookup for one in running for lookup in one.result()]))


def _look_up_in_turn(
    address: str, queries: NDArray[np.float32], row_count: int, first: int, ended: threading.Event
) -> list[Lookup]:
    """By embedding and by text in turn; a text has one right answer."""
    lookups: list[Lookup] = []
    number = first
    with Client(address, timeout_seconds=30.0) as client:
        while not ended.is_set():
            number += 1
            row = number * 7919 % row_count
            by_text = number % 2 == 0
            started = time.monotonic()
            try:
                if by_text:
                    answer = client.lookup(CACHE, CATEGORY, text=f"question number {row}")
                else:
                    answer = client.lookup(CACHE, CATEGORY, embedding=queries[number % len(queries)])
            except NearhitError as error:
                lookups.append((started, time.monotonic() - started, "", str(error)))
                continue
            taken = time.monotonic() - started
            right = not by_text or answer.response == f"answer {row}".encode()
            problem = "" if right else f"question {row} was answered {answer.response!r}"
            lookups.append((started, taken, answer.generation, problem))
    return lookups


if __name__ == "__main__":
    _look_up(sys.argv[1], row_count=int(sys.argv[2]), clients=int(sys.argv[3]))
