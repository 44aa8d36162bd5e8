"""Files to train on: what they mean, and what is refused with its place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scripts.arguments import CommandError
from scripts.training_files import (
    TrainingRows,
    embed_texts,
    item_numbers,
    read_pairs,
    read_rows,
)
from service.config import EmbedderConfig

NO_EMBEDDER = EmbedderConfig()
ROWS = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def _npz(folder: Path, name: str = "rows.npz", **arrays: Any) -> Path:
    np.savez(folder / name, **arrays)
    return folder / name


def _jsonl(folder: Path, records: list[Any], name: str = "rows.jsonl") -> Path:
    (folder / name).write_text("\n".join(json.dumps(record) for record in records))
    return folder / name


def _records(**columns: list[Any]) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = [{"embedding": row.tolist()} for row in ROWS]
    for name, values in columns.items():
        for record, value in zip(records, values, strict=True):
            if value is not ...:
                record[name] = value
    return records


def _parquet(folder: Path, **columns: list[Any]) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="needs the extra train")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = folder / "rows.parquet"
    parquet.write_table(arrow.table({"embedding": ROWS.tolist(), **columns}), path)
    return path


def test_rows_are_brought_to_length_1(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", 3 * ROWS.astype(np.float64))
    rows = read_rows(tmp_path / "rows.npy")
    assert rows.embeddings.dtype == np.float32
    np.testing.assert_allclose(rows.embeddings, ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True), rtol=1e-5)
    assert (rows.ids, rows.labels, rows.texts) == (None, None, None)


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float32, np.int64])
def test_matrix_of_labels_is_read_by_the_names_of_its_columns(tmp_path: Path, dtype: type) -> None:
    matrix = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 0]], dtype=dtype)
    path = _npz(tmp_path, embeddings=ROWS, labels=matrix, label_names=["sky", "sea", "sun"])
    expected = [("sky", "sun"), (), ("sea",), ("sky", "sea", "sun"), ("sun",), ("sky",)]
    assert read_rows(path).labels == expected
    numbered = [tuple(str(["sky", "sea", "sun"].index(name)) for name in own) for own in expected]
    assert read_rows(_npz(tmp_path, "numbered.npz", embeddings=ROWS, labels=matrix)).labels == numbered


@pytest.mark.parametrize(
    ("matrix", "names", "message"),
    [
        (np.full((6, 2), 2), ["a", "b"], "a matrix of labels must hold 0 and 1 only"),
        (np.full((6, 2), 0.5), ["a", "b"], "a matrix of labels must hold 0 and 1 only"),
        (np.full((6, 2), "a"), ["a", "b"], "a matrix of labels must hold 0 and 1 only"),
        (np.eye(6, 2), ["a", "b", "c"], "3 label_names for 2 columns of labels"),
        (np.eye(5, 2), ["a", "b"], "5 values of labels for 6 embeddings"),
    ],
)
def test_matrix_of_labels_that_is_none_is_refused(
    tmp_path: Path, matrix: NDArray[Any], names: list[str], message: str
) -> None:
    path = _npz(tmp_path, embeddings=ROWS, labels=matrix, label_names=names)
    with pytest.raises(CommandError, match=message):
        read_rows(path)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 2, 0, 1, 2], [("0",), ("1",), ("2",), ("0",), ("1",), ("2",)]),
        (["a", "b", "", "a b", "ü", "b"], [("a",), ("b",), (), ("a b",), ("ü",), ("b",)]),
    ],
    ids=["integers", "strings"],
)
@pytest.mark.parametrize("kind", ["npz", "jsonl", "parquet"])
def test_one_label_a_row_is_read(
    tmp_path: Path, labels: list[Any], expected: list[tuple[str, ...]], kind: str
) -> None:
    if kind == "npz":
        path = _npz(tmp_path, embeddings=ROWS, labels=labels)
    elif kind == "jsonl":
        path = _jsonl(tmp_path, _records(labels=labels))
    else:
        path = _parquet(tmp_path, labels=labels)
    assert read_rows(path).labels == expected


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_lists_of_labels_are_read(tmp_path: Path, kind: str) -> None:
    labels: list[Any] = [["a", "b"], [], None, ["c"], ["b"], ["a"]]
    path = _jsonl(tmp_path, _records(labels=labels)) if kind == "jsonl" else _parquet(tmp_path, labels=labels)
    assert read_rows(path).labels == [("a", "b"), (), (), ("c",), ("b",), ("a",)]


def test_parquet_gives_ids_labels_and_texts(tmp_path: Path) -> None:
    texts = [f"text {row}" for row in range(6)]
    rows = read_rows(_parquet(tmp_path, id=list(range(6)), labels=[[1]] * 6, text=texts))
    assert rows.ids == [str(row) for row in range(6)]
    assert rows.labels == [("1",)] * 6
    assert rows.texts == texts


def test_row_without_label_or_id_among_others_has_none(tmp_path: Path) -> None:
    records = _records(id=["a", ..., "c", "d", None, "f"], labels=[..., "x", "y", ..., "x", "y"])
    rows = read_rows(_jsonl(tmp_path, records))
    assert rows.ids == ["a", None, "c", "d", None, "f"]
    assert rows.labels == [(), ("x",), ("y",), (), ("x",), ("y",)]


def test_texts_come_from_a_file_beside(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    (tmp_path / "texts.txt").write_text("\n".join("abcdef"))
    assert read_rows(tmp_path / "rows.npy", texts=tmp_path / "texts.txt").texts == list("abcdef")
    (tmp_path / "texts.txt").write_text("a\nb")
    with pytest.raises(CommandError, match="2 values of text for 6 embeddings"):
        read_rows(tmp_path / "rows.npy", texts=tmp_path / "texts.txt")


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN or infinity"), (0, "zero vector")])
def test_row_that_is_no_direction_is_named(tmp_path: Path, value: float, message: str) -> None:
    spoilt = ROWS.copy()
    spoilt[4] = value
    np.save(tmp_path / "rows.npy", spoilt)
    with pytest.raises(CommandError, match=rf"rows\.npy: row 4: .*{message}"):
        read_rows(tmp_path / "rows.npy")


@pytest.mark.parametrize("keep", [10, 100, -30])
def test_truncated_archive_is_refused(tmp_path: Path, keep: int) -> None:
    path = _npz(tmp_path, embeddings=ROWS, pairs=[[0, 1, 1]])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CommandError, match=r"rows\.npz"):
        read_rows(path)
    with pytest.raises(CommandError, match=r"rows\.npz: no \.npz of embeddings and pairs, nor \.npy"):
        read_pairs(path, rows=None, embedder=NO_EMBEDDER)


def _rows(**columns: Any) -> TrainingRows:
    return TrainingRows(**{"embeddings": ROWS, "ids": None, "labels": None, "texts": None, **columns})


def test_rows_with_equal_ids_are_of_one_item() -> None:
    text = _rows(ids=["a", "b", "b", None, "c", "d"])
    image = _rows(embeddings=ROWS[:4], ids=["d", "x", "b", None])
    items = item_numbers({"text": text, "image": image})
    assert (items["text"].dtype, items["image"].dtype) == (np.int64, np.int64)
    same = items["text"][:, None] == items["image"][None, :]
    assert np.argwhere(same).tolist() == [[1, 2], [2, 2], [5, 0]]
    assert items["text"][1] == items["text"][2]
    assert len(np.unique(items["text"])) == 5


def test_rows_without_ids_are_of_one_item_by_their_place() -> None:
    items = item_numbers({"text": _rows(ids=list("abcdef")), "image": _rows()})
    assert items["text"].tolist() == items["image"].tolist() == list(range(6))


def test_files_of_unequal_length_need_ids() -> None:
    with pytest.raises(CommandError, match=r"unequal length \(text 6, image 5\) need an `id` a row"):
        item_numbers({"text": _rows(ids=list("abcdef")), "image": _rows(embeddings=ROWS[:5])})


PAIRS = np.array([[0, 1, 1], [4, 2, 0]], dtype=np.int32)


def test_pairs_bring_their_rows_or_refer_to_those_given(tmp_path: Path) -> None:
    own = read_pairs(_npz(tmp_path, embeddings=ROWS[::-1], pairs=PAIRS), rows=None, embedder=NO_EMBEDDER)
    np.testing.assert_array_equal(own.pairs, PAIRS)
    assert own.pairs.dtype == np.int64
    np.testing.assert_allclose(np.linalg.norm(own.rows.embeddings, axis=1), 1, rtol=1e-5)
    np.save(tmp_path / "pairs.npy", PAIRS)
    rows = _rows()
    for name in ("pairs.npy", "rows.npz"):
        found = read_pairs(tmp_path / name, rows=rows, embedder=NO_EMBEDDER)
        assert found.rows is rows
        np.testing.assert_array_equal(found.pairs, PAIRS)


@pytest.mark.parametrize("name", ["pairs.npy", "pairs.npz"])
def test_pairs_alone_need_rows(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "pairs.npy", PAIRS)
    _npz(tmp_path, "pairs.npz", pairs=PAIRS)
    with pytest.raises(CommandError, match="pairs alone; name the file of their rows with --data"):
        read_pairs(tmp_path / name, rows=None, embedder=NO_EMBEDDER)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"embeddings": ROWS}, r"no \.npz of embeddings and pairs"),
        ({"embeddings": ROWS, "pairs": PAIRS / 2}, r"pairs must be integers .*float64\[2, 3\]"),
        ({"embeddings": ROWS, "pairs": PAIRS[:, :2]}, r"pairs must be integers .*int32\[2, 2\]"),
        ({"embeddings": ROWS[0], "pairs": PAIRS}, r"embeddings must be floats \[n, dim\]"),
        ({"embeddings": PAIRS, "pairs": PAIRS}, r"embeddings must be floats \[n, dim\]"),
        ({"embeddings": ROWS * np.inf, "pairs": PAIRS}, "row 0: the embedding holds NaN or infinity"),
        ({"embeddings": ROWS * np.float32(0), "pairs": PAIRS}, "row 0: the embedding is a zero vector"),
        ({"embeddings": np.array([None]), "pairs": PAIRS}, "allow_pickle"),
    ],
)
def test_arrays_that_are_no_pairs_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = _npz(tmp_path, **arrays)
    with pytest.raises(CommandError, match=message):
        read_pairs(path, rows=None, embedder=NO_EMBEDDER)


def _named(tmp_path: Path, *pairs: tuple[Any, Any, Any]) -> Path:
    records = [{"a": first, "b": second, "label": label} for first, second, label in pairs]
    return _jsonl(tmp_path, records, "pairs.jsonl")


def test_pairs_refer_to_rows_by_id(tmp_path: Path) -> None:
    path = _named(tmp_path, ("q3", "q0", 1), ("q1", "q2", 0), ("q5", "q4", True))
    rows = _rows(ids=[f"q{row}" for row in range(6)])
    found = read_pairs(path, rows=rows, embedder=NO_EMBEDDER)
    assert found.pairs.tolist() == [[3, 0, 1], [1, 2, 0], [5, 4, 1]]
    assert found.rows is rows


def test_pairs_refer_to_rows_without_ids_by_number(tmp_path: Path) -> None:
    path = _named(tmp_path, (3, "0", 1), (1, 2, 0))
    assert read_pairs(path, rows=_rows(), embedder=NO_EMBEDDER).pairs.tolist() == [[3, 0, 1], [1, 2, 0]]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("q0", "q1", 1), ("q0", "q9", 1)], "line 2: refers to row 'q9', which there is not"),
        ([("q0", "twice", 0)], "line 1: refers to row 'twice', which there is 2 times"),
        ([("None", "q0", 0)], "line 1: refers to row 'None', which there is not"),
        ([("q0", "q1", 2)], "line 1: label must be 1 .same. or 0, not 2"),
        ([("q0", "q1", "yes")], "line 1: label must be 1 .same. or 0, not 'yes'"),
        ([], "no pairs"),
    ],
)
def test_pair_that_names_no_row_is_told(tmp_path: Path, pairs: list[Any], message: str) -> None:
    rows = _rows(ids=["q0", "q1", "q2", "twice", "twice", None])
    with pytest.raises(CommandError, match=message):
        read_pairs(_named(tmp_path, *pairs), rows=rows, embedder=NO_EMBEDDER)


def test_line_separator_within_a_text_ends_no_line(tmp_path: Path) -> None:
    pairs = (
        '{"a": "one\u2028more", "b": "q1", "label": 1}\r\n{"a": "q1", "b": "one\u2028more", "label": 0}\r\n'
    )
    (tmp_path / "pairs.jsonl").write_text(pairs, encoding="utf-8", newline="")
    rows = _rows(ids=["q1", "one\u2028more", "c", "d", "e", "f"])
    found = read_pairs(tmp_path / "pairs.jsonl", rows=rows, embedder=NO_EMBEDDER)
    assert found.pairs.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_pair_of_null_is_told(tmp_path: Path) -> None:
    rows = _rows(ids=["None", "q1", "c", "d", "e", "f"])
    with pytest.raises(CommandError, match="line 2: a and b must name rows or be texts, not null"):
        read_pairs(_named(tmp_path, ("None", "q1", 1), (None, "q1", 1)), rows=rows, embedder=NO_EMBEDDER)


@pytest.mark.parametrize("line", ["{", "[]", '{"a": "q0", "label": 1}', "1"])
def test_line_that_is_no_pair_is_told(tmp_path: Path, line: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(f'{{"a": "q0", "b": "q1", "label": 1}}\n\n{line}\n')
    with pytest.raises(CommandError, match=r"line 3: (is not JSON|needs a, b, label)"):
        read_pairs(tmp_path / "pairs.jsonl", rows=_rows(ids=list("abcdef")), embedder=NO_EMBEDDER)


@pytest.mark.parametrize("name", ["no.npz", "no.npy", "no.jsonl"])
def test_file_that_there_is_not_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CommandError, match=name):
        read_pairs(tmp_path / name, rows=None, embedder=NO_EMBEDDER)


def test_texts_without_an_embedder_say_what_to_set() -> None:
    with pytest.raises(CommandError, match=r"no \[embedder\] model is configured"):
        embed_texts(["one", "two"], embedder=NO_EMBEDDER)
