import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from hashing.deep.binarizers import AnnealedTanh, LearnedThreshold, StraightThroughSign  # noqa: E402

VALUES = torch.tensor([[-3.0, -0.3, 0.0, 1e-30, 0.7, 1e9]])


def test_sign_is_exact_and_zero_counts_as_minus() -> None:
    assert StraightThroughSign()(VALUES).tolist() == [[-1, -1, -1, 1, 1, 1]]


@pytest.mark.parametrize(("clip", "expected"), [(None, [1, 1, 1, 1, 1, 1]), (1.0, [0, 1, 1, 1, 1, 0])])
def test_sign_passes_the_gradient_within_its_clip(clip: float | None, expected: list[int]) -> None:
    values = VALUES.clone().requires_grad_()
    StraightThroughSign(clip=clip)(values).sum().backward()
    assert values.grad.tolist() == [expected]


def test_sign_keeps_the_dtype() -> None:
    assert StraightThroughSign()(VALUES.double()).dtype == torch.float64


def test_tanh_sharpens_from_start_to_end() -> None:
    tanh = AnnealedTanh(start=1.0, end=16.0)
    value = torch.tensor(0.1)
    outputs = []
    for share in (0.0, 0.5, 1.0):
        tanh.anneal(share)
        outputs.append(tanh(value).item())
    assert outputs == pytest.approx([math.tanh(0.1), math.tanh(0.4), math.tanh(1.6)])


def test_tanh_agrees_with_finite_differences() -> None:
    tanh = AnnealedTanh()
    tanh.anneal(0.5)
    assert torch.autograd.gradcheck(tanh, torch.randn(3, 4, dtype=torch.float64, requires_grad=True))


def test_threshold_starts_as_none() -> None:
    embeddings = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(LearnedThreshold(3, 7)(values, embeddings), values)


def test_threshold_learns_a_sign_that_no_fixed_one_gives() -> None:
    embeddings = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    wanted = torch.sign(embeddings[:, :1] + 0.3)
    values = torch.zeros(200, 1)
    threshold = LearnedThreshold(3, 1)
    optimiser = torch.optim.Adam(threshold.parameters(), lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        torch.nn.functional.softplus(-wanted * threshold(values, embeddings)).mean().backward()
        optimiser.step()
    assert (torch.sign(threshold(values, embeddings)) == wanted).float().mean() > 0.95
