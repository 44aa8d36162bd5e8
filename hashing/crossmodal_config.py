"""Settings of cross-modal training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hashing.config import (
    FEATURE_COUNT_LIMIT,
    ITQ_ITERATIONS_LIMIT,
    require_bits,
    require_int,
    require_positive,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSettings:
    """gamma: standard deviation of the feature frequencies, in radians per unit of distance.
    ridge: ridge penalty of the regressions, per row.

    Raises: ConfigError that names the key.
    """

    gamma: float
    ridge: float

    def __post_init__(self) -> None:
        require_positive("gamma", self.gamma)
        require_positive("ridge", self.ridge)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossModalConfig:
    """What `train_crossmodal` needs to know besides the rows.

    code_bits, label_bits: widths of the instance and the label code, 64..1024, multiples of 64.
    function_bits: the last bits of the instance code, which modalities have in common, 1..code_bits; the
    others tell items of one modality apart. 0: half of the code.
    label_feature_count, function_feature_count: random features of the label part and of the function codes,
    1..16384. The latter are what a query between modalities, and every stored row, waits for.
    kernels: modality -> its kernel; for a modality that is not named it is chosen by cross-validation, or
    without labels DEFAULT_KERNEL.
    function_ridge_share: the ridge of function codes as a share of the kernel's. A smaller one lets codes of
    rows that were learned from keep more of their labels: with 1/3 instead of 1 (2,048 features, Wiki's
    training rows, cross-validated) mAP was .336/.443 instead of .340/.365 with such rows as the database, and
    .313/.259 instead of .306/.263 with others.
    itq_iterations: alternations between signs and rotation, 1..1000.
    seed: source of every random draw; equal seed and rows give an equal encoder on one machine.

    Raises: ConfigError that names the key.
    """

    code_bits: int = 256
    label_bits: int = 64
    function_bits: int = 0
    label_feature_count: int = 2048
    function_feature_count: int = 512
    kernels: Mapping[str, KernelSettings] = field(default_factory=dict)
    function_ridge_share: float = 1 / 3
    itq_iterations: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        require_bits("code_bits", self.code_bits)
        require_bits("label_bits", self.label_bits)
        require_int("function_bits", self.function_bits, low=0, high=self.code_bits)
        require_int("label_feature_count", self.label_feature_count, low=1, high=FEATURE_COUNT_LIMIT)
        require_int("function_feature_count", self.function_feature_count, low=1, high=FEATURE_COUNT_LIMIT)
        require_positive("function_ridge_share", self.function_ridge_share)
        require_int("itq_iterations", self.itq_iterations, low=1, high=ITQ_ITERATIONS_LIMIT)
        require_int("seed", self.seed, low=0, high=2**63 - 1)

    @property
    def common_bits(self) -> int:
        """function_bits, or what 0 stands for."""
        return self.function_bits or self.code_bits // 2
