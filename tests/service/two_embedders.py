"""A cache of one embedder and another embedder of another width, and the steps from one to the other."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from nearhit import Client, NearhitError
from nearhit.client import store_request
from numpy.typing import NDArray
from sqlalchemy import Engine

from service.application import clock_ms
from service.check import check_cache
from service.config import Config
from service.database import open_engine, reading
from service.embedder_migration import EndReport, StartReport, finish_migration, start_migration
from service.reembedding import ReembedReport, move_rows, reembed_texts, rows_of_names
from service.rows import read_cache

OLD, NEW = "old-embedder", "new-embedder"
OLD_DIM, NEW_DIM = 24, 40
COUNT = 400
THRESHOLD = 0.15
Vectors = NDArray[np.float32]


def unit(rows: NDArray[np.floating]) -> Vectors:
    """Rows at length 1."""
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class TwoEmbedders:
    """The same texts by both embedders; `asked_...`: of a paraphrase of each."""

    old: Vectors
    new: Vectors
    asked_old: Vectors
    asked_new: Vectors


def two_embedders(*, noise: float = 0.02, count: int = COUNT) -> TwoEmbedders:
    """The new embedder is the old one, turned into more dimensions and disturbed."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((NEW_DIM, OLD_DIM)))[0].T  # [old, new]
    old = unit(rng.standard_normal((count, OLD_DIM)))
    asked = unit(old + 0.05 * rng.standard_normal((count, OLD_DIM)))

    def embed(rows: Vectors) -> Vectors:
        return unit(rows @ turn + noise * rng.standard_normal((len(rows), NEW_DIM)))

    return TwoEmbedders(old=old, new=embed(old), asked_old=asked, asked_new=embed(asked))


WORLD = two_embedders()


def name_of(i: int) -> str:
    """The resource name of entry i."""
    return f"caches/faq/entries/e{i}"


def numbers(found: Sequence[Any]) -> list[int]:
    """Of the entries in search results."""
    return [int(result.entry.name.rpartition("/e")[2]) for result in found]


def old_entry(i: int, **fields: Any) -> Any:
    """Entry i as the old embedder's applications store it; every second one is labelled."""
    known = {
        "embedding": WORLD.old[i],
        "embedder_id": OLD,
        "text": f"question {i}",
        "entry": f"e{i}",
        "response": b"answer %d" % i,
        "labels": [f"l{i % 4}"] if i % 2 == 0 else [],
        "tags": [f"t{i % 3}"],
    }
    return store_request("faq", "billing", **{**known, **fields})


def fill(client: Client, count: int = COUNT, **policy: Any) -> None:
    """Cache "faq" of the old embedder, with entries in its category "billing"."""
    client.create_cache("faq", dim=OLD_DIM, embedder_id=OLD, code_bits=64)
    client.create_category("faq", "billing", **{"threshold": THRESHOLD, **policy})
    for start in range(0, count, 200):
        client.batch_store("faq", [old_entry(i) for i in range(start, min(start + 200, count))])


@contextmanager
def opened(config: Config) -> Iterator[Engine]:
    """The database as a command opens it."""
    engine = open_engine(config.store)
    try:
        yield engine
    finally:
        engine.dispose()


def no_progress(_stage: str, _done: int, _total: int) -> None:
    """Tell nobody."""


def start(
    config: Config,
    *,
    embeddings: Vectors | None = None,
    modality: str = "text",
    progress: Callable[[str, int, int], None] = no_progress,
) -> StartReport:
    """Begin the change, from all entries embedded by both."""
    made = WORLD.new if embeddings is None else embeddings
    with opened(config) as engine:
        return start_migration(
            engine,
            "faq",
            modality=modality,
            embedder_id=NEW,
            names=[f"e{i}" for i in range(len(made))],
            embeddings=made,
            seed=0,
            clock=clock_ms,
            progress=progress,
        )


def move(config: Config, chosen: Sequence[int]) -> tuple[int, int]:
    """Give entries their new vectors; how many were moved, and how many left."""
    with opened(config) as engine:
        with reading(engine) as connection:
            record = read_cache(connection, "faq")
            names = [f"e{i}" for i in chosen]
            row_ids = rows_of_names(connection, record, names, modality="text")
        vectors = {row_ids[f"e{i}"]: WORLD.new[i] for i in chosen if f"e{i}" in row_ids}
        return move_rows(engine, "faq", vectors, modality="text", embedder_id=NEW, clock=clock_ms)


def embed(texts: Sequence[str]) -> Vectors:
    """The new embedder, of texts that were stored."""
    return WORLD.new[[int(text.split()[1]) for text in texts]]


def reembed(
    config: Config,
    *,
    progress: Callable[[str, int, int], None] = no_progress,
) -> ReembedReport:
    """Embed the rest anew."""
    with opened(config) as engine:
        return reembed_texts(engine, "faq", embedder_id=NEW, embed=embed, clock=clock_ms, progress=progress)


def finish(config: Config, *, drop_rest: bool = False) -> EndReport:
    """End the change."""
    with opened(config) as engine:
        return finish_migration(engine, "faq", modality="text", drop_rest=drop_rest, clock=clock_ms)


def takes(client: Client, embedding: Vectors, embedder_id: str = "") -> bool:
    """Whether the server takes embeddings of an embedder."""
    try:
        client.search("faq", embedding=embedding, embedder_id=embedder_id)
    except NearhitError as error:
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        return False
    return True


def problems(config: Config) -> tuple[str, ...]:
    """What `nearhit check` finds."""
    with opened(config) as engine:
        return check_cache(engine, "faq", config).problems
