"""Losses on the real values h of an encoder, before the sign.

Positional arguments are values or codes, float [..., bits], whose last axis is that of the bits; all else is
passed by keyword. So `nested` can cut the positional ones to a prefix. Each loss returns a scalar: the mean
over its rows or pairs, and 0 (with a gradient of 0) where there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

EPSILON = 1e-8
"""Least norm or variance that a loss divides by."""


Loss = Callable[..., Tensor]
"""A loss as this module has them: values by position, all else by keyword."""


def nested(loss: Loss, prefixes: Sequence[int]) -> Loss:
    """Return the mean of `loss` over the leading `prefixes` bits of its positional arguments.

    Every prefix is trained to be a code by itself (Kusupati et al., Matryoshka representation learning,
    NeurIPS 2022). prefixes: counts of leading bits, at least one.
    """

    def mean_over_prefixes(*values: Tensor, **settings: Tensor | float | None) -> Tensor:
        losses = [loss(*(value[..., :count] for value in values), **settings) for count in prefixes]
        return torch.stack(losses).mean()

    return mean_over_prefixes


def pairwise_likelihood(
    first: Tensor, second: Tensor, *, similarity: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Negative log-likelihood log(1 + e^theta) - s theta of all pairs, theta = <h_i, h_j> / 2.

    first: [n, bits]. second: [m, bits]; for pairs within a batch `first` again, with a mask that leaves the
    diagonal out; for the new-old likelihood of DLCH the frozen old codes in -1/+1. similarity: [n, m] in
    [0, 1]; with several labels a row `label_similarity`. mask: bool [n, m], pairs that count; None for all.
    DPSH (Li, Wang & Kang, IJCAI 2016); DLCH (deep lifelong cross-modal hashing, Xu et al. 2023).
    """
    theta = first @ second.T / 2  # [n, m]
    return _mean(functional.softplus(theta) - similarity * theta, mask)


def label_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosines of label vectors, float [n, m] in [0, 1]; 0 for a row without label.

    first: 0/1 float [n, classes]. second: 0/1 float [m, classes].
    """
    return (
        functional.normalize(first, dim=1, eps=EPSILON) @ functional.normalize(second, dim=1, eps=EPSILON).T
    )


def central_similarity(values: Tensor, centres: Tensor) -> Tensor:
    """Binary cross-entropy between (1 + tanh h) / 2 and the class code of each row, mean over its bits.

    values: [n, bits]. centres: [n, bits] in -1/+1, the code of each row's class, or of the classes together.
    As (1 + tanh h) / 2 = sigmoid(2h), this is log(1 + e^(-2 c h)), which no large |h| makes infinite.
    CSQ (Yuan et al., CVPR 2020).
    """
    return _mean(functional.softplus(-2 * centres * values))


def info_nce(
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float = 0.05,
    excluded: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of finding key i for query i among all keys, at cosine / temperature.

    queries, keys: [n, bits]; row i of both belongs together. negatives: [n, k, bits], mined for each query.
    excluded: bool [n, n], keys that are no negative of a query (another wording of the same); its diagonal
    is not read. weights: [n], of each query in the mean; None for equal ones.
    van den Oord et al. 2018; embedding to embedding as in BEBR (Gan et al., KDD 2023).
    """
    unit_queries = functional.normalize(queries, dim=-1, eps=EPSILON)
    logits = unit_queries @ functional.normalize(keys, dim=-1, eps=EPSILON).T  # [n, n]
    if excluded is not None:
        others = ~torch.eye(logits.shape[0], dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(excluded & others, -torch.inf)
    if negatives is not None:
        hard = functional.normalize(negatives, dim=-1, eps=EPSILON)
        logits = torch.cat([logits, torch.einsum("nb,nkb->nk", unit_queries, hard)], dim=1)
    logits = logits / temperature
    own = torch.logsumexp(logits, dim=1) - logits.diagonal()  # [n]
    return _mean(own) if weights is None else (own * weights).sum() / weights.sum().clamp_min(EPSILON)


def pair_logistic(
    first: Tensor, second: Tensor, *, similarity: Tensor, scale: Tensor | float, bias: Tensor | float
) -> Tensor:
    """Logistic loss of telling similar pairs from others by scale * cosine + bias.

    first, second: [n, bits], pair i is row i of both. similarity: [n] in [0, 1]. scale, bias: learned or
    fixed scalars, or one for each pair, [n]. Sigmoid loss (Zhai et al., ICCV 2023) on labelled pairs.
    """
    logits = scale * functional.cosine_similarity(first, second, dim=1, eps=EPSILON) + bias  # [n]
    return _mean(functional.softplus(logits) - similarity * logits)


def neural_lsh(anchor: Tensor, positive: Tensor, negative: Tensor, *, radius: float, factor: float) -> Tensor:
    """max(R, |h_p - h_q|) - min(c R, |h_p - h_r|): near pairs within R, far ones beyond c R.

    anchor, positive, negative: [n, bits]; Euclidean distances. radius: R > 0. factor: c > 1.
    Least value R (1 - c). NLSHBlock (Wang et al., neural locality sensitive hashing, 2024).
    """
    near = torch.linalg.vector_norm(anchor - positive, dim=1)
    far = torch.linalg.vector_norm(anchor - negative, dim=1)
    return _mean(near.clamp_min(radius) - far.clamp_max(factor * radius))


def snr_distance(anchor: Tensor, other: Tensor) -> Tensor:
    """Return var(h_j - h_i) / var(h_i) over the bits, [n]: noise over signal; not symmetric.

    anchor, other: [n, bits]. SNR distance (Yuan et al., CVPR 2019).
    """
    return _row_variances(other - anchor) / _row_variances(anchor).clamp_min(EPSILON)


def snr_contrastive(first: Tensor, second: Tensor, *, similarity: Tensor, margin: float = 1.0) -> Tensor:
    """s d + (1 - s) max(0, margin - d) with the SNR distance d of each pair.

    first, second: [n, bits]. similarity: [n] in [0, 1]. Contrastive form of Yuan et al., CVPR 2019.
    """
    distances = snr_distance(first, second)
    return _mean(similarity * distances + (1 - similarity) * (margin - distances).clamp_min(0))


def margin_mse(anchor: Tensor, positive: Tensor, negative: Tensor, *, teacher_margin: Tensor) -> Tensor:
    """Squared error between the student's margin cos(a, p) - cos(a, n) and the teacher's.

    anchor, positive, negative: [n, bits]. teacher_margin: [n], in the same unit as a difference of cosines.
    Hofstätter et al. 2020; GPL (Wang et al., NAACL 2022).
    """
    near = functional.cosine_similarity(anchor, positive, dim=1, eps=EPSILON)
    far = functional.cosine_similarity(anchor, negative, dim=1, eps=EPSILON)
    return _mean((near - far - teacher_margin) ** 2)


def distance_preserving(
    queries: Tensor, keys: Tensor, *, targets: Tensor, scale: Tensor | float = 1.0
) -> Tensor:
    """Squared error of scale * cos(h_i, h_j) against the cosines of the embeddings, mean over all pairs.

    queries: [n, bits]. keys: [m, bits]. targets: [n, m]. scale: learned or fixed. Binary reconstructive
    embeddings (Kulis & Darrell, NIPS 2009), with cosines.
    """
    unit_queries = functional.normalize(queries, dim=-1, eps=EPSILON)
    cosines = unit_queries @ functional.normalize(keys, dim=-1, eps=EPSILON).T  # [n, m]
    return _mean((scale * cosines - targets) ** 2)


def neighbour_divergence(
    queries: Tensor,
    keys: Tensor,
    *,
    targets: Tensor,
    temperature: float,
) -> Tensor:
    """Divergence of how likely each row is the neighbour of another, by the codes instead of the embeddings.

    queries, keys: float [n, bits], of the same rows. targets: cosines of the embeddings, [n, n]; no row is
    a neighbour of its own. Mean over queries of KL(softmax(targets / temperature) || softmax(cosines /
    temperature)); 0 for fewer than two rows.
    Stochastic neighbours (Hinton & Roweis, NIPS 2002); as distillation Passalis & Tefas, ECCV 2018.
    """
    if queries.shape[0] < 2:
        return (queries.sum() + keys.sum()) * 0
    own = torch.eye(queries.shape[0], dtype=torch.bool, device=queries.device)
    cosines = (
        functional.normalize(queries, dim=1, eps=EPSILON) @ functional.normalize(keys, dim=1, eps=EPSILON).T
    )  # [n, n]
    least = torch.finfo(cosines.dtype).min
    student = functional.log_softmax((cosines / temperature).masked_fill(own, least), dim=1)
    teacher = functional.log_softmax((targets / temperature).masked_fill(own, least), dim=1)
    return functional.kl_div(
        student.masked_fill(own, 0), teacher.masked_fill(own, least), reduction="batchmean", log_target=True
    )


def quantisation(values: Tensor) -> Tensor:
    """(h - sgn h)^2, mean over rows and bits; sgn is +1 where h > 0, else -1. values: [n, bits]."""
    signs = torch.where(values > 0, 1.0, -1.0).to(values.dtype)
    return _mean((values - signs) ** 2)


def bit_balance(values: Tensor) -> Tensor:
    """Squared mean of each bit over the batch, mean over bits: every bit splits the rows evenly.

    values: [n, bits]. Spectral hashing's balance (Weiss, Torralba & Fergus, NIPS 2008) as a penalty.
    """
    return _mean((values.sum(dim=0) / max(1, values.shape[0])) ** 2)


def decorrelation(values: Tensor) -> Tensor:
    """Squared entries of H^T H / n beside its diagonal, their mean: no bit says what another does.

    values: [n, bits]; 0 for one bit. Weiss, Torralba & Fergus, NIPS 2008, as a penalty.
    """
    gram = values.T @ values / max(1, values.shape[0])  # [bits, bits]
    return _mean(gram**2, ~torch.eye(gram.shape[0], dtype=torch.bool, device=gram.device))


def _row_variances(values: Tensor) -> Tensor:
    """Return the variance of each row of [n, bits]; torch's own warns of no rows."""
    return ((values - values.mean(dim=1, keepdim=True)) ** 2).mean(dim=1)


def _mean(losses: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean of the losses that count; 0, not NaN, where none does."""
    if mask is None:
        return losses.sum() / max(1, losses.numel())
    return losses.masked_fill(~mask, 0).sum() / mask.sum().clamp_min(1)
