"""Verify a generation on disk: every checksum, and what the files must agree on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.codes import padding_is_zero, word_count
from index.errors import DamagedFileError
from index.manifest import Manifest, read_listed_graph, read_listed_segment, read_manifest
from index.rows import Rows

NORM_TOLERANCE = 5e-3  # float16 rounding moves a norm by at most 5e-4
NORM_CHUNK_ROWS = 8_192


def check_generation(root: Path, name: str) -> list[str]:
    """List what is wrong with a generation, empty when nothing is; reads every byte, a segment at a time."""
    try:
        manifest = read_manifest(root, name)
    except DamagedFileError as error:
        return [str(error)]
    return check_files(root / name, manifest)


def check_files(
    directory: Path, manifest: Manifest, *, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """List what is wrong with the files of a manifest in `directory`.

    Memory: 24 bytes a row, for the ids of all segments; columns are read where they are mapped.
    progress: called with (rows verified, rows).
    """
    total = sum(entry.row_count for entry in manifest.segments)
    done = 0
    problems: list[str] = []
    id_parts: list[NDArray[np.int64]] = []
    dims: dict[str, int] = {}
    for entry in manifest.segments:
        done += entry.row_count
        path = directory / entry.file
        try:
            rows = read_listed_segment(directory, manifest, entry).rows
            read_listed_graph(directory, entry, dim=rows.dim)
        except DamagedFileError as error:
            problems.append(str(error))
            continue
        id_parts.append(rows.entry_ids)
        dim = dims.setdefault(entry.key.modality, rows.dim)
        if rows.dim != dim:
            problems.append(f"{path}: vectors of {rows.dim} dimensions, other {entry.key.modality} of {dim}")
        problems.extend(f"{path}: {problem}" for problem in _row_problems(rows, manifest))
        if progress is not None:
            progress(done, total)
    ids = np.sort(np.concatenate([np.empty(0, dtype=np.int64), *id_parts]))
    repeated = np.unique(ids[1:][ids[1:] == ids[:-1]]).tolist()
    if repeated:
        problems.append(f"{directory}: {len(repeated)} entry ids in two segments, the first is {repeated[0]}")
    used = {entry.key.encoder_id for entry in manifest.segments} - {None}
    if used != set(manifest.encoder_ids):
        problems.append(f"{directory}: the manifest's encoders are not those of its segments")
    return problems


def _row_problems(rows: Rows, manifest: Manifest) -> Iterator[str]:
    named = (
        ("codes", rows.codes, manifest.code_bits),
        ("label codes", rows.label_codes, manifest.label_bits),
    )
    for what, codes, bit_count in named:
        if codes is None:
            continue
        if codes.shape[1] != word_count(bit_count):
            yield f"{what} of {codes.shape[1]} words, {bit_count} bits need {word_count(bit_count)}"
        elif not padding_is_zero(codes, bit_count=bit_count):
            yield f"{what} have bits set beyond bit {bit_count}"
    if len(rows) and rows.entry_ids.min() < 0:
        yield f"entry id {rows.entry_ids.min()} is negative"
    for start in range(0, len(rows), NORM_CHUNK_ROWS):
        vectors = rows.vectors[start : start + NORM_CHUNK_ROWS].astype(np.float32)
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        wrong = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))  # ~<= catches NaN
        if wrong.size:
            offset = int(wrong[0])
            yield f"vector of entry {rows.entry_ids[start + offset]} has norm {norms[offset]:.4g}, not 1"
            return
