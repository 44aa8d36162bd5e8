"""Learning in steps while nothing stored changes, beside retraining and the usual ways.

The folder holds intents.npz (`embeddings`, `intent`, `split`) and, where classes come in domains,
intent_domains.json. Each seed draws an order of the domains; each is a step, after which the queries of all
steps so far are ranked against the class codes of all rows so far. Queries are real-valued, stored codes are
the 64-bit class codes, issued in order of arrival and never changed, for every method.

final_map: of all queries after the last step. average_map: mean over steps. forgetting: how much of the best
mAP that a domain ever had is lost at the end, mean over the domains before the last. backward_transfer: what
a domain gained since it was learned. forward_transfer: what a domain gains, right after it was learned and
among its own rows, from what was learned before it. time_ratio: CPU seconds of the last step over those of
the rival at that point. removal: 1% of the rows taken out and the label part solved anew, against training on
the rest.

Methods: `incremental` (nearhit); `retrain` the same from nothing, on everything; `retrain_tower` a
well-trained network, on everything; `finetune`, `distillation`, `frozen_codes`, `replay` continue one.
Besides: how soon a new domain is noticed without labels, and with --new-embeddings FILE (.npz of `rows` and
`embeddings` of another embedder) how many duplicates a mapped query of the new embedder still finds.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import Labels
from hashing.embeddings import signs
from hashing.label_part import LabelPart, LearnedState
from hashing.metrics import grouped_precisions
from scripts.arguments import positive_integer
from scripts.bench.embedder_switch import switch_figures
from scripts.bench.intent_steps import LabelledStep, load_steps
from scripts.bench.lifelong_methods import (
    GRADIENT_WAYS,
    LABEL_BITS,
    GradientLearner,
    Incremental,
    Retrained,
    StepLearner,
    added,
    joined,
    learners,
)
from scripts.bench.lines import Figure, add_bench_arguments, print_figure
from scripts.bench.plot import write_curves
from scripts.bench.seeds import SeededFigures, print_means
from scripts.bench.shift_detection import shift_figures

RIVAL = "retrain"
QUERY_LIMIT = 100_000
QUICK_QUERIES = 1000
QUICK_METHODS = ("incremental", "retrain", "finetune")
TIMED_REPEATS = 5
REMOVED_SHARE = 0.01
UNDECIDED = 1e-5
LOWER_IS_BETTER = ("forgetting", "stored_bits_changed", "last_step_cpu_seconds")


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """How a method went. maps: [steps, steps], entry s, d: mAP of the queries of step d after step s, NaN
    before it was learned. alone: [steps], mAP of step d right after it, among its own rows. overall: [steps],
    of all queries so far. stored_bits_changed: bits of issued class codes."""

    maps: NDArray[np.float64]
    alone: NDArray[np.float64]
    overall: NDArray[np.float64]
    stored_bits_changed: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_bench_arguments(parser)
    parser.add_argument("--data", type=Path, required=True, help="folder of intents.npz")
    parser.add_argument("--seeds", type=positive_integer, default=3, help="orders of the domains (default 3)")
    parser.add_argument(
        "--tuning", action="store_true", help="queries of the split `val`, for who chooses a parameter"
    )
    parser.add_argument("--new-embeddings", type=Path, metavar="FILE", help="of a second embedder, .npz")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="mAP over steps, PNG and SVG")


def run(arguments: argparse.Namespace) -> int:
    """Measure."""
    figures = SeededFigures()
    courses: dict[str, list[Course]] = {}
    for seed in range(1 if arguments.quick else arguments.seeds):
        steps = load_steps(
            arguments.data,
            seed=seed,
            tuning=arguments.tuning,
            query_limit=QUICK_QUERIES if arguments.quick else QUERY_LIMIT,
        )
        for method, learner_of in learners(seed=seed).items():
            if arguments.quick and method not in QUICK_METHODS:
                continue
            course = follow(learner_of(), steps)
            courses.setdefault(method, []).append(course)
            for metric, value in course_metrics(course).items():
                figures.add(_figure(metric, method, value, steps))
        alone = _course_alone(steps, seed=seed)
        gained = courses["incremental"][-1].alone - alone
        figures.add(_figure("forward_transfer", "incremental", float(gained[1:].mean()), steps))
        for figure in chain(
            _times(steps, seed=seed, quick=arguments.quick), _removal(steps, seed=seed, quick=arguments.quick)
        ):
            figures.add(figure)
    print_means(figures, rival=RIVAL, as_json=arguments.json, lower_is_better=LOWER_IS_BETTER)
    for figure in shift_figures(arguments.data, tuning=arguments.tuning, quick=arguments.quick):
        print_figure(figure, as_json=arguments.json)
    if arguments.new_embeddings is not None:
        switched = switch_figures(
            arguments.data, arguments.new_embeddings, seeds=arguments.seeds, quick=arguments.quick
        )
        print_means(switched, rival="procrustes", as_json=arguments.json)
    if arguments.plot is not None:
        _write_plot(courses, arguments.plot)
    return 0


def follow(learner: StepLearner, steps: Sequence[LabelledStep]) -> Course:
    """Learn all steps, and judge after each."""
    count = len(steps)
    maps, alone, overall = np.full((count, count), np.nan), np.full(count, np.nan), np.full(count, np.nan)
    issued = np.zeros((0, LABEL_BITS), dtype=np.bool_)
    changed = 0
    for number, step in enumerate(steps):
        learner.learn(step)
        bits = learner.class_codes.bits
        changed += int(np.count_nonzero(bits[: len(issued)] != issued))
        issued = bits.copy()
        seen = joined(steps[: number + 1])
        precisions = [_precisions(learner, own, seen.row_labels) for own in steps[: number + 1]]
        maps[number, : number + 1] = [own.mean() for own in precisions]
        overall[number] = np.concatenate(precisions).mean()
        alone[number] = _precisions(learner, step, step.row_labels).mean()
    return Course(maps, alone, overall, changed)


def course_metrics(course: Course) -> dict[str, float]:
    """The figures of a course by metric; those over the domains before the last."""
    learned = np.diagonal(course.maps)[:-1]
    last = course.maps[-1, :-1]
    return {
        "final_map": float(course.overall[-1]),
        "average_map": float(course.overall.mean()),
        "forgetting": float((np.nanmax(course.maps, axis=0)[:-1] - last).mean()),
        "backward_transfer": float((last - learned).mean()),
        "stored_bits_changed": float(course.stored_bits_changed),
    }


def _precisions(learner: StepLearner, step: LabelledStep, row_labels: Labels) -> NDArray[np.float64]:
    """The average precision of the step's queries against all these rows, float64 [q]."""
    codes = learner.class_codes
    names, counts = np.unique([name for (name,) in row_labels], return_counts=True)
    stored = signs(codes.bits[[codes.position(name) for name in names.tolist()]])  # [classes, bits]
    relevant = np.array([name for (name,) in step.query_labels])[:, None] == names
    scores = learner.values(step.queries) @ stored.T
    return grouped_precisions(scores.astype(np.float64), relevant, counts=counts)


def _course_alone(steps: Sequence[LabelledStep], *, seed: int) -> NDArray[np.float64]:
    """The mAP of each step by a learner that learned it alone, among its own rows."""
    values = []
    for step in steps:
        learner = Incremental(seed=seed)
        learner.learn(step)
        values.append(_precisions(learner, step, step.row_labels).mean())
    return np.array(values)


def _times(steps: Sequence[LabelledStep], *, seed: int, quick: bool) -> Iterator[Figure]:
    """CPU time of the last step, beside that of training on everything then; in turn, medians."""
    learner = _learned(steps[:-1], seed=seed)
    before, last, everything = learner.state, steps[-1], joined(steps)
    assert before is not None, "there are two steps at least"
    own, again = [], []
    for _ in range(1 if quick else TIMED_REPEATS):
        own.append(_cpu_seconds(lambda: added(before, last.rows, last.row_labels)))
        again.append(_cpu_seconds(lambda: Retrained(seed=seed).learn(everything)))
    seconds = {"incremental": median(own), "retrain": median(again)}
    if not quick:
        tower = GradientLearner(GRADIENT_WAYS["retrain_tower"], seed=seed, device="cpu")
        seconds["retrain_tower"] = _cpu_seconds(lambda: tower.learn(everything))
    for method, value in seconds.items():
        yield _figure("last_step_cpu_seconds", method, value, steps, unit="s")
    for rival in list(seconds)[1:]:
        figure = _figure("time_ratio", "incremental", seconds["incremental"] / seconds[rival], steps)
        yield replace(figure, case=f"{figure.case}, against {rival}", rival=rival)


def _removal(steps: Sequence[LabelledStep], *, seed: int, quick: bool) -> Iterator[Figure]:
    """A share of the rows taken out of what was learned, beside training on the rest."""
    learner = _learned(steps, seed=seed)
    everything, state = joined(steps), learner.state
    assert state is not None, "steps were learned"
    order = np.random.default_rng(seed).permutation(len(everything.rows))
    count = max(1, round(REMOVED_SHARE * order.size))
    gone, rest = _rows_of(everything, order[:count]), _rows_of(everything, order[count:])
    fresh = state.emptied()

    def forget() -> tuple[LearnedState, LabelPart]:
        smaller = state.remove(gone.rows, gone.row_labels)
        return smaller, smaller.head(modality="text")

    asked, again = [], []
    for _ in range(1 if quick else TIMED_REPEATS):
        asked.append(_cpu_seconds(forget))
        again.append(_cpu_seconds(lambda: added(fresh, rest.rows, rest.row_labels)))
    smaller, head = forget()
    removed = head.values(everything.queries)
    trained = added(fresh, rest.rows, rest.row_labels)[1].values(everything.queries)
    differ = ((removed > 0) != (trained > 0)) & (np.abs(trained) >= UNDECIDED)
    changed = np.count_nonzero(smaller.class_codes.bits != state.class_codes.bits)
    yield _figure("removal_speedup", "incremental", median(again) / median(asked), steps, unit="x")
    yield _figure("removal_query_bits_differ", "incremental", float(differ.mean()), steps)
    yield _figure("removal_stored_bits_changed", "incremental", float(changed), steps, unit="bits")


def _learned(steps: Sequence[LabelledStep], *, seed: int) -> Incremental:
    learner = Incremental(seed=seed)
    for step in steps:
        learner.learn(step)
    return learner


def _rows_of(step: LabelledStep, chosen: NDArray[np.intp]) -> LabelledStep:
    labels = [step.row_labels[row] for row in chosen.tolist()]
    return LabelledStep(
        rows=step.rows[chosen], row_labels=labels, queries=step.queries, query_labels=step.query_labels
    )


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _figure(
    metric: str, method: str, value: float, steps: Sequence[LabelledStep], *, unit: str = "share"
) -> Figure:
    return Figure(
        bench="lifelong",
        case=f"{len(steps)} steps",
        metric=metric,
        method=method,
        value=value,
        unit="bits" if metric == "stored_bits_changed" else unit,
        dataset="intents",
        n=sum(len(step.queries) for step in steps),
        bits=LABEL_BITS,
    )


def _write_plot(courses: Mapping[str, Sequence[Course]], path: Path) -> None:
    points = {
        method: [
            (float(number + 1), float(np.mean([own.overall[number] for own in runs])))
            for number in range(len(runs[0].overall))
        ]
        for method, runs in courses.items()
    }
    write_curves(points, path, title="Learning in steps", x_name="step", y_name="mAP of all queries so far")
