"""What a training reads: rows of one or more modalities, what is known of them, and what is held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashing.class_codes import Labels
from hashing.deep.config import TrainingConfig
from hashing.deep.pairs import PairSplit, check_pairs, split_pairs
from hashing.deep.views import check_views
from hashing.embeddings import check_training_rows
from hashing.errors import ConfigError, TrainingDataError
from hashing.trainer import HELD_OUT_LEAST_ROWS, HELD_OUT_ROWS_LIMIT, labelled_rows

MIN_MATCHES = 20
"""Items that both modalities have; fewer leave nothing to learn from and judge by."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSet:
    """Rows by modality, and what is known of them. Rows are numbered within their modality.

    embeddings: modality -> float [n, dim], L2-normalised; the first is the main one, to which `pairs`
    refer and on which radii are calibrated. pairs: integers [p, 3] of row, row, 1 (similar) or 0.
    labels: modality -> the labels of each row, () for a row without. items: modality -> integers [n]; rows of
    different modalities with equal numbers are of one item (an image and its caption). view_dims: columns of
    each view where rows of the main modality are several embeddings side by side; () for one.
    """

    embeddings: Mapping[str, NDArray[np.floating]]
    pairs: ArrayLike | None = None
    labels: Mapping[str, Labels] = field(default_factory=dict)
    items: Mapping[str, NDArray[np.integer]] = field(default_factory=dict)
    view_dims: tuple[int, ...] = ()

    @property
    def main(self) -> str:
        """The first modality."""
        return next(iter(self.embeddings))


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """A training set, checked and divided. training, held_out: modality -> sorted row numbers, which together
    are all rows. pairs: None without pairs."""

    training: Mapping[str, NDArray[np.int64]]
    held_out: Mapping[str, NDArray[np.int64]]
    pairs: PairSplit | None


def split_set(training_set: TrainingSet, *, config: TrainingConfig, rng: np.random.Generator) -> Split:
    """Check that the set has what the losses read, and hold a part out, before any time is spent.

    Held out are `validation_share` of the pairs, by whole components, with their rows; of the main modality's
    rows in no pair the same share, HELD_OUT_LEAST_ROWS at least and HELD_OUT_ROWS_LIMIT at most, by whole
    items where rows have them; of another modality every row whose item is held out with them, and the same
    share of rows without item there.

    Raises: ConfigError for a loss whose input is missing, or where no loss relates the codes of a modality to
    those of the main one; EmbeddingsError; TrainingDataError.
    """
    _check(training_set, config=config)
    main = training_set.main
    row_count = training_set.embeddings[main].shape[0]
    pairs = None
    free = np.arange(row_count)
    items = training_set.items.get(main, free)
    held = np.zeros(row_count, dtype=np.bool_)
    if training_set.pairs is not None:
        checked = check_pairs(training_set.pairs, row_count=row_count)
        pairs = split_pairs(checked, row_count=row_count, validation_share=config.validation_share, rng=rng)
        held[np.unique(pairs.validation[:, :2])] = True
        free = np.setdiff1d(free, np.unique(checked[:, :2]))
    drawn = _drawn(np.unique(items[free]), share=config.validation_share, rng=rng)
    held[free[np.isin(items[free], drawn)]] = True
    held_out = {main: np.flatnonzero(held)}
    for modality, embeddings in training_set.embeddings.items():
        if modality != main:
            held_out[modality] = _held_out_with(
                training_set, modality, held, row_count=embeddings.shape[0], config=config, rng=rng
            )
    training = {
        modality: np.setdiff1d(np.arange(embeddings.shape[0]), held_out[modality])
        for modality, embeddings in training_set.embeddings.items()
    }
    for modality, own in training.items():
        if own.size < 2:
            count = own.size + held_out[modality].size
            raise TrainingDataError(f"{modality}: {count} rows are too few to learn from and judge by")
    return Split(training=training, held_out=held_out, pairs=pairs)


def matched_rows(first: NDArray[np.integer], second: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return all rows int64 [m, 2] of two modalities with equal item numbers, in the order of `first`.

    first, second: integers [n], [k]; an item may have several rows in both.
    """
    order = np.argsort(second, kind="stable")
    starts = np.searchsorted(second[order], first, side="left")
    counts = np.searchsorted(second[order], first, side="right") - starts
    rows = np.repeat(np.arange(first.size), counts)
    within = np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.column_stack([rows, order[np.repeat(starts, counts) + within]]).astype(np.int64)


def _check(training_set: TrainingSet, *, config: TrainingConfig) -> None:
    losses = config.losses
    if training_set.view_dims:
        main = training_set.embeddings[training_set.main]
        check_views(training_set.view_dims, dim=main.shape[1] if main.ndim == 2 else 0)
    several = len(training_set.embeddings) > 1
    for name, wanted, there in (
        ("losses.pairs", losses.of_pairs, training_set.pairs is not None),
        ("losses.labels", losses.of_labels, bool(training_set.labels)),
        ("losses.matches", losses.of_matches, several),
        ("losses.matches.info_nce", losses.matches.info_nce > 0, several and bool(training_set.items)),
        (
            "losses.matches.likelihood",
            losses.matches.likelihood > 0,
            several and set(training_set.labels) >= set(training_set.embeddings),
        ),
    ):
        if wanted and not there:
            raise ConfigError(name, "a weight above 0", "0, as what it learns from is not given")
    for modality in list(training_set.embeddings)[1:]:
        labelled = {training_set.main, modality} <= set(training_set.labels)
        if not (losses.of_matches or (losses.of_labels and labelled)):
            raise ConfigError(
                "losses.matches", 0, f"above 0: nothing else relates {modality} to {training_set.main}"
            )
    for modality in (*training_set.labels, *training_set.items):
        if modality not in training_set.embeddings:
            raise TrainingDataError(f"labels or items of {modality!r}, of which there are no rows")
    for modality, embeddings in training_set.embeddings.items():
        try:
            check_training_rows(embeddings)
        except TrainingDataError as error:
            raise TrainingDataError(f"{modality}: {error.reason}") from error
        if (
            config.tower.kind == "linear"
            and config.tower.threshold
            and config.code_bits > embeddings.shape[1]
        ):
            raise ConfigError(
                "tower.threshold",
                config.tower.threshold,
                f"false for a linear tower of {embeddings.shape[1]} dimensions with {config.code_bits} bits",
            )
        if modality in training_set.labels:
            labelled_rows(training_set.labels[modality], row_count=embeddings.shape[0])
        items = training_set.items.get(modality)
        if items is not None and (items.shape != (embeddings.shape[0],) or items.dtype.kind not in "iu"):
            raise TrainingDataError(
                f"{modality}: items must be integers, one for each of {embeddings.shape[0]} rows,"
                f" got {items.dtype}{list(items.shape)}"
            )
    if losses.matches.info_nce:
        for modality in list(training_set.embeddings)[1:]:
            count = _match_count(training_set, training_set.main, modality)
            if count < MIN_MATCHES:
                raise TrainingDataError(
                    f"{training_set.main} and {modality} share {count} items, training needs {MIN_MATCHES}"
                )


def _match_count(training_set: TrainingSet, first: str, second: str) -> int:
    items = training_set.items
    if first not in items or second not in items:
        return 0
    return int(np.intersect1d(items[first], items[second]).size)


def _held_out_with(
    training_set: TrainingSet,
    modality: str,
    held: NDArray[np.bool_],
    *,
    row_count: int,
    config: TrainingConfig,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return the rows of another modality that are held out, given those of the main one, bool [n]."""
    items, main_items = training_set.items.get(modality), training_set.items.get(training_set.main)
    if items is None or main_items is None:
        return _drawn(np.arange(row_count), share=config.validation_share, rng=rng)
    shared = np.isin(items, main_items[held])
    free = np.flatnonzero(~np.isin(items, main_items))
    shared[_drawn(free, share=config.validation_share, rng=rng, least=0)] = True
    return np.flatnonzero(shared)


def _drawn(
    rows: NDArray[np.integer], *, share: float, rng: np.random.Generator, least: int = HELD_OUT_LEAST_ROWS
) -> NDArray[np.int64]:
    """Draw `share` of the rows or items, at least `least` where that leaves as many, at most
    HELD_OUT_ROWS_LIMIT."""
    count = min(max(int(share * rows.size), min(least, rows.size // 2)), HELD_OUT_ROWS_LIMIT)
    return np.sort(rng.choice(rows, size=count, replace=False)).astype(np.int64)
