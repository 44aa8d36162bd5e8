"""Build a generation from batches of rows, within a stated amount of memory."""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from index.check import check_files
from index.config import IndexConfig
from index.durable import file_crc32, sync_directory
from index.errors import DamagedGenerationError
from index.hnsw import VectorGraph
from index.lists import InvertedLists, build_lists
from index.manifest import (
    GraphEntry,
    Manifest,
    SegmentEntry,
    activate,
    build_lock,
    generation_name,
    last_generation_number,
    prune,
    remove_leftovers,
    write_manifest,
)
from index.rows import Rows, SegmentKey
from index.segment_file import write_segment

# Sealing a segment holds its rows twice: the batches and their concatenation, then that and the copy in the
# order of its lists. The third part is for the sample that centroids are fitted on, for what is assigned to
# them, and for other buffers. A graph adds float32 vectors and links, more than twice the size of the rows.
_COPIES = 3
_COPIES_WITH_GRAPH = 6
PAYLOAD_OVERHEAD_BYTES = 64  # what Python takes for a bytes object, and for the places in lists that name it
_LISTS_SEED = 0

Progress = Callable[[str, int, int], None]
"""(stage, done, total): rows per stage, which are write, lists, graph and verify; total 0 where it is not
known. The first three take turns, a segment each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build wrote. `size_bytes`: of segment and graph files."""

    generation: str
    row_count: int
    segment_count: int
    graph_count: int
    size_bytes: int


def build_generation(
    root: Path,
    *,
    cache: str,
    config: IndexConfig,
    batches: Iterable[tuple[SegmentKey, Rows]],
    watermark: int,
    with_graph: bool,
    memory_limit_bytes: int,
    progress: Progress | None = None,
    keep: int = 2,
) -> BuildReport:
    """Write the rows as sealed segments, verify them, write the manifest, activate and prune.

    batches: in any order, entry ids distinct over all of them; a batch should be much smaller than the limit.
    A segment of codes gets inverted lists from `config.lists_min_rows` rows on.
    watermark: the last `seq` of the store that they contain. memory_limit_bytes: for the buffers, copies and
    graphs of the build, plus one batch, and 24 bytes a row of all segments for the verification, which reads
    the written files where they are mapped; a small limit makes more and smaller segments. keep: how many
    generations stay, the new one included; a process that serves a removed one goes on. A build that ends
    early leaves CURRENT as it was.

    Raises: BuildInProgressError, InvalidRowsError, DimensionError, DamagedGenerationError when the
    verification finds a problem (an id in two batches, a vector whose norm is not 1); ValueError.
    """
    if memory_limit_bytes < 1:
        raise ValueError(f"memory_limit_bytes: must be at least 1, is {memory_limit_bytes}")
    if keep < 1:
        raise ValueError(f"keep: must be at least 1, is {keep}")
    root.mkdir(parents=True, exist_ok=True)
    with build_lock(root):
        remove_leftovers(root)
        number = last_generation_number(root) + 1
        building = root / f"building-{number:08d}"
        building.mkdir()
        try:
            writer = _SegmentWriter(
                building, cache=cache, config=config, with_graph=with_graph, progress=progress
            )
            copies = _COPIES_WITH_GRAPH if with_graph else _COPIES
            _write_segments(writer, batches, buffer_limit_bytes=memory_limit_bytes // copies)
            manifest = writer.manifest(generation_name(number), watermark=watermark)
            write_manifest(building, manifest)
            verified = None if progress is None else partial(progress, "verify")
            problems = check_files(building, manifest, progress=verified)
            if problems:
                raise DamagedGenerationError(building, "; ".join(problems))
            building.rename(root / manifest.generation)
            sync_directory(root)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        activate(root, manifest.generation)
        # Under the lock, or it could remove what another build has written and not yet activated.
        prune(root, keep=keep)
    graphs = [entry.graph for entry in manifest.segments if entry.graph is not None]
    return BuildReport(
        generation=manifest.generation,
        row_count=sum(entry.row_count for entry in manifest.segments),
        segment_count=len(manifest.segments),
        graph_count=len(graphs),
        size_bytes=sum(entry.size_bytes for entry in manifest.segments)
        + sum(graph.size_bytes for graph in graphs),
    )


@dataclass(slots=True)
class _Buffer:
    parts: list[Rows] = field(default_factory=list)
    size_bytes: int = 0


def _write_segments(
    writer: "_SegmentWriter", batches: Iterable[tuple[SegmentKey, Rows]], *, buffer_limit_bytes: int
) -> None:
    """Group rows by key; when all buffers together pass the limit, the largest become segments."""
    buffers: dict[SegmentKey, _Buffer] = {}
    buffered_bytes = 0
    for key, rows in batches:
        if not len(rows):
            continue
        buffer = buffers.setdefault(key, _Buffer())
        buffer.parts.append(rows)
        size_bytes = rows.size_bytes + PAYLOAD_OVERHEAD_BYTES * len(rows)
        buffer.size_bytes += size_bytes
        buffered_bytes += size_bytes
        while buffered_bytes > buffer_limit_bytes:
            largest = max(buffers, key=lambda other: buffers[other].size_bytes)
            full = buffers.pop(largest)
            buffered_bytes -= full.size_bytes
            writer.write(largest, full.parts)
    for key in list(buffers):
        writer.write(key, buffers.pop(key).parts)


class _SegmentWriter:
    """Writes segments and graphs into one directory and keeps the entries for its manifest."""

    def __init__(
        self,
        directory: Path,
        *,
        cache: str,
        config: IndexConfig,
        with_graph: bool,
        progress: Progress | None,
    ) -> None:
        self._directory = directory
        self._cache = cache
        self._config = config
        self._with_graph = with_graph
        self._progress = progress
        self._entries: list[SegmentEntry] = []

    def write(self, key: SegmentKey, parts: list[Rows]) -> None:
        """Seal the rows of `parts` into one segment file, with lists if they are many enough, and with a
        graph if asked for."""
        rows = Rows.concatenate(parts)
        parts.clear()
        if not rows.is_ascending:
            rows = rows.take(np.argsort(rows.entry_ids, kind="stable"))
        stem = f"segment-{len(self._entries) + 1:05d}"
        file = f"{stem}.segment"
        lists = None
        if key.encoder_id is not None and len(rows) >= self._config.lists_min_rows:
            rows, lists = self._order_by_list(rows)
        size_bytes, checksum = write_segment(
            self._directory / file, cache=self._cache, key=key, rows=rows, lists=lists
        )
        entry = SegmentEntry(
            file=file,
            key=key,
            row_count=len(rows),
            size_bytes=size_bytes,
            crc32=checksum,
            graph=self._write_graph(f"{stem}.hnsw", rows) if self._with_graph else None,
        )
        self._entries.append(entry)
        self._show("write", sum(written.row_count for written in self._entries), 0)

    def manifest(self, generation: str, *, watermark: int) -> Manifest:
        """The manifest of everything written so far."""
        encoder_ids = {entry.key.encoder_id for entry in self._entries}
        return Manifest(
            generation=generation,
            cache=self._cache,
            code_bits=self._config.code_bits,
            label_bits=self._config.label_bits,
            watermark=watermark,
            encoder_ids=tuple(sorted(encoder_id for encoder_id in encoder_ids if encoder_id is not None)),
            segments=tuple(self._entries),
        )

    def _show(self, stage: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(stage, done, total)

    def _order_by_list(self, rows: Rows) -> tuple[Rows, InvertedLists]:
        order, lists = build_lists(
            rows.vectors,
            list_count=max(1, len(rows) // self._config.rows_per_list),
            seed=_LISTS_SEED,
            progress=partial(self._show, "lists"),
        )
        return rows.take(order), lists

    def _write_graph(self, file: str, rows: Rows) -> GraphEntry:
        graph = VectorGraph.build(
            rows.vectors,
            m=self._config.hnsw_m,
            ef_construction=self._config.hnsw_ef_construction,
            seed=self._config.hnsw_seed,
        )
        path = self._directory / file
        graph.save(path)
        self._show("graph", len(rows), len(rows))
        return GraphEntry(file=file, size_bytes=path.stat().st_size, crc32=file_crc32(path))
