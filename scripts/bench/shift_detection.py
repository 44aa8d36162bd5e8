"""How soon a new domain of queries is noticed without labels, and how often nothing is taken for one.

From a folder with `intents.npz` and `intent_domains.json`. Each domain in turn is unseen: the training rows
of the others are stored, and half of the queries of the others, by seed, make the reference. Streams are
drawn with replacement from the other half, which the reference has not seen; the error of either sample is
in the figures.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from hashing.errors import TrainingDataError
from hashing.shift import ShiftMonitor
from hashing.shift_reference import BLOCK, ShiftReference, fit_shift_reference
from scripts.arguments import CommandError
from scripts.bench.data import unit_chunks, unit_rows
from scripts.bench.intents import FILE_NAME
from scripts.bench.lines import Figure

DOMAINS_NAME = "intent_domains.json"
SHARES = (0.3, 1.0)
BATCHES = 4
_BEFORE_BATCHES = 10
_STREAMS, _QUICK_STREAMS = 300, 30
_QUIET_BATCHES, _QUICK_QUIET_BATCHES = 10_000, 1_000  # a domain and seed
_CALL_BATCHES = 100
_SEEDS, _QUICK_SEEDS = 3, 1
_METHOD = "shift_monitor"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DomainQueries:
    """Queries against the stored rows of each domain alone.

    best_distances: float32 [q, domains]. domains: int [q], the query's own, a column. names: one a column.
    """

    best_distances: NDArray[np.float32]
    domains: NDArray[np.intp]
    names: tuple[str, ...]

    def leave_out(self, domain: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return best distances among the other domains: of their own queries, and of this domain's."""
        best = np.delete(self.best_distances, domain, axis=1).min(axis=1)
        return best[self.domains != domain], best[self.domains == domain]


def load_domain_queries(folder: Path, *, tuning: bool) -> DomainQueries:
    """Measure each query of the test split, or with `tuning` of the validation split, against each domain.

    Queries of no domain are left out. Raises: CommandError for missing files or arrays, or under two domains.
    """
    path = folder / FILE_NAME
    try:
        intents_of = json.loads((folder / DOMAINS_NAME).read_text())
        domain_of = {intent: domain for domain, intents in intents_of.items() for intent in intents}
        with np.load(path, allow_pickle=False) as archive:
            embeddings, splits = archive["embeddings"], archive["split"].astype(str)
            own = np.array([domain_of.get(name, "") for name in archive["intent"].astype(str).tolist()])
    except (OSError, ValueError, KeyError, EOFError, AttributeError, BadZipFile) as error:
        raise CommandError(f"{folder}: no intents with their domains: {error!r}") from error
    if not len(embeddings) == len(splits) == len(own):
        raise CommandError(f"{path}: arrays of different lengths")
    asked = np.flatnonzero((splits == ("val" if tuning else "test")) & (own != ""))
    stored = (splits == "train") & (own != "")
    names = tuple(name for name in intents_of if (own[asked] == name).any() and (own[stored] == name).any())
    if len(names) < 2:
        raise CommandError(f"{folder}: a shift needs queries and training rows of two domains at least")
    asked = asked[np.isin(own[asked], names)]
    queries = unit_rows(embeddings[asked])
    best = np.full((len(asked), len(names)), 2, dtype=np.float32)
    for column, name in enumerate(names):
        for _, rows in unit_chunks(embeddings[stored & (own == name)]):
            np.minimum(best[:, column], 1 - (queries @ rows.T).max(axis=1), out=best[:, column])
    domains = np.array([names.index(name) for name in own[asked].tolist()])
    return DomainQueries(best_distances=best, domains=domains, names=names)


def shift_figures(folder: Path, *, tuning: bool = False, quick: bool = False) -> Iterator[Figure]:
    """Yield how many shifts are flagged in time, over all domains and in the worst one, and false alarms.

    A shift is flagged where an alarm says farther within BATCHES batches of BLOCK queries after it began, and
    none was raised in the stream before. Raises: CommandError.
    """
    queries = load_domain_queries(folder, tuning=tuning)
    seeds = _QUICK_SEEDS if quick else _SEEDS
    streams = _QUICK_STREAMS if quick else _STREAMS
    quiet_batches = _QUICK_QUIET_BATCHES if quick else _QUIET_BATCHES
    flagged = np.zeros((len(SHARES), len(queries.names), seeds))
    alarms = np.zeros((len(queries.names), seeds))
    for domain, name in enumerate(queries.names):
        known, unseen = queries.leave_out(domain)
        for seed in range(seeds):
            rng = np.random.default_rng([seed, domain])
            order = rng.permutation(len(known))
            try:
                reference = fit_shift_reference(known[order[: len(known) // 2]])
            except TrainingDataError as error:
                raise CommandError(f"{folder}: {name} left out: {error}") from error
            pool = known[order[len(known) // 2 :]]
            alarms[domain, seed] = count_alarms(reference, pool, batches=quiet_batches, rng=rng)
            for index, share in enumerate(SHARES):
                flagged[index, domain, seed] = flagged_share(
                    reference, pool, unseen, share=share, streams=streams, rng=rng
                )
    yield from _lines(flagged, alarms, streams=streams, quiet_batches=quiet_batches)


def flagged_share(
    reference: ShiftReference,
    known: NDArray[np.float32],
    unseen: NDArray[np.float32],
    *,
    share: float,
    streams: int,
    rng: np.random.Generator,
) -> float:
    """Return the share of streams whose shift is flagged in time, of those without an alarm before it.

    known, unseen: float32 [n], best distances to draw from, the unseen with probability `share` each.
    """
    quiet, flagged = 0, 0
    for _ in range(streams):
        monitor = ShiftMonitor(reference, category="known")
        if monitor.observe(rng.choice(known, _BEFORE_BATCHES * BLOCK)) is not None:
            continue
        quiet += 1
        moved = rng.random(BATCHES * BLOCK) < share
        stream = np.where(moved, rng.choice(unseen, moved.size), rng.choice(known, moved.size))
        alarm = monitor.observe(stream)
        flagged += alarm is not None and alarm.direction == "farther"
    return flagged / quiet if quiet else 0.0


def count_alarms(
    reference: ShiftReference, known: NDArray[np.float32], *, batches: int, rng: np.random.Generator
) -> int:
    """Return how many alarms queries drawn from `known` raise, of any kind; after each it begins anew."""
    monitor = ShiftMonitor(reference, category="known")
    alarms = 0
    for start in range(0, batches, _CALL_BATCHES):
        stream = rng.choice(known, min(_CALL_BATCHES, batches - start) * BLOCK)
        while stream.size:
            before = monitor.observed_count
            alarm = monitor.observe(stream)
            if alarm is None:
                break
            alarms += 1
            stream = stream[alarm.at + 1 - before :]
            monitor.restart()
    return alarms


def _lines(
    flagged: NDArray[np.float64], alarms: NDArray[np.float64], *, streams: int, quiet_batches: int
) -> Iterator[Figure]:
    _, domains, seeds = flagged.shape
    for share, of_share in zip(SHARES, flagged, strict=True):
        by_domain = of_share.mean(axis=1)
        for metric, value in (
            (f"flagged_within_{BATCHES}_batches", float(by_domain.mean())),
            (f"flagged_within_{BATCHES}_batches_worst", float(by_domain.min())),
        ):
            yield Figure(
                bench="lifelong",
                case=f"{share:.0%} of the queries of an unseen domain",
                metric=metric,
                method=_METHOD,
                value=value,
                unit="",
                dataset="intents",
                n=streams * seeds * (1 if metric.endswith("worst") else domains),
                batch=BLOCK,
                seeds=seeds,
            )
    per_10000 = alarms * 10_000 / quiet_batches
    for metric, value in (
        ("false_alarms_per_10000_batches", float(per_10000.mean())),
        ("false_alarms_per_10000_batches_worst", float(per_10000.max())),
    ):
        yield Figure(
            bench="lifelong",
            case="queries of known domains",
            metric=metric,
            method=_METHOD,
            value=value,
            unit="",
            dataset="intents",
            n=quiet_batches * (1 if metric.endswith("worst") else alarms.size),
            batch=BLOCK,
            seeds=seeds,
        )
