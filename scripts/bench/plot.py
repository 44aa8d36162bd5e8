"""Recall against latency against memory, or against bits, as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.arguments import CommandError

_AREA_PER_KIBIBYTE = 120.0  # square points
_DPI = 150
_ASYMMETRIC = "_asymmetric"
_SIZE_INCHES = (9.0, 6.0)
_LEAST_MISSED = 1e-4  # where "nothing missed" is drawn: a logarithmic axis has no 0
_RECALL_TICKS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1 - _LEAST_MISSED)
_LATENCY_TICKS_MS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotPoint:
    """One method at one setting."""

    method: str
    recall: float
    latency_ms: float
    bytes_per_row: float


def write_plot(points: Sequence[PlotPoint], path: Path, *, title: str, recall_name: str) -> list[Path]:
    """Draw a line per method over its best settings and write it as PNG and as SVG beside it.

    Right and down is better; the area of a marker is the memory a row. Recall is drawn by what it misses, on
    a logarithmic axis, as the last hundredth is where methods differ. path: with any suffix or none.
    Returns the two paths. Raises: CommandError without the extra `bench`.
    """
    figure, axes = _axes()
    for number, method in enumerate(dict.fromkeys(point.method for point in points)):
        own = _best([point for point in points if point.method == method])
        colour = f"C{number % 10}"
        missed = [max(1 - point.recall, _LEAST_MISSED) for point in own]
        latencies = [point.latency_ms for point in own]
        areas = [_AREA_PER_KIBIBYTE * point.bytes_per_row / 1024 for point in own]
        label = f"{method}, {own[0].bytes_per_row:,.0f} B a row"
        axes.plot(missed, latencies, color=colour, linewidth=1.0)
        axes.scatter(missed, latencies, s=areas, color=colour, alpha=0.6, label=label)
    axes.set_yscale("log")
    axes.set_xscale("log")
    axes.invert_xaxis()
    _set_ticks(axes)
    axes.set_xlabel(recall_name)
    axes.set_ylabel("p50 of one query on one thread, ms")
    axes.set_title(f"{title}\nmarker area: memory a row", fontsize="medium")
    axes.grid(visible=True, linewidth=0.3)
    axes.legend(fontsize="small")
    return _write(figure, path)


def write_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    path: Path,
    *,
    title: str,
    x_name: str,
    y_name: str,
    ticks: bool = True,
) -> list[Path]:
    """Draw each method's points (x, y) as a line and write it as PNG and as SVG beside it.

    ticks: one at the x of every point.

    Returns the two paths. Raises: CommandError without the extra `bench`.
    """
    figure, axes = _axes()
    names = list(dict.fromkeys(method.removesuffix(_ASYMMETRIC) for method in curves))
    for method, points in curves.items():
        style = "--" if method.endswith(_ASYMMETRIC) else "-"
        colour = f"C{names.index(method.removesuffix(_ASYMMETRIC)) % 10}"
        axes.plot(*zip(*sorted(points), strict=True), style, marker="o", color=colour, label=method)
    if ticks:
        axes.set_xticks(sorted({x for points in curves.values() for x, _ in points}))
    axes.set_xlabel(x_name)
    axes.set_ylabel(y_name)
    axes.set_title(title, fontsize="medium")
    axes.grid(visible=True, linewidth=0.3)
    axes.legend(fontsize="small")
    return _write(figure, path)


def _axes() -> tuple[Any, Any]:
    """A figure and its axes. Raises: CommandError without the extra `bench`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CommandError("--plot needs the extra `bench`: pip install nearhit[bench]") from error
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    return figure, figure.add_subplot()


def _write(figure: Any, path: Path) -> list[Path]:
    written = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for target in written:
        figure.savefig(target, dpi=_DPI)
    return written


def _best(points: Sequence[PlotPoint]) -> list[PlotPoint]:
    """The points than which no other misses less in less time, the fastest first."""
    kept: list[PlotPoint] = []
    for point in sorted(points, key=lambda point: (point.latency_ms, -point.recall)):
        if not kept or point.recall > kept[-1].recall:
            kept.append(point)
    return kept


def _set_ticks(axes: Any) -> None:
    """Label the ticks that lie on the axes, by recall and by milliseconds."""
    low, high = sorted(axes.get_xlim())
    recalls = [recall for recall in _RECALL_TICKS if low <= 1 - recall <= high]
    names = ["all" if recall == _RECALL_TICKS[-1] else f"{recall:g}" for recall in recalls]
    axes.set_xticks([1 - recall for recall in recalls], labels=names)
    low, high = sorted(axes.get_ylim())
    latencies = [latency for latency in _LATENCY_TICKS_MS if low <= latency <= high]
    axes.set_yticks(latencies, labels=[f"{latency:g}" for latency in latencies])
    axes.minorticks_off()
