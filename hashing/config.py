"""Settings of an encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard, get_args

from hashing.errors import ConfigError

Method = Literal["itq", "rotation"]
LabelMethod = Literal["discriminant", "regression"]

WORD_BITS = 64
"""Codes are issued and scanned in words of this many bits."""

CODE_BITS_LIMIT = 1024
ITQ_ITERATIONS_LIMIT = 1000
FEATURE_COUNT_LIMIT = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """What `train_encoder` needs to know besides the rows.

    method: "itq" learns the instance projection, "rotation" draws it (the LSH baseline).
    code_bits, label_bits: widths of the instance and the label code, 64..1024, multiples of 64.
    itq_iterations: alternations between signs and rotation, 1..1000.
    label_method: "discriminant" scores classes on quadratic features and queries with the codes of the best;
    "regression" maps random features of a Gaussian kernel to the codes themselves.
    feature_count: random features of the label part, 1..16384; a discriminant adds the embedding itself.
    gamma: standard deviation of a regression's feature frequencies, in radians per unit of distance.
    ridge: ridge penalty of the label part (lambda).
    seed: source of every random draw; equal seed and rows give an equal encoder on one machine, but for the
    features of a discriminant that follow rows (`class_scores.draw_quadratic`).

    Raises: ConfigError that names the key.
    """

    method: Method = "itq"
    code_bits: int = 256
    itq_iterations: int = 50
    label_bits: int = 64
    label_method: LabelMethod = "discriminant"
    feature_count: int = 1216
    gamma: float = 0.5
    ridge: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require_choice("method", self.method, choices=get_args(Method))
        require_bits("code_bits", self.code_bits)
        require_bits("label_bits", self.label_bits)
        require_choice("label_method", self.label_method, choices=get_args(LabelMethod))
        require_int("itq_iterations", self.itq_iterations, low=1, high=ITQ_ITERATIONS_LIMIT)
        require_int("feature_count", self.feature_count, low=1, high=FEATURE_COUNT_LIMIT)
        require_positive("gamma", self.gamma)
        require_positive("ridge", self.ridge)
        require_int("seed", self.seed, low=0, high=2**63 - 1)


def require_choice(key: str, value: object, *, choices: Sequence[str]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(key, value, f"one of {', '.join(choices)}")


def require_bits(key: str, value: object) -> None:
    """Raise ConfigError unless `value` is a width of codes."""
    if not (_is_int(value) and WORD_BITS <= value <= CODE_BITS_LIMIT and value % WORD_BITS == 0):
        raise ConfigError(key, value, f"a multiple of {WORD_BITS} in {WORD_BITS}..{CODE_BITS_LIMIT}")


def require_int(key: str, value: object, *, low: int, high: int) -> None:
    """Raise ConfigError unless `value` is an integer in low..high."""
    if not (_is_int(value) and low <= value <= high):
        raise ConfigError(key, value, f"an integer in {low}..{high}")


def require_positive(key: str, value: object) -> None:
    """Raise ConfigError unless `value` is a finite number above 0."""
    if not (_is_number(value) and math.isfinite(value) and value > 0):
        raise ConfigError(key, value, "a positive finite number")


def require_weight(key: str, value: object) -> None:
    """Raise ConfigError unless `value` is a finite number of at least 0."""
    if not (_is_number(value) and math.isfinite(value) and value >= 0):
        raise ConfigError(key, value, "a finite number of at least 0")


def require_share(key: str, value: object, *, below: float) -> None:
    """Raise ConfigError unless `value` is a number in [0, below)."""
    if not (_is_number(value) and 0 <= value < below):
        raise ConfigError(key, value, f"a number in [0, {below:g})")


def _is_number(value: object) -> TypeGuard[float]:
    return _is_int(value) or isinstance(value, float)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
