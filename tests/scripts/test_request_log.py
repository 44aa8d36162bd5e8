"""Logs of requests: what is read of them, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.arguments import CommandError
from scripts.request_log import ONE_CATEGORY, RequestLog, read_log
from service.config import EmbedderConfig

LINE = {"time": 5, "category": "a", "embedding": [3.0, 4.0], "response": "x"}


def read(path: Path) -> RequestLog:
    """Read without an embedder."""
    return read_log(path, embedder=EmbedderConfig())


def written(folder: Path, *lines: Any) -> Path:
    """A .jsonl of these lines."""
    path = folder / "log.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def archived(folder: Path, **arrays: Any) -> Path:
    """An .npz of these arrays."""
    path = folder / "log.npz"
    np.savez(path, **arrays)
    return path


def test_lines_are_read_in_the_order_of_their_time(tmp_path: Path) -> None:
    other = {"category": "b", "response": "y", "cost": 2, "load": 0.5, "scope": "s", "text": "why"}
    log = read(
        written(tmp_path, LINE, "", {**other, "time": 2.25, "embedding": [0, -2]}, {**LINE, "time": 5})
    )
    assert log.times_ms.tolist() == [1, 2751, 2751]
    np.testing.assert_allclose(log.embeddings, [[0, -1], [0.6, 0.8], [0.6, 0.8]], rtol=1e-6)
    assert (log.categories, log.responses) == (["b", "a", "a"], [b"y", b"x", b"x"])
    assert (log.scopes, log.texts) == (["s", "", ""], ["why", "", ""])
    assert (log.costs.tolist(), log.loads.tolist()) == ([2, 0, 0], [0.5, 0, 0])


def test_an_archive_is_read(tmp_path: Path) -> None:
    arrays = {"embeddings": np.eye(3, dtype=np.float16), "responses": np.array([7, 8, 7])}
    log = read(archived(tmp_path, **arrays))
    assert (log.responses, log.categories) == ([b"7", b"8", b"7"], [ONE_CATEGORY] * 3)
    assert (log.times_ms.tolist(), log.costs.tolist(), log.loads.tolist()) == ([1] * 3, [0] * 3, [0] * 3)
    log = read(
        archived(
            tmp_path,
            **arrays,
            times=np.array([9.0, 8.0, 7.5]),
            categories=np.array(["p", "q", "r"]),
            costs=np.array([1, 2, 3]),
            loads=np.array([0.0, 0.5, 1.0]),
        )
    )
    assert (log.categories, log.times_ms.tolist()) == (["r", "q", "p"], [1, 501, 1501])
    assert (log.costs.tolist(), log.loads.tolist()) == ([3, 2, 1], [1, 0.5, 0])
    assert log.embeddings[0].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 3 is not JSON"),
        ("[1]", "line 3 is not an object"),
        ({**LINE, "colour": "red"}, "line 3: 'colour' is no field of a request; time,"),
        ({**LINE, "embedding": [1.0]}, "line 3: the embedding has 1 dimensions, the first one 2"),
        ({**LINE, "embedding": []}, "line 3: the embedding must be a list of numbers"),
        ({**LINE, "embedding": [1, "2"]}, "line 3: the embedding must be a list of numbers"),
        ({**LINE, "embedding": [1, True]}, "line 3: the embedding must be a list of numbers"),
        ('{"time": 1, "category": "a", "embedding": [1, NaN], "response": ""}', "line 3: .*NaN or infinity"),
        ({**LINE, "embedding": [1e300, 1]}, "line 3: .*NaN or infinity"),
        ({**LINE, "embedding": [0, 0.0]}, "line 3: .*zero vector"),
        ({**LINE, "embedding": None}, "line 3: neither an embedding nor a text"),
        ({**LINE, "embedding": None, "text": "t"}, "line 3 and .*line 1: one has an embedding"),
        ({**LINE, "time": None}, "line 3: time must be a number, is null"),
        ({**LINE, "time": "now"}, 'line 3: time must be a number, is "now"'),
        ({**LINE, "time": 1e30}, r"line 3: time must be in \[-1e\+12"),
        ({**LINE, "category": ""}, "line 3: the category is empty"),
        ({**LINE, "category": 3}, "line 3: category must be a string, is 3"),
        ({**LINE, "response": None}, "line 3: response must be a string, is null"),
        ({**LINE, "load": 1.5}, r"line 3: load must be in \[0, 1\], is 1.5"),
        ({**LINE, "cost": -1}, r"line 3: cost must be in \[0, inf\], is -1"),
        ({**LINE, "cost": float("inf")}, "line 3: cost must be in"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, words: str) -> None:
    with pytest.raises(CommandError, match=words):
        read(written(tmp_path, LINE, "", line))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"embeddings": None}, "no array 'embeddings'"),
        ({"responses": None}, "no array 'responses'"),
        ({"colours": np.zeros(2)}, "'colours' is no array of a log"),
        ({"embeddings": np.zeros(2)}, r"embeddings must be floats \[n, dim\], are float64\[2\]"),
        ({"embeddings": np.eye(2, dtype=int)}, "embeddings must be floats"),
        ({"embeddings": np.zeros((0, 2)), "responses": np.zeros(0)}, "0 requests"),
        ({"embeddings": np.array([[1.0, 0], [0, np.nan]])}, "row 1: .*NaN or infinity"),
        ({"embeddings": np.array([[1.0, 0], [0, 0]])}, "row 1: .*zero vector"),
        ({"responses": np.zeros(3)}, r"responses are \[3\] for 2 embeddings"),
        ({"loads": np.array([0.5, 2.0])}, r"row 1: loads must be in \[0, 1\], is 2.0"),
        ({"costs": np.array([0.5, np.nan])}, "row 1: costs must be in"),
        ({"times": np.array(["a", "b"])}, "times must be numbers"),
    ],
)
def test_a_bad_array_is_named(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    arrays = {"embeddings": np.eye(2), "responses": np.array([1, 2]), **changed}
    with pytest.raises(CommandError, match=words):
        read(archived(tmp_path, **{name: array for name, array in arrays.items() if array is not None}))


def test_files_that_are_no_logs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no such file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(CommandError, match=r"neither \.jsonl nor \.npz"):
        read(tmp_path / "log.csv")
    with pytest.raises(CommandError, match="no requests"):
        read(written(tmp_path, ""))
    with pytest.raises(CommandError, match=r"no \[embedder\] model"):
        read(written(tmp_path, {**LINE, "embedding": None, "text": "why"}))
    cut = tmp_path / "cut.npz"
    cut.write_bytes(archived(tmp_path, embeddings=np.eye(2), responses=np.arange(2)).read_bytes()[:100])
    with pytest.raises(CommandError, match=r"cut\.npz"):
        read(cut)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(CommandError, match=r"bytes\.jsonl"):
        read(tmp_path / "bytes.jsonl")
