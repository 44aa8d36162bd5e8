"""Compiled from native/module.c; index/kernels.py says what the functions do and checks what they get."""

from typing import Any

from numpy.typing import NDArray

def nearest(
    table: tuple[Any, ...],
    search: tuple[Any, ...],
    rows: NDArray[Any],
    distances: NDArray[Any],
    counts: NDArray[Any],
    /,
) -> None: ...
def rank(
    table: tuple[Any, ...],
    search: tuple[Any, ...],
    queries: NDArray[Any],
    exact_count: int,
    lists: tuple[Any, ...] | None,
    /,
) -> list[tuple[list[tuple[float, int, int, int]], int, int]]: ...
def spans_near(lists: tuple[Any, ...], query: NDArray[Any], /) -> bytes: ...
def append(
    blocks: NDArray[Any], bit_count: int, row_count: int, codes: NDArray[Any], added: int, /
) -> None: ...
def half_distances(
    vectors: NDArray[Any],
    row_count: int,
    dim: int,
    offsets: NDArray[Any] | None,
    count: int,
    query: NDArray[Any],
    out: NDArray[Any],
    /,
) -> None: ...
def byte_distances(
    vectors: NDArray[Any],
    row_count: int,
    dim: int,
    offsets: NDArray[Any] | None,
    count: int,
    query: NDArray[Any],
    out: NDArray[Any],
    /,
) -> None: ...
def quantise(vectors: NDArray[Any], row_count: int, dim: int, out: NDArray[Any], /) -> None: ...
def table_scores(
    codes: NDArray[Any], row_count: int, width: int, table: NDArray[Any], out: NDArray[Any], /
) -> None: ...
def block_words(bit_count: int, /) -> int: ...
def instruction_sets() -> tuple[str, ...]: ...
def choose(name: str, /) -> None: ...
