"""Compiled from native/module.c; index/kernels.py says what the functions do and checks what they get."""

from typing import Any

from numpy.typing import NDArray

def nearest(
    blocks: NDArray[Any],
    bit_count: int,
    row_count: int,
    spans: NDArray[Any] | None,
    span_count: int,
    queries: NDArray[Any],
    query_count: int,
    wanted: int,
    max_distances: NDArray[Any] | None,
    prefix_limits: NDArray[Any] | None,
    expire_times: NDArray[Any],
    now_ms: int,
    scopes: NDArray[Any] | None,
    query_scopes: NDArray[Any] | None,
    allowed: NDArray[Any] | None,
    rows: NDArray[Any],
    distances: NDArray[Any],
    counts: NDArray[Any],
    /,
) -> None: ...
def append(
    blocks: NDArray[Any], bit_count: int, row_count: int, codes: NDArray[Any], added: int, /
) -> None: ...
def rerank(
    vectors: NDArray[Any],
    quantised: NDArray[Any] | None,
    row_count: int,
    dim: int,
    queries: NDArray[Any],
    query_count: int,
    offsets: NDArray[Any],
    width: int,
    found: NDArray[Any],
    kept: int,
    places: NDArray[Any],
    distances: NDArray[Any],
    counts: NDArray[Any],
    /,
) -> None: ...
def choose_spans(
    centroids: NDArray[Any],
    list_count: int,
    dim: int,
    bounds: NDArray[Any],
    query: NDArray[Any],
    margin: float,
    least: int,
    spans: NDArray[Any],
    /,
) -> int: ...
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
