"""Logs of requests that an application sent to its model, as `nearhit simulate` replays them."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.arguments import CommandError
from scripts.row_files import UNREADABLE
from scripts.training_files import embed_texts
from service.coding import normalise
from service.config import EmbedderConfig
from service.errors import InvalidRequestError

MOST_REQUESTS = 1_000_000
MOST_SECONDS = 1e12
ONE_CATEGORY = "all"
"""Name of the category of requests that name none, in an archive."""

_FIELDS = ("time", "category", "embedding", "text", "response", "cost", "load", "scope")
_ARRAYS = ("embeddings", "responses", "categories", "times", "costs", "loads")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestLog:
    """n requests in the order of their time.

    times_ms: int64 [n], from 1 on. embeddings: float32 [n, dim], L2-normalised. responses: what the model
    answered. costs: float64 [n] of that, 0 where not known. loads: float64 [n], of the model, in [0, 1].
    texts: empty where not known.
    """

    times_ms: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    categories: Sequence[str]
    responses: Sequence[bytes]
    scopes: Sequence[str]
    texts: Sequence[str]
    costs: NDArray[np.float64]
    loads: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.times_ms)


def read_log(path: Path, *, embedder: EmbedderConfig) -> RequestLog:
    """Read a .jsonl, a request a line, or an .npz. embedder: of requests that are texts alone.

    Raises: CommandError, naming the line, or the row from 0 on, and what is wrong.
    """
    if path.suffix not in (".jsonl", ".npz"):
        raise CommandError(f"{path}: is neither .jsonl nor .npz")
    if not path.is_file():
        raise CommandError(f"{path}: no such file")
    try:
        return _read_lines(path, embedder) if path.suffix == ".jsonl" else _read_archive(path)
    except UNREADABLE as error:
        raise CommandError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Line:
    """One request; embedding: float32 [dim], None where it is a text alone."""

    place: str
    seconds: float
    category: str
    embedding: NDArray[np.float32] | None
    text: str
    response: str
    cost: float
    load: float
    scope: str


def _read_lines(path: Path, embedder: EmbedderConfig) -> RequestLog:
    lines: list[_Line] = []
    for line in _lines(path):
        if lines and (line.embedding is None) != (lines[0].embedding is None):
            raise CommandError(f"{line.place} and {lines[0].place}: one has an embedding, the other has none")
        if line.embedding is not None and lines and lines[0].embedding is not None:
            dim = len(lines[0].embedding)
            if len(line.embedding) != dim:
                raise CommandError(
                    f"{line.place}: the embedding has {len(line.embedding)} dimensions, the first one {dim}"
                )
        if len(lines) == MOST_REQUESTS:
            raise CommandError(f"{path}: over {MOST_REQUESTS:,} requests")
        lines.append(line)
    if not lines:
        raise CommandError(f"{path}: no requests")
    given = [line.embedding for line in lines if line.embedding is not None]
    raw = np.stack(given) if given else embed_texts([line.text for line in lines], embedder=embedder)
    return _in_order(
        seconds=np.array([line.seconds for line in lines]),
        embeddings=_unit(raw, places=[line.place for line in lines]),
        categories=[line.category for line in lines],
        responses=[line.response.encode() for line in lines],
        scopes=[line.scope for line in lines],
        texts=[line.text for line in lines],
        costs=np.array([line.cost for line in lines]),
        loads=np.array([line.load for line in lines]),
    )


def _lines(path: Path) -> Iterator[_Line]:
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            place = f"{path}: line {number}"
            try:
                record = json.loads(text)
            except json.JSONDecodeError as error:
                raise CommandError(f"{place} is not JSON: {error}") from error
            if not isinstance(record, dict):
                raise CommandError(f"{place} is not an object")
            yield _to_line(place, record)


def _to_line(place: str, record: dict[str, Any]) -> _Line:
    unknown = sorted(set(record) - set(_FIELDS))
    if unknown:
        raise CommandError(f"{place}: {unknown[0]!r} is no field of a request; {', '.join(_FIELDS)} are")
    embedding, text = record.get("embedding"), _text(place, record, "text")
    if embedding is None and not text.strip():
        raise CommandError(f"{place}: neither an embedding nor a text")
    category = _text(place, record, "category", required=True)
    if not category:
        raise CommandError(f"{place}: the category is empty")
    return _Line(
        place=place,
        seconds=_number(place, record, "time", low=-MOST_SECONDS, high=MOST_SECONDS),
        category=category,
        embedding=None if embedding is None else _vector(place, embedding),
        text=text,
        response=_text(place, record, "response", required=True),
        cost=_number(place, record, "cost", low=0.0, high=math.inf, default=0.0),
        load=_number(place, record, "load", low=0.0, high=1.0, default=0.0),
        scope=_text(place, record, "scope"),
    )


def _text(place: str, record: dict[str, Any], name: str, *, required: bool = False) -> str:
    value = record.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise CommandError(f"{place}: {name} must be a string, is {json.dumps(value)}")
    return value


def _number(
    place: str,
    record: dict[str, Any],
    name: str,
    *,
    low: float,
    high: float,
    default: float | None = None,
) -> float:
    value = record.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CommandError(f"{place}: {name} must be a number, is {json.dumps(value)}")
    if not low <= value <= high or math.isinf(value):  # nor NaN
        raise CommandError(f"{place}: {name} must be in [{low:g}, {high:g}], is {value}")
    return float(value)


def _vector(place: str, value: Any) -> NDArray[np.float32]:
    numbers = value if isinstance(value, list) else []
    if not numbers or any(isinstance(own, bool) or not isinstance(own, int | float) for own in numbers):
        raise CommandError(f"{place}: the embedding must be a list of numbers")
    with np.errstate(over="ignore"):  # infinite ones are named later
        return np.array(numbers, dtype=np.float64).astype(np.float32)


def _read_archive(path: Path) -> RequestLog:
    with path.open("rb") as file:  # numpy leaves a file open whose archive is damaged
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise CommandError(f"{path}: is no .npz archive, but one array")
        arrays: dict[str, NDArray[Any]] = {name: loaded[name] for name in loaded.files}
    unknown = sorted(set(arrays) - set(_ARRAYS))
    if unknown:
        raise CommandError(f"{path}: {unknown[0]!r} is no array of a log; {', '.join(_ARRAYS)} are")
    for name in ("embeddings", "responses"):
        if name not in arrays:
            raise CommandError(f"{path}: no array {name!r}")
    embeddings = arrays["embeddings"]
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or not embeddings.shape[1]:
        raise CommandError(
            f"{path}: embeddings must be floats [n, dim], are {embeddings.dtype}{list(embeddings.shape)}"
        )
    count = len(embeddings)
    if not 0 < count <= MOST_REQUESTS:
        raise CommandError(f"{path}: {count:,} requests, not 1 to {MOST_REQUESTS:,}")
    for name, array in arrays.items():
        if name != "embeddings" and array.shape != (count,):
            raise CommandError(f"{path}: {name} are {list(array.shape)} for {count} embeddings")
    categories = arrays.get("categories")
    places = [f"{path}: row {row}" for row in range(count)]
    return _in_order(
        seconds=_column(path, arrays, "times", low=-MOST_SECONDS, high=MOST_SECONDS),
        embeddings=_unit(embeddings, places=places),
        categories=[ONE_CATEGORY] * count if categories is None else [str(own) for own in categories],
        responses=[own if isinstance(own, bytes) else str(own).encode() for own in arrays["responses"]],
        scopes=[""] * count,
        texts=[""] * count,
        costs=_column(path, arrays, "costs", low=0.0, high=math.inf),
        loads=_column(path, arrays, "loads", low=0.0, high=1.0),
    )


def _column(
    path: Path, arrays: dict[str, NDArray[Any]], name: str, *, low: float, high: float
) -> NDArray[np.float64]:
    """A column of numbers, float64 [n]; 0 where there is none."""
    array = arrays.get(name)
    if array is None:
        return np.zeros(len(arrays["embeddings"]))
    if array.dtype.kind not in "iuf":
        raise CommandError(f"{path}: {name} must be numbers, are {array.dtype}")
    numbers = array.astype(np.float64)
    wrong = np.flatnonzero(~((numbers >= low) & (numbers <= high) & np.isfinite(numbers)))
    if len(wrong):
        raise CommandError(
            f"{path}: row {wrong[0]}: {name} must be in [{low:g}, {high:g}], is {numbers[wrong[0]]}"
        )
    return numbers


def _unit(embeddings: NDArray[Any], *, places: Sequence[str]) -> NDArray[np.float32]:
    """Rows at length 1. Raises: CommandError that names the first that has no direction."""
    raw = embeddings.astype(np.float32)
    try:
        return normalise(raw)
    except InvalidRequestError:
        for place, row in zip(places, raw, strict=True):
            try:
                normalise(row[None])
            except InvalidRequestError as error:
                raise CommandError(f"{place}: {error.message}") from error
        raise


def _in_order(
    *,
    seconds: NDArray[np.float64],
    embeddings: NDArray[np.float32],
    categories: Sequence[str],
    responses: Sequence[bytes],
    scopes: Sequence[str],
    texts: Sequence[str],
    costs: NDArray[np.float64],
    loads: NDArray[np.float64],
) -> RequestLog:
    """The log by time; of equal times as they were written."""
    order = np.argsort(seconds, kind="stable")
    since = seconds[order] - seconds[order[0]]
    rows = order.tolist()
    return RequestLog(
        times_ms=np.rint(1000 * since).astype(np.int64) + 1,
        embeddings=embeddings[order],
        categories=[categories[row] for row in rows],
        responses=[responses[row] for row in rows],
        scopes=[scopes[row] for row in rows],
        texts=[texts[row] for row in rows],
        costs=costs[order],
        loads=loads[order],
    )
