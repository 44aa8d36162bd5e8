"""nearhit's index as the benchmarks drive it: an encoder, a generation on disk, an index opened from it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashing.config import EncoderConfig
from hashing.inference import Encoder
from hashing.trainer import train_encoder
from index.builder import build_generation
from index.codes import pack
from index.config import IndexConfig
from index.manifest import open_generation
from index.planner import SearchPath
from index.requests import SearchRequest, SearchResult
from index.rows import NEVER, Rows, SegmentKey
from index.vector_index import VectorIndex
from scripts.bench.data import Dataset, unit_chunks
from scripts.bench.timing import timed_cpu

MODALITY = "text"
CATEGORY = 1
NOW_MS = 1
_TRAINING_ROWS = 150_000
_MEMORY_LIMIT_BYTES = 16 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Engine:
    """An encoder and an index of a data set's rows; the entry id of a row is its number.

    train_seconds, build_seconds: CPU seconds of the encoder, and of coding, sealing and verifying the rows.
    """

    encoder: Encoder
    index: VectorIndex
    train_seconds: float
    build_seconds: float
    row_count: int

    def request(
        self,
        query: NDArray[np.float32],
        *,
        k: int,
        path: SearchPath | None = None,
        threshold: float | None = None,
        radii: Mapping[int, int] | None = None,
        category: int = CATEGORY,
        allowed_ids: NDArray[np.int64] | None = None,
    ) -> SearchRequest:
        """What a server asks for a query, float32 [dim]; its code is computed here."""
        encoder_id = self.encoder.encoder_id
        return SearchRequest(
            partitions=((category, MODALITY),),
            vector=query,
            k=k,
            now_ms=NOW_MS,
            codes={encoder_id: pack(self.encoder.instance_bits(query[None, :]))[0]},
            threshold=threshold,
            radii={} if radii is None else {encoder_id: radii},
            path=path,
            allowed_ids=allowed_ids,
        )

    def search(self, query: NDArray[np.float32], *, k: int, path: SearchPath | None = None) -> SearchResult:
        """From a float query to the k nearest rows: coding, candidates, rerank."""
        return self.index.search(self.request(query, k=k, path=path))

    def tune(self, *, candidate_count: int, list_recall: float | None = None) -> None:
        """Rerank this many candidates from the next search on, of lists that are to hold this recall."""
        config = replace(self.index.config, candidate_count=candidate_count, candidates_per_result=1)
        self.index.config = config if list_recall is None else replace(config, list_recall=list_recall)

    @property
    def has_lists(self) -> bool:
        """Whether the rows were sealed with inverted lists."""
        return self.row_count >= self.index.config.lists_min_rows

    def bytes_per_row(self) -> dict[str, float]:
        """Bytes in memory a row, by part."""
        sizes: dict[str, float] = {}
        for partition in self.index.facts().partitions:
            for part, size in partition.sizes_bytes.items():
                sizes[part] = sizes.get(part, 0.0) + size / self.row_count
        return sizes


def trained(rows: NDArray[np.float16], *, code_bits: int, seed: int) -> tuple[Encoder, float]:
    """An encoder learned from rows float16 [n, dim], and the CPU seconds that it took.

    Of more than _TRAINING_ROWS a draw is learned from: no fit reads as many.
    """
    config = EncoderConfig(code_bits=code_bits, seed=seed)
    if len(rows) > _TRAINING_ROWS:
        rows = rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:_TRAINING_ROWS])]
    result, seconds = timed_cpu(lambda: train_encoder(rows, config=config, modality=MODALITY))
    return result.encoder, seconds


def built(
    folder: Path,
    dataset: Dataset,
    *,
    encoder: Encoder,
    train_seconds: float = 0.0,
    categories: NDArray[np.int64] | None = None,
    with_graph: bool = False,
    lists_min_rows: int | None = None,
) -> Engine:
    """Write the rows as a generation under `folder`, which must stay, and open it.

    categories: int64 [n], the category of each row, default CATEGORY for all.
    """
    config = IndexConfig(code_bits=encoder.code_bits)
    if lists_min_rows is not None:
        config = replace(config, lists_min_rows=lists_min_rows)

    def build() -> str:
        return build_generation(
            folder,
            cache="bench",
            config=config,
            batches=_batches(dataset, encoder=encoder, categories=categories),
            watermark=1,
            with_graph=with_graph,
            memory_limit_bytes=_MEMORY_LIMIT_BYTES,
        ).generation

    generation, build_seconds = timed_cpu(build)
    return Engine(
        encoder=encoder,
        index=open_generation(folder, generation, config=config),
        train_seconds=train_seconds,
        build_seconds=build_seconds,
        row_count=len(dataset.rows),
    )


def codes_of(encoder: Encoder, rows: NDArray[np.float16]) -> NDArray[np.uint64]:
    """The code of each stored row, uint64 [n, words]."""
    return np.concatenate([pack(encoder.instance_bits(chunk)) for _, chunk in unit_chunks(rows)])


def _batches(
    dataset: Dataset, *, encoder: Encoder, categories: NDArray[np.int64] | None
) -> Iterator[tuple[SegmentKey, Rows]]:
    for start, chunk in unit_chunks(dataset.rows):
        ids = np.arange(start, start + len(chunk))
        codes = pack(encoder.instance_bits(chunk))
        own = np.full(ids.size, CATEGORY) if categories is None else categories[ids]
        for category in np.unique(own).tolist():
            here = np.flatnonzero(own == category)
            key = SegmentKey(category_id=category, modality=MODALITY, encoder_id=encoder.encoder_id)
            yield key, _rows(ids[here], dataset.rows[ids[here]], codes[here])


def _rows(ids: NDArray[np.int64], vectors: NDArray[np.float16], codes: NDArray[np.uint64]) -> Rows:
    count = ids.size
    return Rows(
        entry_ids=ids,
        vectors=vectors,
        codes=codes,
        label_codes=np.zeros((count, 0), dtype=np.uint64),
        label_mask=np.zeros(count, dtype=np.bool_),
        scopes=np.zeros(count, dtype=np.uint64),
        fingerprints=np.zeros((count, 2), dtype=np.uint64),
        expire_times=np.full(count, NEVER, dtype=np.int64),
        payloads=[b"%d" % number for number in ids.tolist()],
    )
