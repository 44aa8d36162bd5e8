"""Settings of an update by gradient."""

from __future__ import annotations

from dataclasses import dataclass

from hashing.config import require_int, require_positive, require_share, require_weight
from hashing.deep.config import BATCH_SIZE_LIMIT, EPOCHS_LIMIT
from hashing.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class PairUpdateConfig:
    """What `update_pairs` needs to know besides the rows and pairs.

    epochs: passes over the pairs, 1..1000; of fewer than some thousand pairs 4 with a batch_size of 64 learn
    more. batch_size: pairs a step, 2..65536. rehearsal_rows: stored vectors a step, 1..65536. learning_rate,
    weight_decay: of AdamW. warmup_share: share of the steps that the rate grows over, in [0, 1); it falls
    linearly from there to 0. parent_share: of the weights that are judged and kept, a moving average that
    starts at the parent, the part in [0, 1) that is still the parent's after the last step; 0 for the last
    weights. dropout, input_dropout: of the hidden layer and of what it reads, in [0, 1); a map does not tell
    what it was trained with.

    logistic, frozen_logistic, rehearsal, distillation, anchor: weights of the terms of `PairUpdateLoss` and
    of `RetentionLoss`; one of the first two is above 0.

    validation_share: share of the pairs, and of the stored vectors, kept from training, in (0, 0.5).
    seed: source of every random draw.

    Raises: ConfigError that names the key.
    """

    epochs: int = 1
    batch_size: int = 128
    rehearsal_rows: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    parent_share: float = 0.5
    dropout: float = 0.3
    input_dropout: float = 0.1
    logistic: float = 1.0
    frozen_logistic: float = 1.0
    rehearsal: float = 1.0
    distillation: float = 0.0
    anchor: float = 0.0
    validation_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _check_steps(self)
        require_positive("validation_share", self.validation_share)
        require_share("validation_share", self.validation_share, below=0.5)
        for key in ("parent_share", "input_dropout"):
            require_share(key, getattr(self, key), below=1)
        for key in ("logistic", "frozen_logistic"):
            require_weight(key, getattr(self, key))
        if self.logistic + self.frozen_logistic == 0:
            raise ConfigError("logistic", self.logistic, "above 0, or frozen_logistic")

    @property
    def rehearses(self) -> bool:
        """Whether a term reads stored vectors."""
        return self.rehearsal + self.distillation > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelUpdateConfig:
    """What `update_labelled` needs to know besides the rows and labels.

    epochs: passes over the new rows, 1..1000. batch_size: of them, a step, 2..65536. rehearsal_rows: stored
    vectors a step, 1..65536. learning_rate, weight_decay: of AdamW. warmup_share: share of the steps that the
    rate grows over, in [0, 1); it falls linearly from there to 0. dropout: of the hidden layer, in [0, 1).

    central: weight of central similarity of new rows to their class codes (CSQ, Yuan et al., CVPR 2020).
    likelihood: of the new-old likelihood of DLCH (Xu et al. 2023): new rows against the frozen codes of all
    rows of the step, stored ones too. One of the two is above 0. rehearsal, distillation, anchor: as of
    `RetentionLoss`; without any stored vector the distillation is at the new rows (LwF, Li & Hoiem 2016).
    seed: source of every random draw.

    Raises: ConfigError that names the key.
    """

    epochs: int = 10
    batch_size: int = 256
    rehearsal_rows: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    dropout: float = 0.2
    central: float = 1.0
    likelihood: float = 0.0
    rehearsal: float = 1.0
    distillation: float = 0.0
    anchor: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_steps(self)
        for key in ("central", "likelihood"):
            require_weight(key, getattr(self, key))
        if self.central + self.likelihood == 0:
            raise ConfigError("central", self.central, "above 0, or likelihood")


def _check_steps(config: PairUpdateConfig | LabelUpdateConfig) -> None:
    """Check what both have. Raises: ConfigError."""
    require_int("epochs", config.epochs, low=1, high=EPOCHS_LIMIT)
    require_int("batch_size", config.batch_size, low=2, high=BATCH_SIZE_LIMIT)
    require_int("rehearsal_rows", config.rehearsal_rows, low=1, high=BATCH_SIZE_LIMIT)
    require_int("seed", config.seed, low=0, high=2**63 - 1)
    require_positive("learning_rate", config.learning_rate)
    for key in ("warmup_share", "dropout"):
        require_share(key, getattr(config, key), below=1)
    for key in ("weight_decay", "rehearsal", "distillation", "anchor"):
        require_weight(key, getattr(config, key))
