"""Train a tower by gradient that maps rows to the issued codes of their classes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hashing.class_codes import ClassCodes, Labels, check_labels, target_bits
from hashing.config import require_bits, require_int, require_positive, require_share, require_weight
from hashing.deep import losses
from hashing.deep.attack import STEPS_LIMIT, check_attack, perturb
from hashing.deep.config import BATCH_SIZE_LIMIT, EPOCHS_LIMIT, HIDDEN_WIDTH_LIMIT
from hashing.deep.passes import Passes, run_passes
from hashing.deep.towers import ResidualTower, export, train_mode
from hashing.embeddings import check_training_rows, unit_rows
from hashing.errors import ConfigError, TrainingDataError
from hashing.tower import InstanceMap
from hashing.trainer import Progress, no_progress

logger = logging.getLogger(__name__)

START_RIDGE = 1.0
"""Ridge penalty of the linear regression on the class codes that the tower starts at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledConfig:
    """What `train_labelled` needs to know besides the rows and labels.

    label_bits: width of the class codes, 64..1024, a multiple of 64. hidden_width: units of the hidden layer,
    1..8192. dropout: of the hidden layer, in [0, 1).
    central_weight, pairwise_weight: factors of central similarity to the class codes, and of the pairwise
    likelihood within a batch, whose similarity is the cosine of the label vectors; the first is above 0.
    adversarial_eps: radius of the l2 ball around each unit row in which training looks for the point that is
    farthest from the row's own class code; 0 for none. adversarial_steps: of that search from a random point,
    1..1000; at a radius of .3 three gained nothing over one.
    adversarial_weight: of the loss at these points beside that at the rows.
    batch_size: rows a step, 2..65536. epochs: passes, 1..1000.
    learning_rate, weight_decay: of AdamW. warmup_share: share of the steps that the rate grows over, in
    [0, 1); it falls linearly from there to 0.
    seed: source of every random draw, that of new class codes too.

    Raises: ConfigError that names the key.
    """

    label_bits: int = 64
    hidden_width: int = 512
    dropout: float = 0.2
    central_weight: float = 1.0
    pairwise_weight: float = 0.0
    adversarial_eps: float = 0.0
    adversarial_steps: int = 1
    adversarial_weight: float = 1.0
    batch_size: int = 256
    epochs: int = 10
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require_bits("label_bits", self.label_bits)
        require_int("hidden_width", self.hidden_width, low=1, high=HIDDEN_WIDTH_LIMIT)
        require_int("batch_size", self.batch_size, low=2, high=BATCH_SIZE_LIMIT)
        require_int("epochs", self.epochs, low=1, high=EPOCHS_LIMIT)
        require_int("seed", self.seed, low=0, high=2**63 - 1)
        for key in ("dropout", "warmup_share"):
            require_share(key, getattr(self, key), below=1)
        for key in ("central_weight", "learning_rate"):
            require_positive(key, getattr(self, key))
        for key in ("pairwise_weight", "adversarial_weight", "adversarial_eps", "weight_decay"):
            require_weight(key, getattr(self, key))
        if self.adversarial_eps > 0:
            check_attack(eps=self.adversarial_eps, steps=self.adversarial_steps, prefix="adversarial_")
        else:
            require_int("adversarial_steps", self.adversarial_steps, low=1, high=STEPS_LIMIT)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelTower:
    """A label part whose map is a tower: `label_map.project(x)` are real-valued label queries.

    metrics: row_count (with a label), class_count, and final_loss, the mean of the last pass.
    """

    label_map: InstanceMap
    class_codes: ClassCodes
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class _Batches:
    """What a step reads. rows: float32 [n, dim], unit. centres: float32 [n, label_bits] in -1/+1, the code of
    each row's classes. classes: float32 [n, classes], 0/1; no column without a pairwise loss."""

    rows: Tensor
    centres: Tensor
    classes: Tensor


def train_labelled(
    embeddings: NDArray[np.floating],
    labels: Labels,
    *,
    config: LabelledConfig,
    class_codes: ClassCodes | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> LabelTower:
    """Train a residual tower toward class codes by central similarity (CSQ, Yuan et al., CVPR 2020).

    embeddings: float [n, dim], L2-normalised. labels: of each row; rows without one are left out.
    class_codes: those issued before, which stay; unseen labels get codes in the order of rows. device: of
    torch; None for the GPU where there is one. progress: stages "fit" and "train".

    With `adversarial_eps` each step also learns from points of the ball around each row that projected
    gradient steps moved away from the code of its class: centre-guided adversarial training (CgAT, Wang et
    al., WWW 2023).
    Equal seed, input, device and thread count give equal arrays; on a GPU up to the order of its sums.

    Raises, before time is spent: EmbeddingsError for values that are not finite; TrainingDataError for labels
    that do not fit, no labelled row, one class only, or rows that are all equal; ConfigError for label_bits
    other than those of `class_codes`. Later: ConfigError where the training diverges.
    """
    report = progress if progress is not None else no_progress
    rows, kept = labelled_rows_of(embeddings, labels)
    codes = ClassCodes.empty(label_bits=config.label_bits, seed=config.seed)
    if class_codes is not None:
        if class_codes.label_bits != config.label_bits:
            raise ConfigError("label_bits", config.label_bits, f"{class_codes.label_bits}, as issued before")
        codes = class_codes
    codes = codes.issue(chain.from_iterable(kept))
    if codes.label_bits > rows.shape[1]:
        logger.warning(
            "%d label bits of %d dimensions: bits beyond them follow from others",
            codes.label_bits,
            rows.shape[1],
        )
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    centres = np.where(target_bits(codes, kept), np.float32(1), np.float32(-1))
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(config.seed)
        report("fit", 0, 1)
        tower = _tower(rows, centres, config=config).to(place)
        report("fit", 1, 1)
        classes = class_vectors(kept) if config.pairwise_weight else np.empty((len(kept), 0), np.float32)
        batches = _Batches(*(torch.from_numpy(array).to(place) for array in (rows, centres, classes)))
        final_loss = _train(tower, batches, config=config, progress=report)
    tower.eval()
    return LabelTower(
        label_map=export(tower),
        class_codes=codes,
        metrics={
            "row_count": float(rows.shape[0]),
            "class_count": float(len(codes)),
            "final_loss": final_loss,
        },
    )


def _train(tower: ResidualTower, batches: _Batches, *, config: LabelledConfig, progress: Progress) -> float:
    """The training loop. Returns the mean loss of the last pass. Raises: ConfigError where it diverges."""
    generator = torch.Generator(batches.rows.device).manual_seed(config.seed)
    optimiser = torch.optim.AdamW(
        tower.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )

    def loss_of(chosen: NDArray[np.int64]) -> Tensor:
        index = torch.from_numpy(chosen).to(batches.rows.device)
        rows, centres, classes = batches.rows[index], batches.centres[index], batches.classes[index]
        loss = _loss(tower, rows, centres, classes, config=config)
        if config.adversarial_eps and config.adversarial_weight:
            moved = _farthest(tower, rows, centres, config=config, generator=generator)
            loss = loss + config.adversarial_weight * _loss(tower, moved, centres, classes, config=config)
        return loss

    passes = Passes(
        item_count=batches.rows.shape[0],
        batch_size=config.batch_size,
        epochs=config.epochs,
        warmup_share=config.warmup_share,
    )
    rng = np.random.default_rng(config.seed)
    return run_passes(optimiser, loss_of, passes=passes, rng=rng, progress=progress)


def _loss(
    tower: ResidualTower, rows: Tensor, centres: Tensor, classes: Tensor, *, config: LabelledConfig
) -> Tensor:
    values = tower(rows)  # [b, label_bits]
    loss = config.central_weight * losses.central_similarity(values, centres)
    if config.pairwise_weight:
        others = ~torch.eye(rows.shape[0], dtype=torch.bool, device=rows.device)
        near_bits = torch.tanh(values)
        loss = loss + config.pairwise_weight * losses.pairwise_likelihood(
            near_bits, near_bits, similarity=losses.label_similarity(classes, classes), mask=others
        )
    return loss


def _farthest(
    tower: ResidualTower, rows: Tensor, centres: Tensor, *, config: LabelledConfig, generator: torch.Generator
) -> Tensor:
    """Return points near the rows that lie away from the codes of their classes; no dropout on the way."""
    tower.eval()
    moved = perturb(
        rows,
        lambda near: -losses.central_similarity(tower(near), centres),
        eps=config.adversarial_eps,
        steps=config.adversarial_steps,
        generator=generator,
    )
    train_mode(tower)
    return moved


def _tower(
    rows: NDArray[np.float32], centres: NDArray[np.float32], *, config: LabelledConfig
) -> ResidualTower:
    """Return a tower that starts at the ridge regression of the class codes on the rows.

    Its BatchNorm stays the identity: of few classes some bits are the same for nearly all rows, and a
    normalised bit could not be. The threshold gives it the shift that this takes.
    """
    wide = rows.astype(np.float64)
    gram = wide.T @ wide + START_RIDGE * np.eye(rows.shape[1])
    weight = np.linalg.solve(gram, wide.T @ centres).astype(np.float32)  # [dim, label_bits]
    tower = ResidualTower(weight, hidden_width=config.hidden_width, dropout=config.dropout, threshold=True)
    train_mode(tower)
    return tower


def labelled_rows_of(
    embeddings: NDArray[np.floating], labels: Labels, *, least_classes: int = 2
) -> tuple[NDArray[np.float32], list[tuple[str, ...]]]:
    """Return the rows that have labels, unit, and their labels; warn of what is left out or alone.

    Raises: as `train_labelled`; TrainingDataError for fewer than `least_classes`, 1 or 2.
    """
    check_labels(labels, row_count=embeddings.shape[0])
    check_training_rows(embeddings)
    chosen = np.flatnonzero([len(own) > 0 for own in labels])
    if chosen.size == 0:
        raise TrainingDataError("no row has a label")
    kept = [tuple(dict.fromkeys(labels[row])) for row in chosen.tolist()]
    counts = Counter(chain.from_iterable(kept))
    if len(counts) < least_classes:
        raise TrainingDataError("one class only")
    rows = embeddings[chosen]
    check_training_rows(rows)
    left_out = embeddings.shape[0] - chosen.size
    if left_out:
        logger.warning("%d of %d rows have no label and are left out", left_out, embeddings.shape[0])
    alone = sum(count == 1 for count in counts.values())
    if alone:
        logger.warning("%d of %d classes have one row", alone, len(counts))
    return unit_rows(rows.astype(np.float32)), kept


def class_vectors(labels: Labels) -> NDArray[np.float32]:
    """Return which classes each row has, 0/1 float32 [n, classes]."""
    columns = {label: column for column, label in enumerate(dict.fromkeys(chain.from_iterable(labels)))}
    vectors = np.zeros((len(labels), len(columns)), dtype=np.float32)
    for row, own in enumerate(labels):
        vectors[row, [columns[label] for label in own]] = 1
    return vectors
