"""What a targeted attack on label codes reaches, and what training against it saves.

Each query of the labelled data is moved within an l2 ball of radius eps (of unit rows) so that its code nears
that of another class, drawn by seed; the attacker knows the model (projected gradient descent). Three models:
`label_codes` in closed form, `tower` trained by gradient toward the same class codes, `tower_adversarial`
trained against such moves. attacked_share: queries whose nearest class
code is the target; own_share: whose nearest is still their own; target_map: retrieval of the target's rows;
clean_map, clean_share: of the queries as they are. Needs the extra `train`.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hashing.analytic import LabelState
from hashing.class_codes import ClassCodes, target_bits
from hashing.config import EncoderConfig
from hashing.metrics import class_retrieval_map
from scripts.arguments import CommandError, ProgressBars, positive_integer
from scripts.bench.intents import LabelledQueries, load_intents
from scripts.bench.lines import Figure, add_bench_arguments
from scripts.bench.seeds import SeededFigures, print_means
from scripts.bench.timing import one_thread

if TYPE_CHECKING:
    from hashing.deep.attack import Values

RADII = (0.1, 0.2, 0.3)
_TRAINING_EPS = 0.2
_STEPS = 20
_QUERIES = 600
_QUICK_QUERIES = 200
_QUICK_EPOCHS = 4
_RIVAL = "label_codes"
_LOWER_IS_BETTER = frozenset({"attacked_share", "target_map"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_bench_arguments(parser)
    parser.add_argument("--data", type=Path, required=True, help="folder with intents.npz")
    parser.add_argument("--seeds", type=positive_integer, default=3, metavar="N", help="default %(default)s")
    parser.add_argument("--bits", type=int, default=64, help="width of the class codes (default %(default)s)")
    parser.add_argument("--tuning", action="store_true", help="queries that parameters may be chosen on")


def run(arguments: argparse.Namespace) -> int:
    """Measure."""
    if find_spec("torch") is None:
        raise CommandError("needs the extra `train`: pip install nearhit[train]")
    progress = ProgressBars(silent=arguments.json)
    figures = SeededFigures()
    with one_thread():
        for seed in range(1 if arguments.quick else arguments.seeds):
            intents = load_intents(
                arguments.data,
                tuning=arguments.tuning,
                query_limit=_QUICK_QUERIES if arguments.quick else _QUERIES,
                seed=seed,
            )
            for model in _models(intents, arguments, seed=seed, progress=progress):
                for figure in _measure(model, intents, bits=arguments.bits, seed=seed):
                    figures.add(figure)
    progress.close()
    print_means(figures, rival=_RIVAL, lower_is_better=_LOWER_IS_BETTER, as_json=arguments.json)
    return 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Model:
    """values: what maps queries to real values, and passes a gradient."""

    name: str
    values: "Values"
    class_codes: ClassCodes


def _models(
    intents: LabelledQueries, arguments: argparse.Namespace, *, seed: int, progress: ProgressBars
) -> Iterator[_Model]:
    """The three models, trained on the stored rows."""
    from hashing.deep.attack import head_values, map_values
    from hashing.deep.labelled import LabelledConfig, train_labelled

    state = LabelState.empty(
        intents.rows.shape[1],
        config=EncoderConfig(label_bits=arguments.bits, feature_count=2048, ridge=1e-2, seed=seed),
    ).add(intents.rows, intents.row_labels)
    head = state.head(modality="")
    yield _Model(name="label_codes", values=head_values(head), class_codes=head.class_codes)

    plain = LabelledConfig(label_bits=arguments.bits, seed=seed)
    if arguments.quick:
        plain = replace(plain, epochs=_QUICK_EPOCHS)
    for name, config in (
        ("tower", plain),
        ("tower_adversarial", replace(plain, adversarial_eps=_TRAINING_EPS)),
    ):
        trained = train_labelled(
            intents.rows, intents.row_labels, config=config, device="cpu", progress=progress
        )
        yield _Model(name=name, values=map_values(trained.label_map), class_codes=trained.class_codes)


def _measure(model: _Model, intents: LabelledQueries, *, bits: int, seed: int) -> Iterator[Figure]:
    """The figures of one model of one seed."""
    from hashing.deep.attack import attack_rows

    codes = model.class_codes
    own = np.array([codes.position(label) for (label,) in intents.query_labels])
    others = np.random.default_rng(seed).integers(1, len(codes), size=own.size)
    targets = (own + others) % len(codes)
    stored = target_bits(codes, intents.row_labels)

    def figure(case: str, metric: str, value: float) -> Figure:
        return Figure(
            bench="attack",
            dataset="intents",
            case=case,
            metric=metric,
            method=model.name,
            value=value,
            unit="share",
            n=own.size,
            bits=bits,
        )

    def retrieval_map(values: NDArray[np.float32], classes: NDArray[np.intp]) -> float:
        labels = [(codes.labels[position],) for position in classes.tolist()]
        return class_retrieval_map(
            values, stored, query_labels=labels, row_labels=intents.row_labels, seed=seed
        )

    values = _values(model, intents.queries)
    yield figure("clean", "clean_map", retrieval_map(values, own))
    yield figure("clean", "clean_share", float(np.mean(_nearest(values, codes) == own)))
    for eps in RADII:
        attacked = attack_rows(
            intents.queries,
            targets,
            class_bits=codes.bits,
            values=model.values,
            eps=eps,
            steps=_STEPS,
            seed=seed,
        )
        values = _values(model, attacked)
        nearest = _nearest(values, codes)
        case = f"eps {eps:g}"
        yield figure(case, "attacked_share", float(np.mean(nearest == targets)))
        yield figure(case, "own_share", float(np.mean(nearest == own)))
        yield figure(case, "target_map", retrieval_map(values, targets))


def _values(model: _Model, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [n, bits] of rows [n, dim], by the model that was attacked."""
    import torch

    with torch.no_grad():
        values: NDArray[np.float32] = model.values(torch.from_numpy(rows)).numpy()
    return values


def _nearest(values: NDArray[np.float32], codes: ClassCodes) -> NDArray[np.intp]:
    """The class of highest score for each query."""
    signs = np.where(codes.bits, np.float32(1), np.float32(-1))
    nearest: NDArray[np.intp] = np.argmax(values @ signs.T, axis=1)
    return nearest
