"""Judge an encoder whose label part was updated, by what it finds among stored label codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import Labels
from hashing.embeddings import CHUNK_ROWS
from hashing.inference import Encoder
from hashing.label_part import is_finite
from hashing.metrics import ClassRetrieval, class_retrieval
from hashing.shares import share_bounds
from hashing.trainer import Progress, no_progress

MAP_TOLERANCE = 0.01
"""Loss of mAP on old rows that the gate lets pass, unless told otherwise."""

FLIP_TOLERANCE = 0.02
"""Share of old queries whose right answer may turn wrong, unless told otherwise; in steps of 15 of the 150
intents .001 to .008 do."""

_NAN = float("nan")


@dataclass(frozen=True, slots=True, eq=False)
class LabelledRows:
    """Stored rows of a database and held-out queries against it.

    embeddings: float [n, dim], labels: of each row, at least one.
    query_embeddings: float [q, dim], learned from by no encoder; query_labels: of each query.
    """

    embeddings: NDArray[np.floating]
    labels: Labels
    query_embeddings: NDArray[np.floating]
    query_labels: Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelGateReport:
    """What an update does to what is stored; NaN where the old encoder has no label part or no query can be
    judged.

    old_map_before, old_map_after: mAP of the old queries against the old rows' stored label codes, with
    the old and the new encoder. new_map_after: mAP of the new queries against all stored label codes, with
    the new encoder. right_before: share of the old queries whose first answer is right, of the old encoder
    among the old rows. negative_flips, positive_flips: share of them whose answer turns from right to wrong,
    and back, with the new encoder among all rows. query_drift: share of the bits of the old queries, rounded
    to label codes, that the encoders disagree on. stored_bits_changed: bits of the old rows' instance and
    label codes that the encoders disagree on. reasons: why not accepted; empty otherwise.
    """

    old_map_before: float = _NAN
    old_map_after: float = _NAN
    new_map_after: float = _NAN
    right_before: float = _NAN
    negative_flips: float = _NAN
    positive_flips: float = _NAN
    query_drift: float = _NAN
    stored_bits_changed: int = 0
    reasons: tuple[str, ...] = ()
    accepted: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "accepted", not self.reasons)


def evaluate_label_update(
    old: Encoder,
    new: Encoder,
    *,
    old_rows: LabelledRows | None,
    new_rows: LabelledRows,
    modality: str | None = None,
    map_tolerance: float = MAP_TOLERANCE,
    flip_tolerance: float = FLIP_TOLERANCE,
    seed: int = 0,
    progress: Progress = no_progress,
) -> LabelGateReport:
    """Compare an updated encoder with its parent on what is stored.

    old_rows: None where nothing labelled was stored before. new_rows: what the update learned, with held-out
    queries; there may be none. modality: of all these rows; None for that of the label part. The new
    encoder is accepted iff it loses at most `map_tolerance` of mAP on the old queries, the share of their
    answers that turn wrong (negative flips: Yan et al., CVPR 2021) is not surely, by `share_bounds`, over
    `flip_tolerance`, no stored bit changes, and its label part is finite. Cost O(queries x stored rows): pass
    a sample of a large database.
    progress: told of "judge", in queries; may raise to stop.
    Raises: UnknownLabelError; NoLabelPartError for a new encoder without one; UnknownModalityError;
    EmbeddingsError.
    """
    modality = next(iter((*new.label_modalities, *new.projections))) if modality is None else modality
    judged_before = old_rows is not None and modality in old.label_heads
    old_count = len(old_rows.query_labels) if old_rows is not None and judged_before else 0
    told = _Told(progress, total=3 * old_count + len(new_rows.query_labels))
    figures: dict[str, float] = {}
    bits_changed = flip_count = 0
    stored_bits = new.class_bits(new_rows.labels)
    stored_labels = list(new_rows.labels)
    if old_rows is not None:
        old_bits = new.class_bits(old_rows.labels)
        bits_changed = _instance_bits_changed(old, new, old_rows.embeddings, modality=modality)
        if judged_before:
            new_bits, old_bits = old_bits, old.class_bits(old_rows.labels)
            bits_changed += int(np.count_nonzero(old_bits != new_bits))
        stored_bits = np.concatenate([old_bits, stored_bits])
        stored_labels = [*old_rows.labels, *stored_labels]
        if judged_before:
            before = _found(old, old_rows, old_bits, old_rows.labels, modality=modality, seed=seed, told=told)
            after = _found(new, old_rows, old_bits, old_rows.labels, modality=modality, seed=seed, told=told)
            served = _found(
                new, old_rows, stored_bits, stored_labels, modality=modality, seed=seed, told=told
            )
            flips = before.right & ~served.right
            flip_count = int(np.count_nonzero(flips))
            figures = {
                "old_map_before": before.mean_precision,
                "old_map_after": after.mean_precision,
                "right_before": _share(before.right),
                "negative_flips": _share(flips),
                "positive_flips": _share(~before.right & served.right),
                "query_drift": _share(
                    (old.label_values(old_rows.query_embeddings, modality=modality) > 0)
                    != (new.label_values(old_rows.query_embeddings, modality=modality) > 0)
                ),
            }
    asked = _found(new, new_rows, stored_bits, stored_labels, modality=modality, seed=seed, told=told)
    reasons = _map_reasons(figures, tolerance=map_tolerance)
    if share_bounds(flip_count, old_count)[0] > flip_tolerance:
        reasons.append(f"{flip_count} of {old_count} old answers turn wrong, tolerance {flip_tolerance}")
    if not is_finite(new.label_heads[modality], new_rows.query_embeddings):
        reasons.insert(0, "the label part is not finite")
    if bits_changed:
        reasons.append(f"{bits_changed} stored bits change")
    return LabelGateReport(
        **figures,
        new_map_after=asked.mean_precision,
        stored_bits_changed=bits_changed,
        reasons=tuple(reasons),
    )


class _Told:
    """Progress over several measurements."""

    def __init__(self, progress: Progress, *, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        progress("judge", 0, total)

    def measurement(self) -> Callable[[int], None]:
        """What tells the queries done of the next measurement."""
        start = self._done

        def tell(done: int) -> None:
            self._done = start + done
            self._progress("judge", self._done, self._total)

        return tell


def _found(
    encoder: Encoder,
    rows: LabelledRows,
    stored_bits: NDArray[np.bool_],
    stored_labels: Labels,
    *,
    modality: str,
    seed: int,
    told: _Told,
) -> ClassRetrieval:
    return class_retrieval(
        encoder.label_values(rows.query_embeddings, modality=modality),
        stored_bits,
        query_labels=rows.query_labels,
        row_labels=stored_labels,
        seed=seed,
        report=told.measurement(),
    )


def _map_reasons(figures: dict[str, float], *, tolerance: float) -> list[str]:
    """Why the mAP is refused; one that can no longer be measured is."""
    before, after = figures.get("old_map_before", _NAN), figures.get("old_map_after", _NAN)
    if np.isnan(before) or before - after <= tolerance:
        return []
    return [f"mAP on old rows falls from {before:.4f} to {after:.4f}, tolerance {tolerance}"]


def _instance_bits_changed(
    old: Encoder, new: Encoder, embeddings: NDArray[np.floating], *, modality: str
) -> int:
    changed = 0
    for start in range(0, embeddings.shape[0], CHUNK_ROWS):
        chunk = embeddings[start : start + CHUNK_ROWS]
        before = old.instance_bits(chunk, modality=modality)
        changed += int(np.count_nonzero(before != new.instance_bits(chunk, modality=modality)))
    return changed


def _share(marks: NDArray[np.bool_]) -> float:
    return float(marks.mean()) if marks.size else _NAN
