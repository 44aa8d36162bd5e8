"""Settings of the training of a text tower."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from hashing.config import (
    require_bits,
    require_choice,
    require_int,
    require_positive,
    require_share,
    require_weight,
)
from hashing.deep.config import BATCH_SIZE_LIMIT, EPOCHS_LIMIT
from hashing.errors import ConfigError
from hashing.text.tower import TextTowerShape

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTowerConfig:
    """What `train_text_tower` needs to know besides the texts and pairs.

    shape: of the tower. code_bits: width of the code, 64..1024, a multiple of 64; its prefixes of 64 and 128
    bits are trained too. logistic_weight, info_nce_weight: factors of the losses on embeddings.
    code_logistic_weight, code_info_nce_weight: of those on real-valued queries against stored bits. One of
    the logistic ones is above 0. temperature: of InfoNCE on embeddings; on codes it is twice that.
    implied_weight: of a pair that follows from labelled ones (similar to what is similar; what is not
    similar to one is not to the others), against a labelled one's 1; 0 for none. dropout: of the network's
    layers; token_dropout: share of a text's tokens left out in a step; in [0, 1). batch_size: pairs a step,
    2..65536. epochs: passes at most, 1..1000. patience: passes without a better validation AUC before the
    training stops, 1..1000. learning_rate, weight_decay: of AdamW. head_learning_rate: of the hash head.
    layer_decay: factor of the rate from an upper layer to the one below, in (0, 1]. warmup_share: share of
    the steps that the rate grows over, in [0, 1); it falls linearly from there to 0. averaging: decay a step
    of the moving average of the weights that is judged and kept, in [0, 1); 0 for the last weights.
    validation_share: share of the pairs kept from training, in (0, 0.5). precision: of the layers in
    training, "auto" for bfloat16 where the processor computes in it. seed: source of every random draw.

    Raises: ConfigError that names the key.
    """

    shape: TextTowerShape = field(default_factory=TextTowerShape)
    code_bits: int = 256
    logistic_weight: float = 1.0
    info_nce_weight: float = 0.3
    code_logistic_weight: float = 1.0
    code_info_nce_weight: float = 0.3
    temperature: float = 0.05
    implied_weight: float = 0.25
    dropout: float = 0.1
    token_dropout: float = 0.0
    batch_size: int = 96
    epochs: int = 2
    patience: int = 2
    learning_rate: float = 5e-5
    head_learning_rate: float = 5e-4
    weight_decay: float = 0.01
    layer_decay: float = 0.85
    warmup_share: float = 0.1
    averaging: float = 0.998
    validation_share: float = 0.1
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        require_bits("code_bits", self.code_bits)
        require_choice("precision", self.precision, choices=get_args(Precision))
        require_int("batch_size", self.batch_size, low=2, high=BATCH_SIZE_LIMIT)
        require_int("epochs", self.epochs, low=1, high=EPOCHS_LIMIT)
        require_int("patience", self.patience, low=1, high=EPOCHS_LIMIT)
        require_int("seed", self.seed, low=0, high=2**63 - 1)
        for key in ("dropout", "token_dropout", "warmup_share", "averaging"):
            require_share(key, getattr(self, key), below=1)
        for key in ("temperature", "learning_rate", "head_learning_rate", "validation_share", "layer_decay"):
            require_positive(key, getattr(self, key))
        if self.layer_decay > 1:
            raise ConfigError("layer_decay", self.layer_decay, "at most 1")
        require_share("validation_share", self.validation_share, below=0.5)
        for key in ("info_nce_weight", "code_info_nce_weight", "implied_weight", "weight_decay"):
            require_weight(key, getattr(self, key))
        require_weight("code_logistic_weight", self.code_logistic_weight)
        if self.code_logistic_weight > 0:
            require_weight("logistic_weight", self.logistic_weight)
        else:
            require_positive("logistic_weight", self.logistic_weight)


def computes_in_bfloat16(precision: Precision, place: torch.device) -> bool:
    """Whether layers are trained in bfloat16 on this device: as asked for, or where the processor has it."""
    if precision != "auto":
        return precision == "bfloat16"
    if place.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
