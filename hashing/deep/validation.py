"""Judge towers on what was held out: the score that chooses the pass, the figures that an encoder keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import Labels
from hashing.deep.config import TrainingConfig
from hashing.deep.scorer import PairScores
from hashing.deep.training_set import Split, TrainingSet, matched_rows
from hashing.embeddings import as_rows, signs, unit_rows
from hashing.metrics import class_retrieval_map, code_recall, pair_auc
from hashing.pair_scorer import PairScorer, PrefixScorer
from hashing.radius import bit_counts
from hashing.tower import InstanceMap
from hashing.trainer import METRIC_QUERIES_LIMIT, METRIC_ROWS_LIMIT

MATCH_RANK = 10
"""A match counts as found among this many nearest."""

Figures = dict[str, float]
Check = Callable[[Mapping[str, InstanceMap]], tuple[float, Figures]]


class Validation:
    """The held-out part of a training set, seen through the losses that are learned.

    Pairs: AUC of real-valued queries against stored bits. Labels: class retrieval mAP of held-out rows among
    training rows. Neighbours: share of a held-out row's exact top 10 training rows in its code top 100.
    Matches: share of held-out rows whose partner is among their MATCH_RANK nearest held-out rows of the
    other modality, and with labels the mAP across modalities. Pairs and neighbours: mean over prefixes.
    The score is the mean of those.
    """

    def __init__(
        self, training_set: TrainingSet, split: Split, *, config: TrainingConfig, rng: np.random.Generator
    ) -> None:
        self._set = training_set
        self._split = split
        self._seed = config.seed
        self._prefixes = bit_counts(config.code_bits)
        self._rows = {
            modality: {
                "queries": _some(split.held_out[modality], METRIC_QUERIES_LIMIT, rng=rng),
                "rows": _some(split.training[modality], METRIC_ROWS_LIMIT, rng=rng),
            }
            for modality in training_set.embeddings
        }
        self._scores: PairScores | None = None
        own = config.losses
        self._checks: list[Check] = []
        if own.of_pairs:
            self._checks.append(self._judge_pairs)
        if own.of_labels:
            self._checks.append(self._judge_labels)
        if own.of_neighbours:
            self._checks.append(self._judge_neighbours)
        if own.matches.info_nce:
            self._checks.append(self._judge_matches)
        if own.matches.likelihood:
            self._checks.append(self._judge_labels_across)

    def judge_by(self, scores: PairScores) -> None:
        """Judge pairs by these scores, as they are when it is asked; by the cosine without."""
        self._scores = scores

    def score(self, maps: Mapping[str, InstanceMap]) -> float:
        """The mean of what is judged; higher is better, NaN where no held-out row judges anything."""
        return _mean_of_known([check(maps)[0] for check in self._checks])

    def figures(self, maps: Mapping[str, InstanceMap]) -> Figures:
        """All that was measured, by name."""
        found = (figure for check in self._checks for figure in check(maps)[1].items())
        return {name: value for name, value in found if not np.isnan(value)}

    def _embeddings(self, modality: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return as_rows(self._set.embeddings[modality][rows])

    def _labels(self, modality: str, rows: NDArray[np.int64]) -> Labels:
        own = self._set.labels[modality]
        return [own[row] for row in rows.tolist()]

    def _judge_pairs(self, maps: Mapping[str, InstanceMap]) -> tuple[float, Figures]:
        assert self._split.pairs is not None
        pairs = self._split.pairs.validation
        first, second = (self._embeddings(self._set.main, pairs[:, side]) for side in (0, 1))
        similar = pairs[:, 2] == 1
        queries, stored = (maps[self._set.main].project(side) for side in (first, second))
        cosines = np.einsum("vd,vd->v", unit_rows(first), unit_rows(second))
        figures = {"validation_auc_cosine": pair_auc(cosines, similar)}
        scorer = None if self._scores is None else self._scores.exported()
        for count in self._prefixes:
            logits, code_logits = pair_logits(queries, stored, count=count, scorer=scorer)
            figures[f"validation_auc_{count}"] = pair_auc(logits, similar)
            figures[f"validation_auc_codes_{count}"] = pair_auc(code_logits, similar)
        return float(np.mean([figures[f"validation_auc_{count}"] for count in self._prefixes])), figures

    def _judge_labels(self, maps: Mapping[str, InstanceMap]) -> tuple[float, Figures]:
        found = {modality: self._map_of(maps, modality, modality) for modality in self._set.labels}
        return _mean_of_known(list(found.values())), {
            f"validation_map_{modality}": value for modality, value in found.items()
        }

    def _judge_labels_across(self, maps: Mapping[str, InstanceMap]) -> tuple[float, Figures]:
        found = {
            f"validation_map_{first}_to_{second}": self._map_of(maps, first, second)
            for first, second in permutations(self._set.labels, 2)
        }
        return _mean_of_known(list(found.values())), found

    def _map_of(self, maps: Mapping[str, InstanceMap], first: str, second: str) -> float:
        queries, rows = self._rows[first]["queries"], self._rows[second]["rows"]
        return class_retrieval_map(
            unit_rows(maps[first].project(self._embeddings(first, queries))),
            maps[second].project(self._embeddings(second, rows)) > 0,
            query_labels=self._labels(first, queries),
            row_labels=self._labels(second, rows),
            seed=self._seed,
        )

    def _judge_neighbours(self, maps: Mapping[str, InstanceMap]) -> tuple[float, Figures]:
        main = self._set.main
        queries, rows = (
            unit_rows(self._embeddings(main, self._rows[main][part])) for part in ("queries", "rows")
        )
        asked, stored = maps[main].project(queries), maps[main].project(rows)
        recalls = {
            count: code_recall(
                asked[:, :count],
                stored[:, :count],
                queries=queries,
                rows=rows,
                truth_count=10,
                candidate_count=100,
            )
            for count in self._prefixes
        }
        figures = {f"recall_at_10_in_100_{count}": recall for count, recall in recalls.items()}
        return float(np.mean(list(recalls.values()))), figures

    def _judge_matches(self, maps: Mapping[str, InstanceMap]) -> tuple[float, Figures]:
        figures: Figures = {}
        for first, second in permutations(self._set.items, 2):
            queries, rows = self._rows[first]["queries"], self._rows[second]["queries"]
            items, others = self._set.items[first][queries], self._set.items[second][rows]
            matches = matched_rows(items, others)
            if matches.size:
                values = maps[first].project(self._embeddings(first, queries))
                codes = signs(maps[second].project(self._embeddings(second, rows)))
                figures[f"validation_recall_{first}_to_{second}"] = _match_recall(values, codes, matches)
        return _mean_of_known(list(figures.values())), figures


def _match_recall(
    values: NDArray[np.float32], codes: NDArray[np.float32], matches: NDArray[np.int64]
) -> float:
    """Return the share of matched queries with a partner among their MATCH_RANK nearest codes."""
    scores = values @ codes.T
    found: dict[int, bool] = {}
    for query, row in matches.tolist():
        ahead = int(np.count_nonzero(scores[query] > scores[query, row]))
        found[query] = found.get(query, False) or ahead < MATCH_RANK
    return float(np.mean(list(found.values())))


def pair_logits(
    queries: NDArray[np.float32], stored: NDArray[np.float32], *, count: int, scorer: PairScorer | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the scores of queries against codes, and of codes against codes; without scorer the cosines.

    queries, stored: real values h of the sides of each pair, float32 [n, bits]. count: of leading bits.
    """
    if scorer is None:
        zero = np.zeros(count, dtype=np.float32)
        scorer = PairScorer({count: PrefixScorer(1.0, 0.0, zero, zero)})
    logits = scorer.logits(queries, stored > 0, count=count)
    code_logits = scorer.code_logits(queries > 0, stored > 0, count=count)
    # Of codes the scores tie: rounded, so that ties are not told apart by the order of summation.
    return np.round(logits, 6), np.round(code_logits, 6)


def _mean_of_known(values: Sequence[float]) -> float:
    """The mean of the values that are no NaN; NaN where all are."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _some(rows: NDArray[np.int64], limit: int, *, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.sort(rng.permutation(rows)[:limit])
