"""Cross-modal retrieval: mAP of images as queries for texts and of texts for images, beside reruns.

Reads wiki_crossmodal.npz, or the one other .npz of the same form, of the folder: image_train, image_test,
text_train, text_test (float [n, dim]) and label_train, label_test (classes [n], or 0/1 [n, classes]). The
training rows are the database, the test rows the queries, and kernels and feature maps are chosen by
cross-validation on the training rows alone.

label_codes: rows stored under the code of their label; what is learned is the query. function_codes: rows
coded from their own features, so that rows without labels are found too. Its database are rows that were
learned from, whose codes remember their labels; *_new_rows has a fifth of the training rows as the database,
and nothing was learned from them. "asymmetric": a real-valued query. Reruns: stored codes of training rows as
the papers have them; *_functions: all codes from features.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from hashing.class_codes import ClassCodes
from hashing.config import WORD_BITS
from hashing.crossmodal import train_crossmodal
from hashing.crossmodal_config import CrossModalConfig, KernelSettings
from hashing.embeddings import unit_rows
from hashing.inference import Encoder
from hashing.kernel_ridge import choose_kernel
from hashing.metrics import mean_average_precision
from hashing.semantic_targets import label_targets
from scripts.arguments import CommandError, positive_integer
from scripts.bench.crossmodal_rivals import RIVALS, Rival
from scripts.bench.lines import Figure, add_bench_arguments, print_figure

BITS = 64
PLOT_BITS = (BITS, 16, 32, 128)  # the reported one first
FUNCTION_FEATURES, QUICK_FEATURES = 2048, 1024
FOLDS = 5  # one of them is the database of new rows
DIRECTIONS = (("image", "text"), ("text", "image"))
_KEYS = ("image_train", "image_test", "text_train", "text_test", "label_train", "label_test")

Rows = Mapping[str, NDArray[np.float32]]
Embed = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Scores = dict[tuple[str, str], list[float]]  # (method, metric) -> a value of each seed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrossModalSet:
    """train, test: modality -> features as given, float32 [n, dim]. labels: 0/1 [n, classes]."""

    name: str
    train: Rows
    test: Rows
    train_labels: NDArray[np.float64]
    test_labels: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """Queries against a database. Rows, queries: modality -> unit float32 [n, dim]; raw: as given."""

    rows: Rows
    queries: Rows
    raw_rows: Rows
    raw_queries: Rows
    relevant: NDArray[np.bool_]  # [queries, rows]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_bench_arguments(parser)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the .npz")
    parser.add_argument("--seeds", type=positive_integer, default=3, help="default %(default)s; --quick: 1")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also 16, 32 and 128 bits, drawn as PNG")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    data = load_crossmodal(arguments.data)
    seeds = 1 if arguments.quick else arguments.seeds
    embed, kernels = choose_maps(data)
    by_bits: dict[int, Scores] = {}
    for bits in PLOT_BITS if arguments.plot else (BITS,):
        scores: Scores = defaultdict(list)
        for seed in range(seeds if bits == BITS else 1):
            _measure(
                data,
                scores,
                embed=embed,
                kernels=kernels,
                feature_count=QUICK_FEATURES if arguments.quick else FUNCTION_FEATURES,
                bits=bits,
                seed=seed,
            )
        by_bits[bits] = scores
        for figure in figures_of(data, scores, bits=bits):
            print_figure(figure, as_json=arguments.json)
    if arguments.plot:
        _write_plot(dict(sorted(by_bits.items())), arguments.plot, title=data.name)
    return 0


def load_crossmodal(folder: Path) -> CrossModalSet:
    """Read the folder. Raises: CommandError that names what is missing or does not fit."""
    path = folder / "wiki_crossmodal.npz"
    if not path.is_file():
        found = sorted(folder.glob("*crossmodal*.npz")) or sorted(folder.glob("*.npz"))
        if len(found) != 1:
            raise CommandError(f"{folder}: holds {len(found)} .npz files that may be meant, not one")
        path = found[0]
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in _KEYS}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CommandError(f"{path}: cannot be read as cross-modal rows: {error}") from error
    labels = _one_hot(arrays["label_train"], arrays["label_test"], path=path)
    for part, own in zip(("train", "test"), labels, strict=True):
        for modality in ("image", "text"):
            rows = arrays[f"{modality}_{part}"]
            if rows.ndim != 2 or rows.dtype.kind != "f" or not np.isfinite(rows).all():
                raise CommandError(f"{path}: {modality}_{part} is no finite float [n, dim]")
            if len(rows) != len(own) or rows.shape[1] != arrays[f"{modality}_train"].shape[1]:
                raise CommandError(f"{path}: {modality}_{part} is {list(rows.shape)} for {len(own)} labels")
    return CrossModalSet(
        name=path.stem,
        train={modality: arrays[f"{modality}_train"].astype(np.float32) for modality in ("image", "text")},
        test={modality: arrays[f"{modality}_test"].astype(np.float32) for modality in ("image", "text")},
        train_labels=labels[0],
        test_labels=labels[1],
    )


def choose_maps(data: CrossModalSet) -> tuple[dict[str, Embed], dict[str, KernelSettings]]:
    """Choose by cross-validation on the training rows, for each modality: embeddings that are the unit rows
    or, where no value is negative, the unit square roots (Hellinger map), and their kernel."""
    embed: dict[str, Embed] = {}
    kernels: dict[str, KernelSettings] = {}
    codes = ClassCodes.empty(label_bits=WORD_BITS, seed=0).issue(map(str, range(data.train_labels.shape[1])))
    targets = label_targets(_names(data.train_labels), class_codes=codes)
    for modality, rows in data.train.items():
        best = -1.0
        for candidate in (unit_rows, _unit_root) if rows.min() >= 0 else (unit_rows,):
            kernel, reached = choose_kernel(candidate(rows), targets, seed=0)
            if reached > best:
                embed[modality], kernels[modality], best = candidate, kernel, reached
    return embed, kernels


def figures_of(data: CrossModalSet, scores: Scores, *, bits: int) -> Iterator[Figure]:
    """One figure a method and metric, beside the best rerun of the same kind of database."""
    for (method, metric), values in scores.items():
        rivals = _rivals_of(method)
        best = max(rivals, key=lambda rival: float(np.mean(scores[rival, metric])), default=None)
        value = float(np.mean(values))
        against = None if best is None else float(np.mean(scores[best, metric]))
        yield Figure(
            bench="crossmodal",
            case=f"{_case(method)}, {bits} bits, std over seeds {np.std(values):.4f}",
            dataset=data.name,
            metric=metric,
            method=method,
            value=value,
            unit="mAP",
            rival=best,
            rival_value=against,
            ratio=None if not against else value / against,
            n=len(data.train_labels),
            bits=bits,
            seeds=len(values),
        )


def _measure(
    data: CrossModalSet,
    scores: Scores,
    *,
    embed: Mapping[str, Embed],
    kernels: Mapping[str, KernelSettings],
    feature_count: int,
    bits: int,
    seed: int,
) -> None:
    """Add the mAP of every method and direction of one seed."""
    everything = np.ones(len(data.train_labels), dtype=bool)
    fold = np.random.default_rng(seed).permutation(len(data.train_labels)) % FOLDS
    for learned, database, suffix in ((everything, everything, ""), (fold != 0, fold == 0, "_new_rows")):
        task = Task(
            rows={m: embed[m](rows[database]) for m, rows in data.train.items()},
            queries={m: embed[m](rows) for m, rows in data.test.items()},
            raw_rows={m: rows[database] for m, rows in data.train.items()},
            raw_queries=data.test,
            relevant=data.test_labels @ data.train_labels[database].T > 0,
        )
        labels = data.train_labels[learned]
        encoder = _train(
            {m: embed[m](rows[learned]) for m, rows in data.train.items()},
            labels,
            kernels=kernels,
            feature_count=feature_count,
            bits=bits,
            seed=seed,
        )
        _score_functions(encoder, task, scores, suffix=suffix, seed=seed)
        if not suffix:
            _score_labels(encoder, task, labels, scores, bits=bits, seed=seed)
        for name, fit in RIVALS.items():
            views = (data.train[m][learned].astype(np.float64) for m in ("image", "text"))
            rival = fit(*views, labels, bits=bits, seed=seed)
            _score_rival(name, rival, task, scores, suffix=suffix, seed=seed)


def _train(
    rows: Rows,
    labels: NDArray[np.float64],
    *,
    kernels: Mapping[str, KernelSettings],
    feature_count: int,
    bits: int,
    seed: int,
) -> Encoder:
    names = _names(labels)
    config = CrossModalConfig(
        code_bits=max(bits, WORD_BITS),
        label_bits=max(bits, WORD_BITS),
        function_bits=bits,
        function_feature_count=feature_count,
        kernels=kernels,
        seed=seed,
    )
    return train_crossmodal(rows, config=config, labels=dict.fromkeys(rows, names)).encoder


def _score_functions(encoder: Encoder, task: Task, scores: Scores, *, suffix: str, seed: int) -> None:
    for source, target in DIRECTIONS:
        signs = _signs(encoder.instance_bits(task.rows[target], modality=target))
        signs[:, ~encoder.cross_mask] = 0
        queries = task.queries[source]
        binary = _signs(encoder.cross_bits(queries, modality=source, target=target))
        values = encoder.cross_values(queries, modality=source, target=target)
        for method, query in (("function_codes", binary), ("function_codes_asymmetric", values)):
            reached = mean_average_precision(query @ signs.T, task.relevant, seed=seed)
            scores[f"{method}{suffix}", f"map_{source}_to_{target}"].append(reached)


def _score_labels(
    encoder: Encoder, task: Task, labels: NDArray[np.float64], scores: Scores, *, bits: int, seed: int
) -> None:
    signs = _signs(encoder.class_bits(_names(labels)))[:, :bits]
    for source, target in DIRECTIONS:
        values = encoder.label_values(task.queries[source], modality=source)[:, :bits]
        for method, query in (("label_codes", _signs(values > 0)), ("label_codes_asymmetric", values)):
            reached = mean_average_precision(query @ signs.T, task.relevant, seed=seed)
            scores[method, f"map_{source}_to_{target}"].append(reached)


def _score_rival(name: str, rival: Rival, task: Task, scores: Scores, *, suffix: str, seed: int) -> None:
    place = {"image": 0, "text": 1}
    for source, target in DIRECTIONS:
        queries = _signs(rival.encode[place[source]](task.raw_queries[source].astype(np.float64)) > 0)
        functions = _signs(rival.encode[place[target]](task.raw_rows[target].astype(np.float64)) > 0)
        databases: dict[str, NDArray[np.floating]] = {f"{name}_functions{suffix}": functions}
        if not suffix:
            databases[name] = rival.stored[place[target]]
        for method, rows in databases.items():
            reached = mean_average_precision(queries @ rows.T, task.relevant, seed=seed)
            scores[method, f"map_{source}_to_{target}"].append(reached)


def _rivals_of(method: str) -> list[str]:
    """The reruns whose database is of the same kind; none for a rerun itself."""
    if method.startswith("label_codes"):
        return list(RIVALS)
    if method.startswith("function_codes"):
        suffix = "_new_rows" if method.endswith("_new_rows") else ""
        return [f"{name}_functions{suffix}" for name in RIVALS]
    return []


def _case(method: str) -> str:
    if method.endswith("_new_rows"):
        return "rows coded from features, none learned from"
    if method.startswith("function_codes") or method.endswith("_functions"):
        return "training rows coded from features"
    if method.startswith("label_codes"):
        return "training rows under label codes"
    return "training rows as the paper stores them"


def _one_hot(
    train: NDArray[Any], test: NDArray[Any], *, path: Path
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as 0/1 [n, classes]. Raises: CommandError."""
    if train.ndim != test.ndim or train.ndim not in (1, 2) or not len(train) or not len(test):
        raise CommandError(f"{path}: labels are {list(train.shape)} and {list(test.shape)}")
    if train.ndim == 2:
        if train.shape[1] != test.shape[1]:
            raise CommandError(f"{path}: labels are {list(train.shape)} and {list(test.shape)}")
        return (train > 0).astype(np.float64), (test > 0).astype(np.float64)
    classes = np.unique(np.concatenate([train, test]))
    return (
        (train[:, None] == classes).astype(np.float64),
        (test[:, None] == classes).astype(np.float64),
    )


def _names(labels: NDArray[np.float64]) -> list[list[str]]:
    return [[str(label) for label in np.flatnonzero(row)] for row in labels]


def _unit_root(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return unit_rows(np.sqrt(np.maximum(rows, 0)))


def _signs(bits: NDArray[Any]) -> NDArray[np.float32]:
    return np.where(bits > 0, np.float32(1), np.float32(-1))


def _write_plot(by_bits: Mapping[int, Scores], path: Path, *, title: str) -> None:
    """mAP over bits, a panel each direction. Raises: CommandError without the extra `bench`."""
    try:
        from matplotlib.figure import Figure as Picture
    except ImportError as error:
        raise CommandError("--plot needs the extra `bench`: pip install nearhit[bench]") from error
    picture = Picture(figsize=(11.0, 4.8), layout="constrained")
    methods = [
        "label_codes",
        "label_codes_asymmetric",
        "function_codes",
        "function_codes_asymmetric",
        *RIVALS,
    ]
    for place, (source, target) in enumerate(DIRECTIONS, start=1):
        axes = picture.add_subplot(1, 2, place)
        for method in methods:
            values = [np.mean(scores[method, f"map_{source}_to_{target}"]) for scores in by_bits.values()]
            line = "--" if method in RIVALS else "-"
            axes.plot(list(by_bits), values, line, marker="o", markersize=4, label=method)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(by_bits), labels=[str(bits) for bits in by_bits])
        axes.set_xlabel("bits")
        axes.set_ylabel("mAP")
        axes.set_title(f"{title}: {source} to {target}", fontsize="medium")
        axes.grid(visible=True, linewidth=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    picture.savefig(path.with_suffix(".png"), dpi=150)
