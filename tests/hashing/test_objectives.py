"""What a step of training asks of the codes: the batches and the losses of each objective."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="torch is not installed")

from hashing.deep.binarizers import StraightThroughSign  # noqa: E402
from hashing.deep.config import LabelLosses, MatchLosses, NeighbourLosses, PairLosses  # noqa: E402
from hashing.deep.label_objective import LabelObjective  # noqa: E402
from hashing.deep.losses import info_nce, nested, pairwise_likelihood  # noqa: E402
from hashing.deep.match_objective import Matches, MatchObjective  # noqa: E402
from hashing.deep.neighbour_objective import NEAREST_COUNT, NeighbourObjective  # noqa: E402
from hashing.deep.objectives import EQUAL_CODES_THETA, Batches, Coder, label_likelihood  # noqa: E402
from hashing.deep.pair_objective import PairObjective  # noqa: E402
from hashing.deep.pairs import connected_components  # noqa: E402
from hashing.deep.towers import LinearTower  # noqa: E402

CPU = torch.device("cpu")


def _batches(size: int) -> Batches:
    return Batches(prefixes=(64,), size=size, device=CPU)


def _rows(count: int, *, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, 16))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class RecordingCoder(Coder):
    """A coder that keeps which rows were asked for, and what they gave."""

    def __init__(self, rows: dict[str, NDArray[np.float32]]) -> None:
        towers = {
            modality: LinearTower(np.random.default_rng(1).standard_normal((16, 64)).astype(np.float32))
            for modality in rows
        }
        tensors = {modality: torch.from_numpy(own) for modality, own in rows.items()}
        super().__init__(torch.nn.ModuleDict(towers), StraightThroughSign(), tensors)
        self.asked: list[tuple[str, list[int]]] = []
        self.given: list[tuple[Any, Any]] = []

    def __call__(self, modality: str, rows: Any) -> tuple[Any, Any]:
        self.asked.append((modality, rows.tolist()))
        self.given.append(super().__call__(modality, rows))
        return self.given[-1]


def _pair_objective(pairs: list[list[int]], row_count: int, *, size: int = 64, **weights: Any) -> Any:
    objective = PairObjective(
        np.array(pairs, dtype=np.int64),
        "text",
        row_count=row_count,
        weights=PairLosses(info_nce=1.0, **weights),
        batches=_batches(size),
        rng=np.random.default_rng(0),
    )
    objective.begin_pass(np.random.default_rng(0), None)
    return objective


def _pairs_asked(objective: Any, rows: NDArray[np.float32]) -> list[tuple[int, int]]:
    asked = []
    for step in range(objective.step_count):
        coder = RecordingCoder({"text": rows})
        assert torch.isfinite(objective.loss(coder, step))
        own = coder.asked[0][1]
        asked += list(zip(own[: len(own) // 2], own[len(own) // 2 :], strict=True))
    return asked


def test_each_pair_is_asked_once_in_a_pass() -> None:
    pairs = [[2 * i, 2 * i + 1, i % 2] for i in range(30)]
    objective = _pair_objective(pairs, 60, size=7)
    assert objective.step_count == 5
    assert sorted(_pairs_asked(objective, _rows(60))) == [(first, second) for first, second, _ in pairs]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), row_count=st.integers(4, 14))
def test_closure_adds_rows_that_a_chain_links_and_no_pair_names(data: st.DataObject, row_count: int) -> None:
    row = st.integers(0, row_count - 1)
    drawn = data.draw(st.lists(st.tuples(row, row, st.integers(0, 1)), min_size=3, max_size=20))
    pairs = np.array([own for own in drawn if own[0] != own[1]] + [(0, 1, 1), (1, 2, 1)], dtype=np.int64)
    objective = _pair_objective(pairs.tolist(), row_count, closure=True, size=1000)
    asked = _pairs_asked(objective, _rows(row_count))
    given_pairs = [(int(first), int(second)) for first, second, _ in pairs]
    added = list(asked)
    for own in given_pairs:
        added.remove(own)
    similar = pairs[pairs[:, 2] == 1]
    group = connected_components(similar[:, 0], similar[:, 1], row_count=row_count)
    known = {frozenset(own) for own in given_pairs}
    linked = {frozenset((i, j)) for i in range(row_count) for j in range(i) if group[i] == group[j]} - known
    assert len({frozenset(own) for own in added}) == len(added) == min(len(similar), len(linked))
    assert {frozenset(own) for own in added} <= linked


def test_closure_of_a_long_chain_takes_memory_for_its_pairs_alone() -> None:
    pairs = np.column_stack([np.arange(5999), np.arange(1, 6000), np.ones(5999, dtype=np.int64)])
    tracemalloc.start()
    objective = _pair_objective(pairs.tolist(), 6000, closure=True, size=64)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert objective.step_count == -(-2 * 5999 // 64)
    assert peak_bytes < 50_000_000  # the 18 million pairs of its rows would take 290


def test_mined_negatives_are_of_other_groups_and_near() -> None:
    rows = _rows(40, seed=3)
    pairs = [[i, i + 1, 1] for i in range(8)] + [[2 * i, 2 * i + 1, i % 2] for i in range(5, 20)]
    objective = _pair_objective(pairs, 40, mined_negatives=3)
    coder = RecordingCoder({"text": rows})
    values = np.random.default_rng(4).standard_normal((40, 64)).astype(np.float32)
    objective.begin_pass(np.random.default_rng(0), {"text": values})
    assert objective.mines
    objective.loss(coder, 0)
    asked = coder.asked[0][1]
    similar = np.array([own for own in pairs if own[2] == 1])
    group = connected_components(similar[:, 0], similar[:, 1], row_count=40)
    label = {(first, second): own for first, second, own in pairs}
    sides = list(zip(asked[: len(asked) // 2], asked[len(asked) // 2 :], strict=True))
    positive = [own for own in sides if label[own] == 1]
    codes = np.where(values > 0, 1, -1)
    for side in (0, 1):
        mined = np.array(coder.asked[1 + side][1]).reshape(len(positive), 3)
        for queries, own in zip(positive, mined.tolist(), strict=True):
            query = queries[side]
            others = [row for row in range(40) if group[row] != group[query]]
            nearest = sorted(others, key=lambda row, query=query: -float(values[query] @ codes[row]))[:3]
            assert sorted(own) == sorted(nearest)


def test_group_too_large_for_negatives_leaves_them_out() -> None:
    objective = _pair_objective([[i, i + 1, 1] for i in range(9)], 10, mined_negatives=4)
    values = np.random.default_rng(4).standard_normal((10, 64)).astype(np.float32)
    objective.begin_pass(np.random.default_rng(0), {"text": values})
    assert torch.isfinite(objective.loss(RecordingCoder({"text": _rows(10)}), 0))


@pytest.mark.parametrize("count", [64, 256])
def test_theta_of_equal_codes_is_the_same_for_any_count_of_bits(count: int) -> None:
    codes = torch.sign(torch.from_numpy(np.random.default_rng(0).standard_normal((1, count))))
    label = torch.ones(1, 1, dtype=codes.dtype)
    loss = label_likelihood(codes, codes, first=label, second=label, prefixes=(count,), same_rows=False)
    theta = torch.tensor(EQUAL_CODES_THETA, dtype=codes.dtype)
    assert loss.item() == pytest.approx((torch.nn.functional.softplus(theta) - theta).item(), rel=1e-6)


def test_rows_without_label_and_rows_themselves_count_in_no_pair() -> None:
    draw = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 64)))
    vectors = torch.tensor([[1, 0], [1, 1], [0, 0], [0, 1]], dtype=draw.dtype)
    found = label_likelihood(draw, draw, first=vectors, second=vectors, prefixes=(64,), same_rows=True)
    terms = []
    scale = (2 * EQUAL_CODES_THETA / 64) ** 0.5
    for i in range(4):
        for j in range(4):
            if i == j or 2 in (i, j):
                continue
            cosine = vectors[i] @ vectors[j] / vectors[i].norm() / vectors[j].norm()
            own = (scale * draw[i : i + 1], scale * draw[j : j + 1])
            terms.append(pairwise_likelihood(*own, similarity=cosine[None, None]).item())
    assert found.item() == pytest.approx(np.mean(terms), rel=1e-6)


def _label_objective(labelled: dict[str, NDArray[np.bool_]], *, size: int) -> tuple[Any, Any]:
    vectors = {
        modality: own[:, None] * np.eye(2, dtype=np.float32)[np.arange(own.size) % 2]
        for modality, own in labelled.items()
    }
    centres = {modality: np.ones((own.size, 64), dtype=np.float32) for modality, own in labelled.items()}
    objective = LabelObjective(
        vectors,
        centres=centres,
        weights=LabelLosses(likelihood=1.0, central=1.0),
        batches=_batches(size),
    )
    objective.begin_pass(np.random.default_rng(0), None)
    return objective, RecordingCoder({modality: _rows(own.size) for modality, own in labelled.items()})


def test_labelled_rows_are_each_asked_once_and_others_never() -> None:
    labelled = {"text": np.arange(50) % 5 > 0, "image": np.arange(7) > 3}  # fewer images than steps
    objective, coder = _label_objective(labelled, size=8)
    assert objective.step_count == 5
    for step in range(objective.step_count):
        assert torch.isfinite(objective.loss(coder, step))
    for modality, own in labelled.items():
        asked = [row for name, rows in coder.asked if name == modality for row in rows]
        assert sorted(asked) == np.flatnonzero(own).tolist()


@pytest.mark.parametrize("name", ["divergence", "distance", "margin", "info_nce", "lsh"])
def test_neighbour_losses_read_neighbours(name: str) -> None:
    rows = _rows(60)
    objective = NeighbourObjective(
        rows,
        "text",
        weights=NeighbourLosses(**{name: 1.0}),
        batches=_batches(32),
        rng=np.random.default_rng(0),
    )
    objective.begin_pass(np.random.default_rng(0), None)
    coder = RecordingCoder({"text": rows})
    nearest = np.argsort(-(rows @ rows.T), axis=1)[:, 1 : 1 + NEAREST_COUNT]
    assert objective.step_count == 30  # of two anchors and 15 near rows of each
    seen: set[int] = set()
    for step in range(objective.step_count):
        loss = objective.loss(coder, step)
        loss.backward()
        assert torch.isfinite(loss)
        asked = coder.asked[step][1]
        assert asked == sorted(set(asked))
        # Two of the rows are anchors, of which the others are near rows.
        reached = [np.isin(asked, nearest[row]) for row in asked]
        assert any((own | other).sum() >= len(asked) - 2 for own in reached for other in reached)
        seen.update(asked)
    assert seen == set(range(60))


def _match_loss(matches: Matches, rows: dict[str, NDArray[np.float32]]) -> tuple[float, Any]:
    objective = MatchObjective(
        {("text", "image"): matches},
        label_vectors={},
        weights=MatchLosses(info_nce=1.0, temperature=0.2),
        batches=_batches(100),
    )
    objective.begin_pass(np.random.default_rng(0), None)
    coder = RecordingCoder(rows)
    return objective.loss(coder, 0).item(), coder


def test_matches_of_one_item_are_no_negatives_of_each_other() -> None:
    # Items of two texts and two images each: four matches an item.
    sides = [(2 * item + i, 2 * item + j) for item in range(5) for i in (0, 1) for j in (0, 1)]
    matches = Matches(np.array(sides), np.repeat(np.arange(5), 4), np.ones(20, dtype=np.float32))
    found, coder = _match_loss(matches, {"text": _rows(10), "image": _rows(10, seed=1)})
    item = torch.tensor(coder.asked[0][1]) // 2
    assert (torch.tensor(coder.asked[1][1]) // 2 == item).all()
    (texts, text_codes), (images, image_codes) = coder.given
    same = item[:, None] == item[None, :]
    loss = nested(info_nce, (64,))
    expected = [
        loss(texts, image_codes, temperature=0.2, excluded=same).item(),
        loss(images, text_codes, temperature=0.2, excluded=same).item(),
    ]
    assert found == pytest.approx(np.mean(expected), rel=1e-5)
    assert found < loss(texts, image_codes, temperature=0.2).item()


def test_match_of_no_weight_changes_nothing_but_as_a_negative() -> None:
    rows = {"text": _rows(10), "image": _rows(10, seed=1)}
    sides = np.column_stack([np.arange(10), np.arange(10)])
    shares = np.ones(10, dtype=np.float32)
    shares[5:] = 0
    found, coder = _match_loss(Matches(sides, np.arange(10), shares), rows)
    (texts, text_codes), (images, image_codes) = coder.given
    weights = torch.from_numpy(shares[coder.asked[0][1]])
    expected = [
        info_nce(texts, image_codes, temperature=0.2, weights=weights).item(),
        info_nce(images, text_codes, temperature=0.2, weights=weights).item(),
    ]
    assert found == pytest.approx(np.mean(expected), rel=1e-5)
