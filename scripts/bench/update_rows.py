"""Labelled rows for the benchmark of updates: a store that an encoder has learned, and batches to come."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.arguments import CommandError
from scripts.bench.intents import load_intents
from scripts.bench.stored import CACHE, CATEGORY, CODE_BITS, DIM
from scripts.server_process import write_config

_CLASSES, _QUICK_CLASSES = 120, 30
_ROWS_PER_CLASS = 60
_KNOWN_SHARE = 2 / 3
_SPREAD = 0.8  # length of the noise beside a centre of length 1
# A dead worker's job is taken over after two seconds; nothing but the benchmark queues one.
_UPDATE_CONFIG = """
[update]
lease_seconds = 2.0
poll_seconds = 0.1
min_labelled_rows = 1000000000
max_age_seconds = 0.0
"""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledBatch:
    """embeddings: float32 [n, DIM], of norm 1. labels: one of each row."""

    embeddings: NDArray[np.float32]
    labels: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.intp]) -> "LabelledBatch":
        """Some of them."""
        return LabelledBatch(self.embeddings[rows], self.labels[rows])


def made_up_rows(*, quick: bool) -> LabelledBatch:
    """Classes around random centres."""
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(_QUICK_CLASSES if quick else _CLASSES), _ROWS_PER_CLASS)
    centres = _unit(rng.standard_normal((classes.max() + 1, DIM)))
    noise = _unit(rng.standard_normal((len(classes), DIM)))
    labels = np.array([f"class {number}" for number in classes])
    return LabelledBatch(_unit(centres[classes] + _SPREAD * noise).astype(np.float32), labels)


def intent_rows(folder: Path) -> LabelledBatch:
    """The training split of the intents. Raises: CommandError."""
    intents = load_intents(folder, tuning=True, query_limit=1, seed=0)
    if intents.rows.shape[1] != DIM:
        raise CommandError(f"{folder}: intents have {intents.rows.shape[1]} dimensions, not {DIM}")
    return LabelledBatch(intents.rows, np.array([own[0] for own in intents.row_labels]))


def split_rows(rows: LabelledBatch, *, batches: int) -> tuple[LabelledBatch, list[LabelledBatch]]:
    """Rows of the classes that are known at first, and those of the others in `batches` parts, by class."""
    names = np.random.default_rng(0).permutation(np.unique(rows.labels))
    order = {str(name): place for place, name in enumerate(names)}
    places = np.array([order[str(label)] for label in rows.labels])
    known = places < _KNOWN_SHARE * len(names)
    coming = np.flatnonzero(~known)
    coming = coming[np.argsort(places[coming], kind="stable")]
    if batches > len(coming):
        raise CommandError(f"{len(coming)} rows are left for {batches} updates")
    return rows.take(np.flatnonzero(known)), [rows.take(part) for part in np.array_split(coming, batches)]


def make_store(folder: Path, rows: LabelledBatch) -> Path:
    """Load, train and build as an operator would; returns the configuration file. Raises: CommandError."""
    config_path = write_config(folder)
    with config_path.open("a", encoding="utf-8") as file:
        file.write(_UPDATE_CONFIG)
    numbers = range(len(rows))
    np.savez(
        folder / "rows.npz",
        embeddings=rows.embeddings,
        labels=rows.labels,
        text=np.array([f"question number {number}" for number in numbers]),
        response=np.array([f"answer {number}" for number in numbers]),
    )
    command = [
        *(sys.executable, "-m", "scripts", "build", "--config", str(config_path), "--cache", CACHE),
        *("--input", str(folder / "rows.npz"), "--category", CATEGORY),
        *("--train", "--code-bits", str(CODE_BITS), "--json"),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CommandError(f"the build failed: {done.stderr}")
    return config_path


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norms: NDArray[np.float64] = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / norms
