"""Files of labelled pairs of texts: .jsonl, or .npz with the texts in a .txt beside it."""

import json
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from scripts.arguments import CommandError

LABELS = (0, 1)


@dataclass(frozen=True, slots=True, eq=False)
class TextPairs:
    """Distinct texts, and pairs int64 [p, 3] of text, text and 1 (similar) or 0."""

    texts: list[str]
    pairs: NDArray[np.int64]


def read_text_pairs(path: Path) -> TextPairs:
    """Read a file of labelled pairs of texts.

    .jsonl: {"a": text, "b": text, "label": 0 or 1} a line; equal texts are one, a pair of equal texts is
    left out. .npz: `pairs` [p, 3] of line, line, label; line i (from 0) of the .txt of the same name is text
    i.

    Raises: CommandError that names the file and what is wrong with it.
    """
    readers = {".jsonl": _read_jsonl, ".npz": _read_npz}
    reader = readers.get(path.suffix)
    if reader is None:
        raise CommandError(f"{path}: not one of {', '.join(readers)}")
    try:
        return reader(path)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CommandError(f"{path}: no pairs of texts can be read: {error}") from error


def _read_jsonl(path: Path) -> TextPairs:
    places: dict[str, int] = {}
    pairs = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            first, second, label = _parsed(line, number=number)
            if first != second:
                pairs.append(
                    (places.setdefault(first, len(places)), places.setdefault(second, len(places)), label)
                )
    return TextPairs(texts=list(places), pairs=np.array(pairs, dtype=np.int64).reshape(-1, 3))


def _parsed(line: str, *, number: int) -> tuple[str, str, int]:
    """Raises: ValueError that names the line."""
    pair = json.loads(line)
    if not isinstance(pair, dict):
        raise ValueError(f"line {number} is no object")
    first, second, label = pair.get("a"), pair.get("b"), pair.get("label")
    if not isinstance(first, str) or not isinstance(second, str) or not first.strip() or not second.strip():
        raise ValueError(f'line {number} has no texts "a" and "b"')
    if label not in LABELS:
        raise ValueError(f'line {number} has "label" {label!r}, expected 0 or 1')
    return first, second, int(label)


def _read_npz(path: Path) -> TextPairs:
    with np.load(path, allow_pickle=False) as archive:
        pairs = archive["pairs"]
    with path.with_suffix(".txt").open(encoding="utf-8", newline="\n") as lines:
        texts = [line.rstrip("\r\n") for line in lines]
    return TextPairs(texts=texts, pairs=pairs)
