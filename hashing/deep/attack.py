"""Targeted attack on label codes: move a query, within a small ball, to the code of another class.

Projected gradient descent (Madry et al., ICLR 2018) on the sphere. What it needs of a model is `values`, a
differentiable map of rows to real-valued label queries; `head_values` and `map_values` make one of the arrays
that serve.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from hashing.analytic import LabelHead
from hashing.config import require_int, require_positive
from hashing.embeddings import CHUNK_ROWS, as_rows, unit_rows
from hashing.errors import ConfigError, TrainingDataError
from hashing.feature_tower import FeatureTower
from hashing.tower import InstanceMap, Tower

Values = Callable[[Tensor], Tensor]
"""Map float [n, dim] to real-valued queries, float [n, bits]; a gradient passes it."""

EPS_LIMIT = 2.0
"""Of a ball around a unit row: it holds the whole sphere."""

STEPS_LIMIT = 1000
STEP_SHARE = 2.5
"""Length of the steps of one attack together, in radii of its ball: the border is reached and followed."""

TINY = 1e-12
"""Least norm that is divided by."""


def attack_rows(
    embeddings: NDArray[np.floating],
    targets: NDArray[np.integer],
    *,
    class_bits: NDArray[np.bool_],
    values: Values,
    eps: float,
    steps: int = 20,
    seed: int = 0,
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Return rows near the given ones that score as high with a target's class code as gradient steps bring.

    What is made large is <h, target's code> less the largest <h, any other's>: once above 0 the target is the
    nearest class. (To come near the target's code alone flips fewer: 48 queries of 100 against 61.)

    embeddings: float [n, dim]. targets: integers [n], each a row of class_bits. class_bits: bool
    [classes, bits], two classes or more. values: the attacked model, on `device`. eps: radius of the l2 ball
    around each row scaled to length 1, in (0, 2]. steps: 1..1000.
    Returns float32 [n, dim] of length 1, each within eps of its row. Equal seed, equal rows.
    Raises: ConfigError; EmbeddingsError; TrainingDataError for targets that are no classes, or one class.
    """
    check_attack(eps=eps, steps=steps)
    rows = unit_rows(as_rows(embeddings))
    _check_targets(targets, row_count=rows.shape[0], class_count=class_bits.shape[0])
    codes = torch.from_numpy(np.where(class_bits, np.float32(1), np.float32(-1))).to(device)
    generator = torch.Generator(device).manual_seed(seed)
    attacked = np.empty_like(rows)
    for start in range(0, rows.shape[0], CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        columns = torch.from_numpy(targets[chunk].astype(np.int64)).to(device)[:, None]  # [<= CHUNK_ROWS, 1]
        attacked[chunk] = (
            perturb(
                torch.from_numpy(rows[chunk]).to(device),
                partial(_margin, columns=columns, codes=codes, values=values),
                eps=eps,
                steps=steps,
                generator=generator,
            )
            .cpu()
            .numpy()
        )
    return attacked


def perturb(
    rows: Tensor, loss: Callable[[Tensor], Tensor], *, eps: float, steps: int, generator: torch.Generator
) -> Tensor:
    """Return unit rows, float [n, dim], within eps of the given unit rows, that make `loss` small.

    loss: of such rows, a mean over them, so that each row's gradient is its own. It starts at a random point
    of the ball; every step is along the row's gradient, of a length of STEP_SHARE eps / steps. Gradients of
    parameters are left as they were.
    """
    length = STEP_SHARE * eps / steps
    noise = torch.randn(rows.shape, generator=generator, device=rows.device, dtype=rows.dtype)
    near = onto_cap(rows + eps / 2 * functional.normalize(noise, dim=1), rows, eps=eps)
    for _ in range(steps):
        near = near.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(near), near)
        near = onto_cap(near - length * functional.normalize(gradient, dim=1, eps=TINY), rows, eps=eps)
    return near.detach()


def onto_cap(near: Tensor, rows: Tensor, *, eps: float) -> Tensor:
    """Scale `near` to length 1 and move what lies beyond eps of its unit row to the border, along the sphere.

    near, rows: float [n, dim]. Two unit rows are eps apart at a cosine of 1 - eps^2 / 2. Scaling alone could
    leave the ball by eps^3 / 8.
    """
    unit = functional.normalize(near, dim=1, eps=TINY)
    least = 1 - eps**2 / 2
    cosines = (unit * rows).sum(dim=1, keepdim=True)  # [n, 1]
    aside = functional.normalize(unit - cosines * rows, dim=1, eps=TINY)
    border = least * rows + (1 - least**2) ** 0.5 * aside
    return torch.where(cosines < least, border, unit)


def head_values(head: LabelHead, *, device: str = "cpu") -> Values:
    """Return `head.values` for tensors: random features and weight of the closed form."""
    omega, beta, weight = (
        torch.tensor(array, device=device) for array in (head.features.omega, head.features.beta, head.weight)
    )
    scale = (2 / head.features.count) ** 0.5
    return lambda rows: scale * torch.cos(rows @ omega + beta) @ weight


def map_values(label_map: InstanceMap, *, device: str = "cpu") -> Values:
    """Return `label_map.project` for tensors."""
    assert not isinstance(label_map, FeatureTower), "a map that was trained by gradient"
    if not isinstance(label_map, Tower):
        mean, weight = (torch.tensor(array, device=device) for array in (label_map.mean, label_map.weight))
        return lambda rows: (rows - mean) @ weight
    tower = {name: torch.tensor(array, device=device) for name, array in label_map.arrays().items()}

    def values(rows: Tensor) -> Tensor:
        hidden = functional.gelu(rows @ tower["hidden"] + tower["hidden_bias"], approximate="tanh")
        return rows @ tower["linear"] + hidden @ tower["output"] - tower["offset"]

    return values


def _margin(rows: Tensor, *, columns: Tensor, codes: Tensor, values: Values) -> Tensor:
    """Mean of the best other class's score less the target's, of rows [n, dim] with targets [n, 1]."""
    scores = values(rows) @ codes.T  # [n, classes]
    others = scores.scatter(1, columns, -torch.inf).amax(dim=1)
    return (others - scores.gather(1, columns)[:, 0]).mean()


def _check_targets(targets: NDArray[np.integer], *, row_count: int, class_count: int) -> None:
    if class_count < 2:
        raise TrainingDataError("one class only: there is no other to move a row to")
    if targets.shape != (row_count,) or targets.dtype.kind not in "iu":
        raise TrainingDataError(
            f"targets must be integers [{row_count}], got {targets.dtype}{list(targets.shape)}"
        )
    if row_count and not (targets.min() >= 0 and targets.max() < class_count):
        raise TrainingDataError(f"targets must be classes of 0..{class_count - 1}")


def check_attack(*, eps: float, steps: int, prefix: str = "") -> None:
    """Raise ConfigError unless an attack can be made with these; prefix: of the keys that it names."""
    require_positive(f"{prefix}eps", eps)
    if eps > EPS_LIMIT:
        raise ConfigError(f"{prefix}eps", eps, f"at most {EPS_LIMIT:g}")
    require_int(f"{prefix}steps", steps, low=1, high=STEPS_LIMIT)
