"""Replay streams of real questions: hits and wrong hits of nearhit's rule, of static thresholds and of
rivals.

Each stream is looked up in order; what is not served is computed and inserted. nearhit's rule is asked for a
promise, "at most 1% of the requests wrong", and sees only whether what it did not serve would have been
right. A static threshold is chosen afterwards, the best that keeps within 1%. intents: right where the intent
is the same, no verifier. questions: right where labelled duplicates; a verifier is trained on the pairs of
other questions. Hits of which nobody said whether they are right are told apart, as neither.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.arguments import CommandError
from scripts.bench.cache_door import replay_through_door
from scripts.bench.cache_replay import DecidingRule, Replayed, replay
from scripts.bench.cache_rules import (
    GPTCACHE_DISTANCE,
    REDISVL_DISTANCE,
    StaticThreshold,
    VCacheRule,
    VerifiedRule,
)
from scripts.bench.cache_streams import (
    Stream,
    intent_stream,
    question_stream,
    read_question_pairs,
    stream_rows,
)
from scripts.bench.lines import Figure, add_bench_arguments, print_figure
from scripts.bench.plot import write_curves
from service.break_even import wilson
from service.promise import REQUESTS, Target

WRONG_RATE = 0.01
WRONG_SHARES = (0.005, 0.01, 0.02)
STATIC_DISTANCES = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.22, 0.25)
VCACHE_DELTAS = (0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Replays of one method at one setting, one for each shuffle."""

    method: str
    setting: float
    replays: Sequence[Replayed]

    def mean(self, metric: Callable[[Replayed], float]) -> float:
        """Over the shuffles."""
        return float(np.mean([metric(replayed) for replayed in self.replays]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_bench_arguments(parser)
    parser.add_argument("--data", type=Path, metavar="DIR", required=True, help="see the README")
    parser.add_argument("--shuffles", type=int, default=20, help="orders of each stream; default %(default)s")
    parser.add_argument(
        "--rival-shuffles", type=int, default=3, help="the same of the rivals; default %(default)s"
    )
    parser.add_argument("--stream", choices=("intents", "questions"), help="default: both")
    parser.add_argument(
        "--door", action="store_true", help="replay the first order of the intents through a server, too"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="wrong hits over hits, PNG and SVG, a pair for each stream"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure."""
    shuffles = 2 if arguments.quick else arguments.shuffles
    rival_shuffles = 1 if arguments.quick else arguments.rival_shuffles
    if min(shuffles, rival_shuffles) < 1:
        raise CommandError("at least one shuffle is needed")
    for stream in _streams(arguments):
        runs = list(_rivals(stream, shuffles=rival_shuffles)) + list(_verified(stream, shuffles=shuffles))
        if arguments.door and stream.probabilities is None:
            replays = [replay_through_door(stream, stream.order(0), max_wrong=WRONG_RATE)]
            runs.append(Run(method="verified_door", setting=WRONG_RATE, replays=replays))
        for figure in _figures(stream, runs):
            print_figure(figure, as_json=arguments.json)
        if arguments.plot is not None:
            _plot(stream, runs, arguments.plot)
    return 0


def _streams(arguments: argparse.Namespace) -> Iterator[Stream]:
    if arguments.stream in (None, "intents"):
        yield intent_stream(arguments.data, quick=arguments.quick)
    if arguments.stream in (None, "questions"):
        yield trained_question_stream(arguments.data, quick=arguments.quick)


def trained_question_stream(folder: Path, *, quick: bool) -> Stream:
    """Questions, and a verifier that was trained on the pairs of others. Raises: CommandError."""
    try:
        from hashing.deep.verifier import VerifierConfig, train_verifier
    except ImportError as error:
        raise CommandError("this needs the extra `train`: pip install nearhit[train]") from error
    questions = read_question_pairs(folder)
    rows = stream_rows(questions, quick=quick)
    kept = np.setdiff1d(np.arange(len(questions.vectors)), rows)
    pairs = questions.pairs[np.isin(questions.pairs[:, 0], kept)].copy()
    if quick:
        pairs = pairs[:4_000]
    used = np.unique(pairs[:, :2])
    pairs[:, :2] = np.searchsorted(used, pairs[:, :2])
    texts = [questions.texts[row] for row in used.tolist()] if any(questions.texts) else None
    verifier = train_verifier(questions.vectors[used], pairs, texts=texts, config=VerifierConfig(seed=0))
    return question_stream(questions, verifier, rows)


def _rivals(stream: Stream, *, shuffles: int) -> Iterator[Run]:
    def runs(method: str, setting: float, rule: Callable[[int], DecidingRule]) -> Run:
        replays = [replay(stream, stream.order(shuffle), rule(shuffle)) for shuffle in range(shuffles)]
        return Run(method=method, setting=setting, replays=replays)

    for distance in STATIC_DISTANCES:
        yield runs("static", distance, lambda _, distance=distance: StaticThreshold(distance))  # type: ignore[misc]
    yield runs("redisvl", REDISVL_DISTANCE, lambda _: StaticThreshold(REDISVL_DISTANCE))
    yield runs("gptcache", GPTCACHE_DISTANCE, lambda _: StaticThreshold(GPTCACHE_DISTANCE))
    for delta in VCACHE_DELTAS:
        yield runs("vcache", delta, lambda shuffle, delta=delta: VCacheRule(delta, seed=shuffle))  # type: ignore[misc]


def _verified(stream: Stream, *, shuffles: int) -> Iterator[Run]:
    for wrong_share in WRONG_SHARES:
        target = Target(wrong_share=wrong_share, basis=REQUESTS)
        count = shuffles if wrong_share == WRONG_RATE else min(shuffles, 3)
        replays = [
            replay(stream, stream.order(shuffle), VerifiedRule(stream, target, seed=shuffle))
            for shuffle in range(count)
        ]
        yield Run(method="verified", setting=wrong_share, replays=replays)


def _figures(stream: Stream, runs: Sequence[Run]) -> Iterator[Figure]:
    within = {
        method: [run for run in runs if run.method == method and run.mean(_wrong_rate) <= WRONG_RATE]
        for method in ("static", "vcache")
    }
    best = {method: max(own, key=lambda run: run.mean(_hit_rate)) for method, own in within.items() if own}
    static = best.get("static")
    for one in runs:
        is_best = best.get(one.method) is one
        for metric, value in _metrics(one).items():
            is_rated = metric == "hit_rate" and static is not None and one.method != "static"
            rival_value = static.mean(_hit_rate) if is_rated and static is not None else None
            yield Figure(
                bench="cache",
                case=_case(one, is_best=is_best),
                metric=metric,
                method=one.method,
                value=value,
                unit="shuffles" if metric == "promise_kept" else "share",
                dataset=stream.name,
                rival="best static in hindsight" if is_rated else None,
                rival_value=rival_value,
                ratio=value / rival_value if rival_value else None,
                n=one.replays[0].request_count,
                seeds=len(one.replays),
            )


def _case(one: Run, *, is_best: bool) -> str:
    asked = {
        "verified": f"at most {one.setting:.1%} of all wrong, online",
        "verified_door": f"at most {one.setting:.1%} of all wrong, online, through a server",
        "vcache": f"delta {one.setting:g}",
    }.get(one.method, f"distance {one.setting:g}")
    return f"{asked}, best within {WRONG_RATE:.0%} in hindsight" if is_best else asked


def _metrics(one: Run) -> dict[str, float]:
    request_count = sum(replayed.request_count for replayed in one.replays)
    wrong_count = sum(replayed.wrong_count for replayed in one.replays)
    low, high = wilson(wrong_count, request_count)
    metrics = {
        "hit_rate": one.mean(_hit_rate),
        "wrong_rate": one.mean(_wrong_rate),
        "wrong_rate_low": low,
        "wrong_rate_high": high,
        "wrong_share_of_hits": one.mean(lambda replayed: replayed.wrong_share),
    }
    if any(replayed.unknown_count for replayed in one.replays):
        metrics["unknown_rate"] = one.mean(lambda replayed: replayed.unknown_rate)
    if one.method.startswith("verified"):
        metrics["hit_rate_least"] = min(map(_hit_rate, one.replays))
        metrics["wrong_rate_most"] = max(map(_wrong_rate, one.replays))
        metrics["promise_kept"] = float(sum(_wrong_rate(own) <= one.setting for own in one.replays))
    return metrics


def _plot(stream: Stream, runs: Sequence[Run], path: Path) -> None:
    curves: dict[str, list[tuple[float, float]]] = {}
    for one in runs:
        curves.setdefault(one.method, []).append((one.mean(_hit_rate), one.mean(_wrong_rate)))
    write_curves(
        curves,
        path.with_stem(f"{path.stem}-{stream.name}"),
        title=f"Stream of {stream.name}",
        x_name="hits of all requests",
        y_name="wrong hits of all requests",
        ticks=False,
    )


def _hit_rate(replayed: Replayed) -> float:
    return replayed.hit_rate


def _wrong_rate(replayed: Replayed) -> float:
    return replayed.wrong_rate
