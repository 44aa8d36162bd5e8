"""Settings of a training by gradient: a frozen dataclass for each table of its TOML file."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Literal, TypeVar, get_args

from hashing.config import (
    require_bits,
    require_choice,
    require_int,
    require_positive,
    require_share,
    require_weight,
)
from hashing.errors import ConfigError

TowerKind = Literal["residual", "linear"]
BinarizerKind = Literal["straight_through", "tanh"]

HIDDEN_WIDTH_LIMIT = 8192
BATCH_SIZE_LIMIT = 65_536
EPOCHS_LIMIT = 1000
NEGATIVES_LIMIT = 64

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerConfig:
    """Table [tower]: one of this form for each modality.

    kind: "residual" is a linear path and one hidden layer, "linear" the path alone.
    hidden_width: units of the hidden layer, 1..8192. A query of 384 dimensions takes 20 to 51 us
    at 384 units, by machine.
    dropout, input_dropout: of the hidden layer and of what it reads, in [0, 1).
    threshold: learn a threshold of each bit that is linear in the embedding.
    binarizer: what stands for the stored code in training, "straight_through" or annealed "tanh".
    """

    kind: TowerKind = "residual"
    hidden_width: int = 384
    dropout: float = 0.3
    input_dropout: float = 0.1
    threshold: bool = False
    binarizer: BinarizerKind = "straight_through"

    def __post_init__(self) -> None:
        require_choice("tower.kind", self.kind, choices=get_args(TowerKind))
        require_choice("tower.binarizer", self.binarizer, choices=get_args(BinarizerKind))
        require_int("tower.hidden_width", self.hidden_width, low=1, high=HIDDEN_WIDTH_LIMIT)
        require_share("tower.dropout", self.dropout, below=1)
        require_share("tower.input_dropout", self.input_dropout, below=1)
        _require_bool("tower.threshold", self.threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLosses:
    """Table [losses.pairs]: weights of the losses on pairs that are labelled similar or not.

    logistic: telling similar pairs from others by scaled cosine. info_nce: finding a similar pair's other row
    among those of the batch, at `temperature`. snr: contrastive, on the signal-to-noise distance.
    mined_negatives: rows near a query in the codes of the pass before that InfoNCE also sees, 0..64.
    closure: rows linked by a chain of similar pairs count as similar too, up to as many pairs as are given.
    """

    logistic: float = 0.0
    info_nce: float = 0.0
    snr: float = 0.0
    temperature: float = 0.1
    mined_negatives: int = 0
    closure: bool = False

    def __post_init__(self) -> None:
        _require_weights("losses.pairs", self, "logistic", "info_nce", "snr")
        require_positive("losses.pairs.temperature", self.temperature)
        require_int("losses.pairs.mined_negatives", self.mined_negatives, low=0, high=NEGATIVES_LIMIT)
        _require_bool("losses.pairs.closure", self.closure)
        if self.mined_negatives and not self.info_nce:
            raise ConfigError("losses.pairs.mined_negatives", self.mined_negatives, "0 without info_nce")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelLosses:
    """Table [losses.labels]: weights of the losses on rows with labels.

    likelihood: pairwise, with the cosine of label vectors as similarity. central: to the code of the row's
    class, or of its classes together.
    """

    likelihood: float = 0.0
    central: float = 0.0

    def __post_init__(self) -> None:
        _require_weights("losses.labels", self, "likelihood", "central")


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourLosses:
    """Table [losses.neighbours]: weights of the losses that keep near in codes what is near in embeddings.

    divergence: of a row's likely neighbours by the codes from those by the embeddings, at `temperature`.
    distance: squared error of the codes' cosines within a batch of neighbours, the embeddings' as target.
    margin: the same of differences of two cosines. info_nce: finding a neighbour among the rows of the batch,
    at `temperature` too. lsh: near rows within a radius, far ones beyond a multiple of it.
    """

    divergence: float = 0.0
    distance: float = 0.0
    margin: float = 0.0
    info_nce: float = 0.0
    lsh: float = 0.0
    temperature: float = 0.05

    def __post_init__(self) -> None:
        _require_weights("losses.neighbours", self, "divergence", "distance", "margin", "info_nce", "lsh")
        require_positive("losses.neighbours.temperature", self.temperature)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchLosses:
    """Table [losses.matches]: weights of the losses on rows of two modalities that belong to one item.

    info_nce: finding the item's row of the other modality among the batch's, at `temperature`. likelihood:
    pairwise across the modalities, with the cosine of label vectors as similarity. reconstruct: a row without
    partner gets one, rebuilt from the partners of the rows most like it (RREH); its losses count by this
    factor, in [0, 1].
    """

    info_nce: float = 0.0
    likelihood: float = 0.0
    temperature: float = 0.1
    reconstruct: float = 0.0

    def __post_init__(self) -> None:
        _require_weights("losses.matches", self, "info_nce", "likelihood", "reconstruct")
        require_positive("losses.matches.temperature", self.temperature)
        if self.reconstruct > 1:
            raise ConfigError("losses.matches.reconstruct", self.reconstruct, "a number in [0, 1]")
        if self.reconstruct and not self.info_nce:
            raise ConfigError("losses.matches.reconstruct", self.reconstruct, "0 without info_nce")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueLosses:
    """Table [losses.values]: weights of the penalties on all real values of a step."""

    quantisation: float = 0.0
    bit_balance: float = 0.0
    decorrelation: float = 0.0

    def __post_init__(self) -> None:
        _require_weights("losses.values", self, "quantisation", "bit_balance", "decorrelation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Table [losses]; at least one weight of `pairs`, `labels`, `neighbours` or `matches` is above 0."""

    pairs: PairLosses = field(default_factory=PairLosses)
    labels: LabelLosses = field(default_factory=LabelLosses)
    neighbours: NeighbourLosses = field(default_factory=NeighbourLosses)
    matches: MatchLosses = field(default_factory=MatchLosses)
    values: ValueLosses = field(default_factory=ValueLosses)

    def __post_init__(self) -> None:
        if not (self.of_pairs or self.of_labels or self.of_neighbours or self.of_matches):
            raise ConfigError("losses", 0.0, "a weight above 0 in pairs, labels, neighbours or matches")

    @property
    def of_pairs(self) -> bool:
        return self.pairs.logistic + self.pairs.info_nce + self.pairs.snr > 0

    @property
    def of_labels(self) -> bool:
        return self.labels.likelihood + self.labels.central > 0

    @property
    def of_neighbours(self) -> bool:
        own = self.neighbours
        return own.divergence + own.distance + own.margin + own.info_nce + own.lsh > 0

    @property
    def of_matches(self) -> bool:
        return self.matches.info_nce + self.matches.likelihood > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserConfig:
    """Table [optimiser].

    batch_size: pairs or rows a step, 2..65536. epochs: passes at most, 1..1000. patience: passes without a
    better validation score before the training stops, 1..1000.
    learning_rate, weight_decay: of AdamW. warmup_share: share of the steps that the rate grows over, in
    [0, 1); it falls linearly from there to 0. averaging: decay of the moving average of the weights, which is
    what is judged and kept, in [0, 1); 0 for none. mixed_precision: bfloat16 on a GPU.
    """

    batch_size: int = 512
    epochs: int = 10
    patience: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    averaging: float = 0.0
    mixed_precision: bool = True

    def __post_init__(self) -> None:
        require_int("optimiser.batch_size", self.batch_size, low=2, high=BATCH_SIZE_LIMIT)
        require_int("optimiser.epochs", self.epochs, low=1, high=EPOCHS_LIMIT)
        require_int("optimiser.patience", self.patience, low=1, high=EPOCHS_LIMIT)
        require_positive("optimiser.learning_rate", self.learning_rate)
        require_weight("optimiser.weight_decay", self.weight_decay)
        require_share("optimiser.warmup_share", self.warmup_share, below=1)
        require_share("optimiser.averaging", self.averaging, below=1)
        _require_bool("optimiser.mixed_precision", self.mixed_precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """What `train` needs to know besides the rows; keys of no table stand first in the file.

    code_bits: width of the code, 64..1024, a multiple of 64; its prefixes of 64 and 128 bits are trained too.
    label_bits: width of class codes, likewise. validation_share: share of pairs or rows kept from training,
    in (0, 0.5). seed: source of every random draw.

    Raises: ConfigError that names the key.
    """

    losses: Losses
    tower: TowerConfig = field(default_factory=TowerConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    code_bits: int = 256
    label_bits: int = 64
    validation_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require_bits("code_bits", self.code_bits)
        require_bits("label_bits", self.label_bits)
        require_positive("validation_share", self.validation_share)
        require_share("validation_share", self.validation_share, below=0.5)
        require_int("seed", self.seed, low=0, high=2**63 - 1)


def parse_config(text: str, **overrides: int) -> TrainingConfig:
    """Read a training configuration from TOML. overrides: keys of no table that win over the text's.

    Raises: ConfigError that names the key; tomllib.TOMLDecodeError, a ValueError.
    """
    config: TrainingConfig = _table(TrainingConfig, tomllib.loads(text) | overrides, path="")
    return config


def preset_names() -> tuple[str, ...]:
    """The presets that are installed, by name."""
    folder = files(__package__) / "presets"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir()))


def read_preset(name: str) -> str:
    """Return a preset's TOML. Raises: ConfigError that names those there are."""
    require_choice("preset", name, choices=preset_names())
    return (files(__package__) / "presets" / f"{name}.toml").read_text(encoding="utf-8")


_TABLES = {
    "tower": TowerConfig,
    "losses": Losses,
    "optimiser": OptimiserConfig,
    "losses.pairs": PairLosses,
    "losses.labels": LabelLosses,
    "losses.neighbours": NeighbourLosses,
    "losses.matches": MatchLosses,
    "losses.values": ValueLosses,
}


def _table(kind: type[Any], document: Mapping[str, Any], *, path: str) -> Any:
    """Build one dataclass of a table and of those within it."""
    known = {item.name: item for item in dataclasses.fields(kind)}
    arguments: dict[str, Any] = {}
    for key, value in document.items():
        full = f"{path}{key}"
        if key not in known:
            raise ConfigError(full, value, f"a key of {', '.join(known)}")
        if full in _TABLES:
            if not isinstance(value, Mapping):
                raise ConfigError(full, value, "a table")
            value = _table(_TABLES[full], value, path=f"{full}.")
        arguments[key] = value
    for name, item in known.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise ConfigError(f"{path}{name}", None, "set")
    return kind(**arguments)


def _require_weights(table: str, losses: object, *names: str) -> None:
    for name in names:
        require_weight(f"{table}.{name}", getattr(losses, name))


def _require_bool(key: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(key, value, "true or false")
