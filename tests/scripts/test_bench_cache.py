"""The stream benchmark: replays against a naive count, rules at their edges, the command on made-up data."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scripts.arguments import CommandError
from scripts.bench.cache import wilson
from scripts.bench.cache_replay import Shortlist, replay
from scripts.bench.cache_rules import StaticThreshold, VCacheRule, VerifiedRule
from scripts.bench.cache_streams import (
    Stream,
    intent_stream,
    question_stream,
    read_question_pairs,
    stream_rows,
)
from service.promise import REQUESTS, Target

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rows of norm 1."""
    found: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return found


def topics(count: int, *, seed: int = 0, dim: int = 24, topic_count: int = 15) -> Stream:
    """Requests around a few topics, each with an answer."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((topic_count, dim))
    answers = rng.integers(topic_count, size=count)
    vectors = unit(centres[answers] + 0.9 * rng.standard_normal((count, dim)))
    return Stream(name="topics", vectors=vectors, answers=answers.astype(np.int64))


def naive_counts(stream: Stream, order: NDArray[np.int64], distance: float) -> tuple[int, int]:
    """Right and wrong hits of a static threshold, one comparison at a time."""
    stored: list[int] = []
    right = wrong = 0
    for request in order.tolist():
        distances = [1 - float(stream.vectors[row] @ stream.vectors[request]) for row in stored]
        nearest = int(np.argmin(distances)) if stored else -1
        if stored and distances[nearest] <= distance:
            is_right = stream.answers[stored[nearest]] == stream.answers[request]
            right, wrong = right + bool(is_right), wrong + (not is_right)
        else:
            stored.append(request)
    return right, wrong


@pytest.mark.parametrize("distance", [0.05, 0.2, 0.4])
def test_replay_of_a_threshold_counts_as_a_naive_loop_does(distance: float) -> None:
    stream = topics(250)
    order = stream.order(3)
    replayed = replay(stream, order, StaticThreshold(distance))
    assert (replayed.right_count, replayed.wrong_count) == naive_counts(stream, order, distance)
    assert replayed.unknown_count == 0
    assert replayed.hit_rate == pytest.approx((replayed.right_count + replayed.wrong_count) / 250)


def test_hits_that_nobody_judged_are_neither_right_nor_wrong() -> None:
    vectors = unit(np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]]))
    stream = Stream(
        name="pairs", vectors=vectors, answers=np.arange(4, dtype=np.int64), rejected=frozenset({(0, 1)})
    )
    replayed = replay(stream, np.arange(4), StaticThreshold(0.1))
    assert (replayed.right_count, replayed.wrong_count, replayed.unknown_count) == (0, 1, 1)
    assert replayed.wrong_share == 1.0


def test_a_promise_is_kept_and_serves_more_than_nothing() -> None:
    stream = topics(3_000, seed=1)
    target = Target(wrong_share=0.03, basis=REQUESTS)
    rule = VerifiedRule(stream, target, seed=0)
    replayed = replay(stream, stream.order(0), rule)
    assert replayed.wrong_rate <= 0.03
    assert replayed.hit_rate > 0.3
    assert rule.explored_count > 0


def test_an_entry_that_was_never_wrong_is_trusted_by_the_rival_in_time() -> None:
    stream = topics(4, topic_count=1)
    rule = VCacheRule(0.2, seed=0)
    near = Shortlist(request=0, distances=np.array([0.02]), entries=np.array([1]))
    assert rule.serve(near) is None
    for _ in range(400):
        rule.learn(near, stream)
    assert sum(rule.serve(near) == 1 for _ in range(100)) > 50


@given(st.integers(0, 200), st.integers(1, 200))
def test_an_interval_holds_its_share(count: int, total: int) -> None:
    count = min(count, total)
    low, high = wilson(count, total)
    assert 0 <= low <= count / total + 1e-12 and count / total - 1e-12 <= high <= 1


def test_streams_of_a_folder(tmp_path: Path) -> None:
    write_data(tmp_path)
    intents = intent_stream(tmp_path, quick=False)
    assert len(intents.vectors) == 300
    alone = [i for i in range(300) if list(intents.answers).count(intents.answers[i]) == 1]
    assert alone  # what is out of scope fits nothing
    questions = read_question_pairs(tmp_path)
    rows = stream_rows(questions, quick=True)
    stream = question_stream(questions, None, rows)
    kept = set(questions.parts[rows].tolist())
    assert not kept & set(questions.parts[np.setdiff1d(np.arange(len(questions.parts)), rows)].tolist())
    assert stream.is_right(0, 0) is True


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"intents\.npz"):
        intent_stream(tmp_path, quick=True)
    (tmp_path / "question_pairs.npz").write_bytes(b"no archive")
    with pytest.raises(CommandError, match=r"question_pairs\.npz"):
        read_question_pairs(tmp_path)


def test_the_command_prints_figures_of_every_method(nearhit: Run, tmp_path: Path) -> None:
    write_data(tmp_path)
    done = nearhit(
        "bench", "cache", "--data", str(tmp_path), "--quick", "--json", "--stream", "intents", "--door"
    )
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    assert {figure["method"] for figure in figures} == {
        "static",
        "redisvl",
        "gptcache",
        "vcache",
        "verified",
        "verified_door",
    }
    assert {"hit_rate", "wrong_rate", "promise_kept"} <= {figure["metric"] for figure in figures}
    assert all(figure["dataset"] == "intents" and figure["bench"] == "cache" for figure in figures)


def write_data(folder: Path) -> None:
    """Small files of the form that the benchmark reads."""
    rng = np.random.default_rng(0)
    stream = topics(600)
    names = np.array([f"intent {answer}" for answer in stream.answers])
    names[::20] = "oos"
    np.savez(folder / "intents.npz", embeddings=stream.vectors, intent=names)
    first = np.arange(0, 600, 2)
    pairs = np.column_stack([first, first + 1, rng.integers(2, size=300)])
    np.savez(folder / "question_pairs.npz", embeddings=stream.vectors, pairs=pairs.astype(np.int32))
