"""Labelled queries that arrive in steps, a domain of classes at a time."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import Labels
from scripts.arguments import CommandError
from scripts.bench.intents import load_intents

DOMAINS_NAME = "intent_domains.json"
STEPS = 10
"""Parts that classes are dealt into where no file says what belongs together."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledStep:
    """What one step brings. rows, queries: float32 [n, dim] and [q, dim], unit. row_labels, query_labels: one
    of each."""

    rows: NDArray[np.float32]
    row_labels: Labels
    queries: NDArray[np.float32]
    query_labels: Labels


def load_steps(folder: Path, *, seed: int, tuning: bool, query_limit: int) -> list[LabelledStep]:
    """Read `intents.npz` and deal its classes into steps: the domains of `intent_domains.json`, in an order
    drawn by `seed`; without that file STEPS parts of classes, drawn too. Rows come in a drawn order.

    Raises: CommandError as `load_intents`, and for domains that leave out a class or give fewer than two
    steps.
    """
    intents = load_intents(folder, tuning=tuning, query_limit=query_limit, seed=seed)
    rng = np.random.default_rng(seed)
    row_names, query_names = (
        np.array([name for (name,) in own]) for own in (intents.row_labels, intents.query_labels)
    )
    groups = _domains(folder, classes=sorted(set(row_names.tolist())), rng=rng)
    steps = []
    for index in rng.permutation(len(groups)):
        stored = rng.permutation(np.flatnonzero(np.isin(row_names, groups[index])))
        asked = np.flatnonzero(np.isin(query_names, groups[index]))
        if not (stored.size and asked.size):
            continue
        steps.append(
            LabelledStep(
                rows=intents.rows[stored],
                row_labels=[intents.row_labels[row] for row in stored.tolist()],
                queries=intents.queries[asked],
                query_labels=[intents.query_labels[row] for row in asked.tolist()],
            )
        )
    if len(steps) < 2:
        raise CommandError(f"{folder}: its classes make {len(steps)} steps, two are needed")
    return steps


def _domains(folder: Path, *, classes: Sequence[str], rng: np.random.Generator) -> list[list[str]]:
    path = folder / DOMAINS_NAME
    if not path.is_file():
        count = min(STEPS, len(classes))
        return [part.tolist() for part in np.array_split(rng.permutation(list(classes)), count)]
    try:
        domains = [list(map(str, own)) for own in json.loads(path.read_text(encoding="utf-8")).values()]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CommandError(f"{path}: no object of domains and their classes: {error}") from error
    missing = set(classes) - {name for own in domains for name in own}
    if missing:
        raise CommandError(f"{path}: class {min(missing)!r} is in no domain")
    return domains
