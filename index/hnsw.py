"""A float graph over the vectors of one sealed segment: a typed wrapper over hnswlib."""

from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
from numpy.typing import NDArray

from index.durable import sync_directory, sync_file
from index.errors import DamagedGraphError, DimensionError
from index.vectors import unit_rows

BUILD_CHUNK_ROWS = 8_192  # rows decoded to float32 at a time while building


class VectorGraph:
    """Hierarchical navigable small world graph (Malkov & Yashunin 2018), immutable once built.

    Cost: keeps its own float32 copy of every vector, 4 dim + about 8 M + 20 bytes a row, more than the rest
    of the segment; building takes some 30 CPU seconds per 100,000 rows of 384 dimensions.
    Surprise: it does not know of deletions, expiry, scopes or allowed ids. A search may return mostly rows
    that the caller must drop, and recall falls without a sign; the index then falls back to an exact scan.
    """

    def __init__(self, graph: Any, *, dim: int) -> None:
        """graph: an initialised hnswlib.Index of the cosine space; use `build` or `load`."""
        self._graph = graph
        self._dim = dim

    @classmethod
    def build(
        cls, vectors: NDArray[np.float16], *, m: int = 16, ef_construction: int = 128, seed: int = 0
    ) -> "VectorGraph":
        """Build over vectors float16 [n, dim], n at least 1; offsets become labels.

        One thread, so that the same rows and seed give the same graph; it releases the interpreter lock.
        """
        row_count, dim = vectors.shape
        graph = hnswlib.Index(space="cosine", dim=dim)
        graph.init_index(max_elements=row_count, M=m, ef_construction=ef_construction, random_seed=seed)
        for start in range(0, row_count, BUILD_CHUNK_ROWS):
            chunk = unit_rows(vectors[start : start + BUILD_CHUNK_ROWS])
            graph.add_items(chunk, np.arange(start, start + len(chunk)), num_threads=1)
        return cls(graph, dim=dim)

    def save(self, path: Path) -> None:
        """Write to `path` by a temporary name and fsync; the manifest keeps its checksum."""
        temporary = path.with_name(path.name + ".tmp")
        self._graph.save_index(str(temporary))
        sync_file(temporary)
        temporary.replace(path)
        sync_directory(path.parent)

    @classmethod
    def load(cls, path: Path, *, dim: int, row_count: int) -> "VectorGraph":
        """Read a saved graph. Verify its checksum first: hnswlib trusts the sizes that it reads.

        Raises: DamagedGraphError.
        """
        graph = hnswlib.Index(space="cosine", dim=dim)
        try:
            graph.load_index(str(path))
        except RuntimeError as error:
            raise DamagedGraphError(path, str(error)) from error
        if graph.get_current_count() != row_count:
            raise DamagedGraphError(path, f"has {graph.get_current_count()} rows, not {row_count}")
        return cls(graph, dim=dim)

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self._dim

    @property
    def row_count(self) -> int:
        """Vectors in the graph."""
        return int(self._graph.get_current_count())

    @property
    def size_bytes(self) -> int:
        """Bytes in memory, nearly those of its file."""
        return int(self._graph.index_file_size())

    def search(self, query: NDArray[np.float32], *, k: int, ef: int) -> NDArray[np.int64]:
        """Find about the k nearest rows, nearest first; approximate.

        query: float32 [dim], finite; ef: width of the search, the larger the better and slower. Returns
        offsets int64 [m], m <= k, fewer where the graph reaches no more. Many threads may search at once:
        `ef` goes in as the count of neighbours asked for, as hnswlib's own setting is shared by all searches.
        Raises: DimensionError.
        """
        if query.shape != (self._dim,):
            raise DimensionError("query", expected=f"[{self._dim}]", got=f"{list(query.shape)}")
        width = min(max(k, ef), self.row_count)
        while width:
            try:
                labels, _ = self._graph.knn_query(query, k=width, num_threads=1)
            except RuntimeError:  # fewer than `width` rows can be reached from the entry point
                width //= 2
                continue
            return np.asarray(labels[0, :k], dtype=np.int64)
        return np.empty(0, dtype=np.int64)
