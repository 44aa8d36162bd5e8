"""What every benchmark prints: one figure a line."""

import argparse
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure. `ratio`: how many times better than the rival, above 1 is better."""

    bench: str
    case: str
    metric: str
    method: str
    value: float
    unit: str
    dataset: str | None = None
    rival: str | None = None
    rival_value: float | None = None
    ratio: float | None = None
    n: int | None = None
    bits: int | None = None
    batch: int | None = None
    seeds: int | None = None


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every benchmark."""
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--quick", action="store_true", help="a smaller run that ends within 45 s")


def print_figure(figure: Figure, *, as_json: bool) -> None:
    """Print one figure."""
    if as_json:
        print(json.dumps(asdict(figure)), flush=True)
        return
    rival = ""
    if figure.rival is not None:
        value = "" if figure.rival_value is None else f" {figure.rival_value:.4g}"
        ratio = "" if figure.ratio is None else f", {figure.ratio:.3g} x"
        rival = f"  ({figure.rival}{value}{ratio})"
    print(
        f"{figure.case:<64} {figure.metric:<20} {figure.method:<18} {figure.value:.4g} {figure.unit}{rival}",
        flush=True,
    )
