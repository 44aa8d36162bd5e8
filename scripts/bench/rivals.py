"""The libraries that nearhit is measured against, each behind the same few methods."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import hnswlib
import numpy as np
from numpy.typing import NDArray

from hashing.inference import Encoder
from index.codes import pack
from index.kernels import cosine_distances
from scripts.arguments import CommandError
from scripts.bench.data import Dataset, unit_chunks
from scripts.bench.engine import codes_of

CONNECTIVITY = 16
EF_CONSTRUCTION = 128
_EFS = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768)
_CANDIDATES = (64, 128, 256, 512, 1024)
_PROBES = (8, 16, 32, 64)
_FACTORS = (4.0, 8.0, 16.0, 32.0, 64.0)
_SAMPLE_ROWS = 65_536

# Typed loosely: the library's stubs do not know what its Python layer adds to the compiled classes.
_faiss: Any = faiss

SearchOne = Callable[[NDArray[np.float32]], NDArray[np.int64]]
"""float32 [dim] -> int64 [<= k], the nearest first."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setting:
    """One way to search an index. choose: called once before searches with it; search: one query."""

    name: str
    choose: Callable[[], object]
    search: SearchOne


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rival:
    """A built index, its ways to search, and the bytes that it keeps in memory, of reranking too."""

    settings: Sequence[Setting]
    size_bytes: int
    bits: int | None = None


Build = Callable[[Dataset, int, Encoder | None], Rival]
"""(data, k, encoder for those that search codes) -> index."""


def build_hnswlib(dataset: Dataset, k: int, _encoder: Encoder | None) -> Rival:
    """hnswlib, the graph of Malkov & Yashunin 2018 on float32."""
    index = hnswlib.Index(space="cosine", dim=dataset.dim)
    index.init_index(
        max_elements=len(dataset.rows), M=CONNECTIVITY, ef_construction=EF_CONSTRUCTION, random_seed=0
    )
    for start, chunk in unit_chunks(dataset.rows):
        index.add_items(chunk, np.arange(start, start + len(chunk)))

    def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
        ids, _ = index.knn_query(query, k=k, num_threads=1)
        return ids[0].astype(np.int64)  # type: ignore[no-any-return]

    def setting(ef: int) -> Setting:
        return Setting(name=f"ef {ef}", choose=lambda: index.set_ef(ef), search=search)

    return Rival(settings=[setting(ef) for ef in _EFS if ef >= k], size_bytes=int(index.index_file_size()))


def build_faiss_hnsw(dataset: Dataset, k: int, _encoder: Encoder | None) -> Rival:
    """faiss HNSW on float32."""
    index = _faiss.IndexHNSWFlat(dataset.dim, CONNECTIVITY, _faiss.METRIC_INNER_PRODUCT)
    return _faiss_graph(index, dataset, k=k)


def build_faiss_hnsw_sq8(dataset: Dataset, k: int, _encoder: Encoder | None) -> Rival:
    """faiss HNSW on vectors of a byte a component."""
    index = _faiss.IndexHNSWSQ(
        dataset.dim, _faiss.ScalarQuantizer.QT_8bit, CONNECTIVITY, _faiss.METRIC_INNER_PRODUCT
    )
    return _faiss_graph(index, dataset, k=k)


def build_rabitq(dataset: Dataset, k: int, _encoder: Encoder | None) -> Rival:
    """faiss RaBitQ (Gao & Long 2024), a bit a dimension, fast scan; reranked on float16 by _faiss."""
    base = _faiss.IndexRaBitQFastScan(dataset.dim, _faiss.METRIC_INNER_PRODUCT)
    store = _faiss.IndexScalarQuantizer(
        dataset.dim, _faiss.ScalarQuantizer.QT_fp16, _faiss.METRIC_INNER_PRODUCT
    )
    index = _faiss.IndexRefine(base, store)
    _fill(index, dataset)

    def setting(factor: float) -> Setting:
        parameters = _faiss.IndexRefineSearchParameters(k_factor=factor)

        def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
            _, ids = index.search(query[None, :], k, params=parameters)
            return ids[0]  # type: ignore[no-any-return]

        return Setting(name=f"rerank {factor * k:.0f}", choose=lambda: None, search=search)

    return Rival(settings=[setting(factor) for factor in _FACTORS], size_bytes=_faiss_bytes(index))


def build_binary_flat(dataset: Dataset, k: int, encoder: Encoder | None) -> Rival:
    """faiss exhaustive Hamming search on nearhit's codes; reranked on float16 by nearhit's kernel."""
    codes, encode = _coded(dataset, encoder)
    index = _faiss.IndexBinaryFlat(8 * codes.shape[1])
    index.add(codes)

    def setting(count: int) -> Setting:
        def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
            _, ids = index.search(encode(query), count)
            return _rerank(dataset, query, ids[0], k=k)

        return Setting(name=f"rerank {count}", choose=lambda: None, search=search)

    size_bytes = codes.nbytes + dataset.rows.nbytes
    return Rival(
        settings=[setting(count) for count in _CANDIDATES], size_bytes=size_bytes, bits=8 * codes.shape[1]
    )


def build_binary_ivf(dataset: Dataset, k: int, encoder: Encoder | None) -> Rival:
    """faiss inverted lists of nearhit's codes; reranked on float16 by nearhit's kernel."""
    codes, encode = _coded(dataset, encoder)
    bits = 8 * codes.shape[1]
    quantizer = _faiss.IndexBinaryFlat(bits)
    index = _faiss.IndexBinaryIVF(quantizer, bits, max(16, len(codes) // 1024))
    index.train(codes[:: max(1, len(codes) // _SAMPLE_ROWS)])
    index.add(codes)

    def setting(probes: int, count: int) -> Setting:
        def choose() -> None:
            index.nprobe = probes

        def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
            _, ids = index.search(encode(query), count)
            return _rerank(dataset, query, ids[0], k=k)

        return Setting(name=f"{probes} lists, rerank {count}", choose=choose, search=search)

    settings = [setting(probes, count) for probes in _PROBES for count in (128, 512)]
    size_bytes = len(_faiss.serialize_index_binary(index)) + dataset.rows.nbytes
    return Rival(settings=settings, size_bytes=size_bytes, bits=bits)


def build_usearch(dataset: Dataset, k: int, _encoder: Encoder | None) -> Rival:
    """usearch, the same graph on float16. Raises: CommandError without the extra `bench`."""
    try:
        from usearch.index import Index
    except ImportError as error:
        raise CommandError("needs the extra `bench`: pip install nearhit[bench]") from error
    index: Any = Index(
        ndim=dataset.dim,
        metric="cos",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=EF_CONSTRUCTION,
    )
    for start, chunk in unit_chunks(dataset.rows):
        index.add(np.arange(start, start + len(chunk)), chunk)

    def setting(expansion: int) -> Setting:
        def choose() -> None:
            index.expansion_search = expansion

        def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
            keys = index.search(query, k, threads=1).keys
            return keys.astype(np.int64)  # type: ignore[no-any-return]

        return Setting(name=f"ef {expansion}", choose=choose, search=search)

    return Rival(settings=[setting(ef) for ef in _EFS if ef >= k], size_bytes=int(index.memory_usage))


RIVALS: dict[str, Build] = {
    "hnswlib": build_hnswlib,
    "faiss_hnsw": build_faiss_hnsw,
    "faiss_hnsw_sq8": build_faiss_hnsw_sq8,
    "faiss_rabitq": build_rabitq,
    "faiss_binary_flat": build_binary_flat,
    "faiss_binary_ivf": build_binary_ivf,
    "usearch": build_usearch,
}
CODE_RIVALS = ("faiss_binary_flat", "faiss_binary_ivf")


def _faiss_graph(index: Any, dataset: Dataset, *, k: int) -> Rival:
    index.hnsw.efConstruction = EF_CONSTRUCTION
    _fill(index, dataset)

    def setting(ef: int) -> Setting:
        def choose() -> None:
            index.hnsw.efSearch = ef

        def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
            _, ids = index.search(query[None, :], k)
            return ids[0]  # type: ignore[no-any-return]

        return Setting(name=f"ef {ef}", choose=choose, search=search)

    return Rival(settings=[setting(ef) for ef in _EFS if ef >= k], size_bytes=_faiss_bytes(index))


def _fill(index: Any, dataset: Dataset) -> None:
    """Train on a sample where the index must be trained, and add all rows."""
    if not index.is_trained:
        step = max(1, len(dataset.rows) // _SAMPLE_ROWS)
        index.train(dataset.rows[::step].astype(np.float32))
    for _, chunk in unit_chunks(dataset.rows):
        index.add(chunk)


def _faiss_bytes(index: Any) -> int:
    return len(_faiss.serialize_index(index))


def _coded(
    dataset: Dataset, encoder: Encoder | None
) -> tuple[NDArray[np.uint8], Callable[[NDArray[np.float32]], NDArray[np.uint8]]]:
    """The codes of the rows as faiss takes them, and what makes one of a query."""
    assert encoder is not None  # the caller's table says which rivals need one
    coder = encoder

    def encode(query: NDArray[np.float32]) -> NDArray[np.uint8]:
        return pack(coder.instance_bits(query[None, :])).view(np.uint8)

    return codes_of(coder, dataset.rows).view(np.uint8), encode


def _rerank(
    dataset: Dataset, query: NDArray[np.float32], ids: NDArray[np.int64], *, k: int
) -> NDArray[np.int64]:
    kept = ids[ids >= 0]
    distances = cosine_distances(dataset.rows, query, offsets=kept)
    return kept[np.argsort(distances, kind="stable")[:k]]
