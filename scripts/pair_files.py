"""Files of labelled pairs: .npz of embeddings and row numbers, .jsonl of texts."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from scripts.arguments import CommandError
from scripts.row_files import read_lines

PAIR_KEYS = ("a", "b", "label")
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    BadZipFile,
    zlib.error,
    TypeError,
)  # TypeError: a .npy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbeddedPairs:
    """embeddings: [n, dim]; pairs: [p, 3] of row, row, label, both as they are in the file; texts: of the
    rows, None where the file has none."""

    embeddings: NDArray[Any]
    pairs: NDArray[Any]
    texts: list[str] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextPairs:
    """texts: distinct ones; pairs: int64 [p, 3] of text, text, 1 (same) or 0."""

    texts: list[str]
    pairs: NDArray[np.int64]


def read_embedded_pairs(path: Path) -> EmbeddedPairs:
    """Read a .npz of `embeddings`, `pairs` and, where it has them, `text`. Raises: CommandError."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            texts = archive["text"] if "text" in archive.files else None
            embeddings, pairs = archive["embeddings"], archive["pairs"]
    except _UNREADABLE as error:
        raise CommandError(f"{path}: no .npz of embeddings and pairs: {error}") from error
    if texts is not None and (texts.dtype.kind != "U" or texts.ndim != 1):
        raise CommandError(f"{path}: text must be strings [n], is {texts.dtype}{list(texts.shape)}")
    return EmbeddedPairs(
        embeddings=embeddings, pairs=pairs, texts=None if texts is None else [str(text) for text in texts]
    )


def read_text_pairs(path: Path) -> TextPairs:
    """Read labelled pairs of texts.

    .jsonl: objects of texts "a" and "b", and "label", 1 (same) or 0; a pair of equal texts says nothing
    and is left out. .npz: `pairs` [p, 3] of line, line, label; line i, from 0, of the .txt of the same name
    is text i.
    Raises: CommandError.
    """
    if path.suffix == ".npz":
        return TextPairs(texts=read_lines(path.with_suffix(".txt")), pairs=_read_array(path, "pairs"))
    rows: dict[str, int] = {}
    pairs: list[tuple[int, int, int]] = []
    for place, first, second, label in read_pair_lines(path):
        for text in (first, second):
            if not isinstance(text, str) or not text.strip():
                raise CommandError(f"{place}: a and b must be texts, not {text!r}")
        if first != second:
            pairs.append((rows.setdefault(first, len(rows)), rows.setdefault(second, len(rows)), label))
    return TextPairs(texts=list(rows), pairs=np.array(pairs, dtype=np.int64).reshape(-1, 3))


def _read_array(path: Path, name: str) -> NDArray[Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            array: NDArray[Any] = archive[name]
    except _UNREADABLE as error:
        raise CommandError(f"{path}: no .npz of {name}: {error}") from error
    return array


def read_pair_lines(path: Path) -> list[tuple[str, Any, Any, int]]:
    """Read a .jsonl of objects with "a", "b" and "label": of each its place in the file and those three.

    Raises: CommandError, also for no pair.
    """
    found = []
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    place = f"{path}, line {number}"
                    found.append((place, *_read_pair(line, place=place)))
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: {error}") from error
    if not found:
        raise CommandError(f"{path}: holds no pairs")
    return found


def _read_pair(line: str, *, place: str) -> tuple[Any, Any, int]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise CommandError(f"{place}: is not JSON: {error}") from error
    if not isinstance(row, Mapping) or any(key not in row for key in PAIR_KEYS):
        raise CommandError(f"{place}: needs {', '.join(PAIR_KEYS)}")
    first, second, label = (row[key] for key in PAIR_KEYS)
    if label not in (0, 1):
        raise CommandError(f"{place}: label must be 1 (same) or 0, not {label!r}")
    if first is None or second is None:
        raise CommandError(f"{place}: a and b must name rows or be texts, not null")
    return first, second, int(label)
