"""Print how long one warm query takes from its embedding to h: `python -m scripts.bench.encode_latency`."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from hashing.analytic import draw_features
from hashing.feature_tower import FeatureTower
from hashing.projection import Projection
from hashing.tower import InstanceMap, Tower

DIM = 384
CODE_BITS = 256
HIDDEN_WIDTHS = (128, 256, 384, 512)
FEATURE_COUNTS = (512, 1024)
WARM_UP_CALLS = 2_000
CALLS = 20_000


def main() -> None:
    """Measure a projection and towers of random weights, on the threads that BLAS is given."""
    rng = np.random.default_rng(0)
    row = _draw(rng, 1, DIM)
    _print("linear", Projection(mean=_draw(rng, DIM), weight=_draw(rng, DIM, CODE_BITS)), row)
    for width in HIDDEN_WIDTHS:
        tower = Tower(
            linear=_draw(rng, DIM, CODE_BITS),
            hidden=_draw(rng, DIM, width),
            hidden_bias=_draw(rng, width),
            output=_draw(rng, width, CODE_BITS),
            offset=_draw(rng, CODE_BITS),
        )
        _print(f"tower, {width} hidden units", tower, row)
    for count in FEATURE_COUNTS:
        feature_tower = FeatureTower(
            features=draw_features(DIM, count=count, gamma=1.0, seed=0),
            linear=_draw(rng, DIM, CODE_BITS // 2),
            output=_draw(rng, count, CODE_BITS // 2),
            offset=_draw(rng, CODE_BITS),
        )
        _print(f"tower of {count} random features", feature_tower, row)


def _print(name: str, instance_map: InstanceMap, row: NDArray[np.float32]) -> None:
    for _ in range(WARM_UP_CALLS):
        instance_map.project(row)
    nanoseconds = np.empty(CALLS)
    for call in range(CALLS):
        start = time.perf_counter_ns()
        instance_map.project(row)
        nanoseconds[call] = time.perf_counter_ns() - start
    p10, p50, p99 = np.percentile(nanoseconds, (10, 50, 99)) / 1e3
    print(f"{name}: p10 {p10:.1f} us, p50 {p50:.1f} us, p99 {p99:.1f} us")


def _draw(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype=np.float32) / np.float32(DIM**0.5)


if __name__ == "__main__":
    main()
