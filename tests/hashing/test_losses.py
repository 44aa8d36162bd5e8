"""Every loss against a loop over its definition, its gradient against finite differences, and its edges."""

import math
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from hashing.deep import losses  # noqa: E402

ROWS, OTHERS, BITS = 5, 4, 8


def _draw(*shape: int, seed: int):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


A, B, C = (_draw(ROWS, BITS, seed=seed) for seed in range(3))
STORED = torch.sign(_draw(OTHERS, BITS, seed=3))
HARD = _draw(ROWS, 3, BITS, seed=4)
PAIR_SIMILARITY = torch.tensor([1.0, 0.0, 0.3, 0.0, 1.0], dtype=torch.float64)
SIMILARITY = torch.from_numpy(np.random.default_rng(5).uniform(size=(ROWS, OTHERS)))
MASK = torch.from_numpy(np.random.default_rng(6).uniform(size=(ROWS, OTHERS)) < 0.6)
EXCLUDED = torch.from_numpy(np.random.default_rng(7).uniform(size=(ROWS, ROWS)) < 0.3)
TEACHER = _draw(ROWS, seed=8)
SHARES = torch.tensor([1.0, 0.3, 0.3, 1.0, 0.0], dtype=torch.float64)
CENTRES = torch.sign(_draw(ROWS, BITS, seed=9))


def _cosine(first, second) -> float:
    return sum(x * y for x, y in zip(first, second, strict=True)) / math.sqrt(
        sum(x * x for x in first) * sum(y * y for y in second)
    )


def _distance(first, second) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(first, second, strict=True)))


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def _pairwise_likelihood(first, second, *, similarity, mask=None) -> float:
    terms = []
    for i, row in enumerate(first):
        for j, other in enumerate(second):
            if mask is None or mask[i][j]:
                theta = sum(x * y for x, y in zip(row, other, strict=True)) / 2
                terms.append(math.log(1 + math.exp(theta)) - similarity[i][j] * theta)
    return _mean(terms)


def _central_similarity(values, centres) -> float:
    terms = []
    for row, centre in zip(values, centres, strict=True):
        for h, c in zip(row, centre, strict=True):
            share = (1 + math.tanh(h)) / 2
            terms.append(-math.log(share if c > 0 else 1 - share))
    return _mean(terms)


def _info_nce(queries, keys, negatives=None, *, temperature, excluded=None, weights=None) -> float:
    terms = []
    for i, query in enumerate(queries):
        candidates = [key for j, key in enumerate(keys) if j == i or excluded is None or not excluded[i][j]]
        candidates += [] if negatives is None else list(negatives[i])
        total = sum(math.exp(_cosine(query, key) / temperature) for key in candidates)
        terms.append(-math.log(math.exp(_cosine(query, keys[i]) / temperature) / total))
    if weights is not None:
        return sum(w * term for w, term in zip(weights, terms, strict=True)) / sum(weights)
    return _mean(terms)


def _pair_logistic(first, second, *, similarity, scale, bias) -> float:
    terms = []
    for x, y, s in zip(first, second, similarity, strict=True):
        p = 1 / (1 + math.exp(-(scale * _cosine(x, y) + bias)))
        terms.append(-s * math.log(p) - (1 - s) * math.log(1 - p))
    return _mean(terms)


def _neural_lsh(anchor, positive, negative, *, radius, factor) -> float:
    return _mean(
        max(radius, _distance(p, q)) - min(factor * radius, _distance(p, r))
        for p, q, r in zip(anchor, positive, negative, strict=True)
    )


def _variance(values) -> float:
    return _mean((value - _mean(values)) ** 2 for value in values)


def _snr(anchor, other) -> float:
    return _variance([y - x for x, y in zip(anchor, other, strict=True)]) / _variance(anchor)


def _snr_contrastive(first, second, *, similarity, margin) -> float:
    return _mean(
        s * _snr(x, y) + (1 - s) * max(0.0, margin - _snr(x, y))
        for x, y, s in zip(first, second, similarity, strict=True)
    )


def _margin_mse(anchor, positive, negative, *, teacher_margin) -> float:
    return _mean(
        (_cosine(a, p) - _cosine(a, n) - margin) ** 2
        for a, p, n, margin in zip(anchor, positive, negative, teacher_margin, strict=True)
    )


def _distance_preserving(queries, keys, *, targets, scale) -> float:
    return _mean(
        (scale * _cosine(query, key) - targets[i][j]) ** 2
        for i, query in enumerate(queries)
        for j, key in enumerate(keys)
    )


def _quantisation(values) -> float:
    return _mean((h - (1 if h > 0 else -1)) ** 2 for row in values for h in row)


def _bit_balance(values) -> float:
    return _mean(_mean(column) ** 2 for column in zip(*values, strict=True))


def _decorrelation(values) -> float:
    columns = list(zip(*values, strict=True))
    return _mean(
        _mean(x * y for x, y in zip(columns[i], columns[j], strict=True)) ** 2
        for i in range(len(columns))
        for j in range(len(columns))
        if i != j
    )


def _neighbour_divergence(queries, keys, *, targets, temperature) -> float:
    terms = []
    for i, query in enumerate(queries):
        others = [j for j in range(len(keys)) if j != i]
        student = [math.exp(_cosine(query, keys[j]) / temperature) for j in others]
        teacher = [math.exp(targets[i][j] / temperature) for j in others]
        shares = [(t / sum(teacher), s / sum(student)) for t, s in zip(teacher, student, strict=True)]
        terms.append(sum(t * math.log(t / s) for t, s in shares))
    return _mean(terms)


COSINES = torch.nn.functional.normalize(C, dim=1) @ torch.nn.functional.normalize(C, dim=1).T

CASES = {
    "pairwise likelihood": (
        losses.pairwise_likelihood,
        _pairwise_likelihood,
        (A, STORED),
        {"similarity": SIMILARITY},
    ),
    "pairwise likelihood, masked": (
        losses.pairwise_likelihood,
        _pairwise_likelihood,
        (A, STORED),
        {"similarity": SIMILARITY, "mask": MASK},
    ),
    "central similarity": (losses.central_similarity, _central_similarity, (A, CENTRES), {}),
    "info nce": (losses.info_nce, _info_nce, (A, B), {"temperature": 0.2}),
    "info nce, excluded": (losses.info_nce, _info_nce, (A, B), {"temperature": 0.2, "excluded": EXCLUDED}),
    "info nce, hard negatives": (losses.info_nce, _info_nce, (A, B, HARD), {"temperature": 0.2}),
    "info nce, weighted": (
        losses.info_nce,
        _info_nce,
        (A, B, HARD),
        {"temperature": 0.2, "excluded": EXCLUDED, "weights": SHARES},
    ),
    "pair logistic": (
        losses.pair_logistic,
        _pair_logistic,
        (A, B),
        {"similarity": PAIR_SIMILARITY, "scale": 6.0, "bias": -2.0},
    ),
    "neighbour divergence": (
        losses.neighbour_divergence,
        _neighbour_divergence,
        (A, B),
        {"targets": COSINES, "temperature": 0.3},
    ),
    "neural lsh": (losses.neural_lsh, _neural_lsh, (A, B, C), {"radius": 3.0, "factor": 1.4}),
    "snr contrastive": (
        losses.snr_contrastive,
        _snr_contrastive,
        (A, B),
        {"similarity": PAIR_SIMILARITY, "margin": 2.0},
    ),
    "margin mse": (losses.margin_mse, _margin_mse, (A, B, C), {"teacher_margin": TEACHER}),
    "distance preserving": (
        losses.distance_preserving,
        _distance_preserving,
        (A, STORED),
        {"targets": 2 * SIMILARITY - 1, "scale": 0.7},
    ),
    "quantisation": (losses.quantisation, _quantisation, (A,), {}),
    "bit balance": (losses.bit_balance, _bit_balance, (A,), {}),
    "decorrelation": (losses.decorrelation, _decorrelation, (A,), {}),
}


def _plain(value):
    return value.tolist() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", CASES)
def test_loss_is_what_a_loop_over_its_definition_gives(name: str) -> None:
    loss, oracle, values, settings = CASES[name]
    expected = oracle(*map(_plain, values), **{key: _plain(value) for key, value in settings.items()})
    assert loss(*values, **settings).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradient_agrees_with_finite_differences(name: str) -> None:
    loss, _, values, settings = CASES[name]
    inputs = tuple(value.clone().requires_grad_() for value in values)
    assert torch.autograd.gradcheck(partial(loss, **settings), inputs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("row_count", [0, 1])
def test_batch_of_no_or_one_row_gives_a_finite_loss_and_gradient(name: str, row_count: int) -> None:
    loss, _, values, settings = CASES[name]
    inputs = [value[:row_count].clone().requires_grad_() for value in values]
    settings = {
        key: value[:row_count] if isinstance(value, torch.Tensor) else value
        for key, value in settings.items()
    }
    if values[-1] is STORED:
        inputs[1] = STORED.clone().requires_grad_()
    if "excluded" in settings:
        settings["excluded"] = EXCLUDED[:row_count, :row_count]
    _assert_finite(loss(*inputs, **settings), inputs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_equal_rows_give_a_finite_loss_and_gradient(name: str, value: float) -> None:
    loss, _, values, settings = CASES[name]
    inputs = [torch.full_like(tensor, value, requires_grad=True) for tensor in values]
    _assert_finite(loss(*inputs, **settings), inputs)


@pytest.mark.parametrize("name", CASES)
def test_large_values_give_a_finite_loss_and_gradient(name: str) -> None:
    loss, _, values, settings = CASES[name]
    inputs = [(1e3 * value).float().requires_grad_() for value in values]
    settings = {
        key: value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in settings.items()
    }
    _assert_finite(loss(*inputs, **settings), inputs)


def _assert_finite(loss, inputs) -> None:
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(tensor.grad).all() for tensor in inputs)


@pytest.mark.parametrize("similarity", [0.0, 1.0])
def test_batch_of_one_kind_of_pairs_gives_a_finite_loss(similarity: float) -> None:
    kind = torch.full((ROWS,), similarity, dtype=torch.float64)
    first, second = A.clone().requires_grad_(), B.clone().requires_grad_()
    loss = losses.pair_logistic(first, second, similarity=kind, scale=6.0, bias=0.0)
    loss = loss + losses.snr_contrastive(first, second, similarity=kind)
    loss = loss + losses.pairwise_likelihood(first, second, similarity=kind[:, None].expand(ROWS, ROWS))
    _assert_finite(loss, [first, second])


def test_pairs_that_are_all_masked_cost_nothing() -> None:
    values = A.clone().requires_grad_()
    nothing = torch.zeros(ROWS, ROWS, dtype=torch.bool)
    loss = losses.pairwise_likelihood(values, values, similarity=nothing.double(), mask=nothing)
    loss.backward()
    assert (loss.item(), values.grad.abs().max().item()) == (0, 0)


def test_lone_query_has_nothing_to_tell_its_key_from() -> None:
    assert losses.info_nce(A[:1], B[:1]).item() == 0


def test_excluded_key_of_a_query_itself_is_kept() -> None:
    everything = torch.ones(ROWS, ROWS, dtype=torch.bool)
    assert losses.info_nce(A, B, excluded=everything).item() == 0


def test_equal_weights_are_the_plain_mean() -> None:
    weighted = losses.info_nce(A, B, weights=torch.full((ROWS,), 0.3, dtype=torch.float64))
    assert weighted.item() == pytest.approx(losses.info_nce(A, B).item(), rel=1e-12)


def test_query_of_weight_0_costs_nothing() -> None:
    values = A.clone().requires_grad_()
    losses.info_nce(values, B, weights=torch.eye(ROWS, dtype=torch.float64)[0]).backward()
    assert values.grad[0].abs().max() > 0
    assert values.grad[1:].abs().max() == 0


def test_codes_that_keep_the_embeddings_cosines_cost_nothing() -> None:
    unit = torch.nn.functional.normalize(A, dim=1)
    loss = losses.distance_preserving(3 * A, A, targets=unit @ unit.T)
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_label_similarity_is_the_cosine_of_label_vectors() -> None:
    first = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    second = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    expected = torch.tensor([[1 / math.sqrt(2), 1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(losses.label_similarity(first, second), expected)


def test_snr_distance_is_noise_over_signal_in_one_direction() -> None:
    expected = [_snr(x, y) for x, y in zip(A.tolist(), B.tolist(), strict=True)]
    torch.testing.assert_close(losses.snr_distance(A, B), torch.tensor(expected, dtype=torch.float64))
    assert not torch.allclose(losses.snr_distance(A, B), losses.snr_distance(B, A))


def test_learned_scale_and_bias_get_a_gradient() -> None:
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (6.0, -2.0))

    def loss(scale, bias):
        return losses.pair_logistic(A, B, similarity=PAIR_SIMILARITY, scale=scale, bias=bias)

    assert torch.autograd.gradcheck(loss, (scale, bias))


@pytest.mark.parametrize("name", CASES)
def test_nested_loss_is_the_mean_over_prefixes(name: str) -> None:
    loss, _, values, settings = CASES[name]
    expected = [loss(*(value[..., :count] for value in values), **settings).item() for count in (2, 5, BITS)]
    nested = losses.nested(loss, (2, 5, BITS))
    assert nested(*values, **settings).item() == pytest.approx(np.mean(expected), rel=1e-12)


def test_nested_loss_moves_the_first_bits_most() -> None:
    values = A.clone().requires_grad_()
    losses.nested(losses.quantisation, (4, BITS))(values).backward()
    assert (values.grad[:, :4].abs().mean() > values.grad[:, 4:].abs().mean()).item()
