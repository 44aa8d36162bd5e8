"""Every command through its own door."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nearhit.client import store_request
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1.admin_service_pb2 import CreateCacheRequest
from numpy.typing import NDArray

from scripts.__main__ import COMMANDS
from scripts.server_process import ServerProcess
from service.config import load_config

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Answer = Callable[["subprocess.CompletedProcess[str]"], dict[str, Any]]
Served = tuple[ServerProcess, str]


def write_rows(path: Path, embeddings: NDArray[np.float32], *, labelled: bool = False) -> Path:
    """Rows as .jsonl, with the cluster as label where asked for."""
    with path.open("w") as file:
        for number, embedding in enumerate(embeddings):
            row: dict[str, Any] = {
                "id": f"q{number}",
                "embedding": embedding.tolist(),
                "response": f"r{number}",
            }
            if labelled:
                row["labels"] = [f"cluster{number % 4}"]
            file.write(json.dumps(row) + "\n")
    return path


def test_help_names_every_command(nearhit: Run) -> None:
    printed = nearhit("--help").stdout
    assert [name for name in COMMANDS if name not in printed] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(nearhit: Run, command: str) -> None:
    assert "usage: nearhit " + command in nearhit(command, "--help", fresh=True).stdout


def test_printed_configuration_is_read_back(nearhit: Run, tmp_path: Path) -> None:
    printed = nearhit("serve", "--print-config").stdout
    (tmp_path / "again.toml").write_text(printed)
    assert load_config(tmp_path / "again.toml", environment={}).store.data_dir == str(tmp_path)


def test_unreadable_configuration_is_named(nearhit: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[server\n")
    done = nearhit("migrate", "--config", str(tmp_path / "bad.toml"), status=1)
    assert "bad.toml: is not TOML" in done.stderr


def test_serve_without_schema_says_migrate(nearhit: Run) -> None:
    assert "run `nearhit migrate`" in nearhit("serve", status=1).stderr


def test_create_store_lookup_search(served: Served, nearhit: Run, answer: Answer, tmp_path: Path) -> None:
    _, address = served
    np.save(tmp_path / "q.npy", np.eye(8, dtype=np.float32))
    question = ("--embedding", str(tmp_path / "q.npy"), "--address", address, "--json")
    nearhit("create", "faq", "--dim", "8", "--category", "billing", "--ttl", "60", "--address", address)
    nearhit("store", "faq", "billing", *question, "--response", "yes", "--entry", "e1", "--label", "x")
    hit = answer(nearhit("lookup", "faq", "billing", *question))
    assert (hit["outcome"], hit["response"], hit["entry"]) == ("hit", "yes", "caches/faq/entries/e1")
    miss = answer(nearhit("lookup", "faq", "billing", *question, "--row", "1", status=3))
    assert (miss["outcome"], miss["reason"], miss["distance"]) == ("miss", "beyond_threshold", 1.0)
    found = answer(nearhit("search", "faq", *question))
    assert [(row["entry"], row["labels"]) for row in found["results"]] == [("e1", ["x"])]


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (("--min-recall", "1.5"), "INVALID_ARGUMENT: min_recall must be in [0, 1], is 1.5"),
        (("--path", "ivf"), "FAILED_PRECONDITION: ivf is not available: rows have no codes"),
    ],
)
def test_search_that_cannot_be_is_refused_by_the_server(
    served: Served, nearhit: Run, tmp_path: Path, asked: tuple[str, str], error: str
) -> None:
    server, address = served
    client = server.client
    client.create_cache("faq", dim=8)
    client.create_category("faq", "billing")
    client.store("faq", "billing", embedding=np.eye(8)[0], response=b"yes")
    np.save(tmp_path / "q.npy", np.eye(8, dtype=np.float32))
    question = ("--embedding", str(tmp_path / "q.npy"), "--address", address)
    assert error in nearhit("search", "faq", *question, *asked, status=1).stderr


def test_refused_call_is_told_with_its_status(served: Served, nearhit: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", np.eye(8, dtype=np.float32))
    done = nearhit(
        "lookup", "no", "such", "--embedding", str(tmp_path / "q.npy"), "--address", served[1], status=1
    )
    assert "NOT_FOUND: caches/no does not exist" in done.stderr


def test_build_is_opened_by_the_running_server(
    served: Served, nearhit: Run, answer: Answer, embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    server, address = served
    rows = write_rows(tmp_path / "rows.jsonl", embeddings)
    built = answer(nearhit("build", "--cache", "faq", "--input", str(rows), "--train", "--json"))
    assert (built["rows"], built["rows_loaded"], built["rows_coded"]) == (120, 120, 120)
    np.save(tmp_path / "q.npy", embeddings[7])
    for _ in range(200):
        found = answer(
            nearhit("search", "faq", "--embedding", str(tmp_path / "q.npy"), "--address", address, "--json")
        )
        if found["path"] == "scan":
            break
    assert found["results"][0]["entry"] == "q7"
    assert server.client.search("faq", embedding=embeddings[7]).generation == built["generation"]


def test_interrupted_load_goes_on_where_it_was(
    nearhit: Run, answer: Answer, embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    nearhit("build", "--cache", "faq", "--input", str(write_rows(tmp_path / "some.jsonl", embeddings[:50])))
    rows = write_rows(tmp_path / "all.jsonl", embeddings)
    again = answer(nearhit("build", "--cache", "faq", "--input", str(rows), "--json"))
    assert (again["rows_loaded"], again["rows"]) == (70, 120)
    nearhit("check")


def test_train_update_and_worker_learn_labels(
    nearhit: Run, answer: Answer, embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    first = write_rows(tmp_path / "first.jsonl", embeddings[:60])
    nearhit("build", "--cache", "faq", "--input", str(first))
    trained = answer(nearhit("train", "--cache", "faq", "--activate", "--json"))
    assert (trained["state"], trained["label_bits"]) == ("active", 0)
    assert answer(nearhit("update", "--cache", "faq", "--json", status=3))["encoder_id"] is None
    labelled = write_rows(tmp_path / "labelled.jsonl", embeddings, labelled=True)
    nearhit("build", "--cache", "faq", "--input", str(labelled))
    updated = answer(nearhit("update", "--cache", "faq", "--json"))
    assert updated["accepted"]
    assert sorted(updated["new_labels"]) == [f"cluster{number}" for number in range(4)]
    assert updated["stored_bits_changed"] == 0
    nearhit("worker", "--once")
    nearhit("check")


def write_pairs(path: Path, embeddings: NDArray[np.float32]) -> Path:
    """Pairs of neighbours in a chain within each cluster, and of rows of different clusters."""
    rows = np.arange(len(embeddings) - 4)
    similar = np.column_stack([rows, rows + 4, np.ones_like(rows)])[rows % 20 < 16]
    other = np.column_stack([rows, rows + 1, np.zeros_like(rows)])[rows % 20 < 19]
    np.savez(path, embeddings=embeddings, pairs=np.concatenate([similar, other]))
    return path


def test_train_on_pairs_makes_codes_for_what_is_stored(
    nearhit: Run, answer: Answer, embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", embeddings)
    nearhit("build", "--cache", "faq", "--input", str(rows))
    pairs = write_pairs(tmp_path / "pairs.npz", embeddings)
    trained = answer(nearhit("train", "--cache", "faq", "--pairs", str(pairs), "--activate", "--json"))
    assert (trained["state"], trained["label_bits"]) == ("active", 0)
    assert trained["validation_auc_256"] > 0.5
    again = answer(nearhit("train", "--cache", "faq", "--pairs", str(pairs), "--json"))
    assert again["encoder"] == trained["encoder"]
    built = answer(nearhit("build", "--cache", "faq", "--json"))
    assert (built["rows"], built["rows_coded"]) == (120, 120)
    nearhit("check")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"embeddings": np.eye(40, 32)}, "no .npz of embeddings and pairs"),
        ({"embeddings": np.eye(40, 31) + 0.1, "pairs": [[0, 1, 1]]}, "the cache's are [n, 32]"),
        ({"embeddings": np.eye(40, 32) + 0.1, "pairs": [[0, 40, 1]]}, "refers to rows [0, 40], there are 40"),
        ({"embeddings": np.eye(40, 32) + 0.1, "pairs": [[0, 1, 1]]}, "one class only"),
        ({"embeddings": np.full((40, 32), np.nan), "pairs": [[0, 1, 1]]}, "row 0: the embedding holds NaN"),
        ({"embeddings": np.eye(40, 32), "pairs": [[0, 1, 1]]}, "row 32: the embedding is a zero vector"),
    ],
)
def test_bad_pairs_are_refused(
    nearhit: Run, embeddings: NDArray[np.float32], tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", embeddings)
    nearhit("build", "--cache", "faq", "--input", str(rows))
    np.savez(tmp_path / "pairs.npz", **arrays)
    refused = nearhit("train", "--cache", "faq", "--pairs", str(tmp_path / "pairs.npz"), status=1)
    assert message in refused.stderr


def test_check_names_what_is_broken(nearhit: Run, embeddings: NDArray[np.float32], tmp_path: Path) -> None:
    nearhit("build", "--cache", "faq", "--input", str(write_rows(tmp_path / "rows.jsonl", embeddings)))
    (segment,) = (tmp_path / "index").rglob("*.segment")
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    assert segment.name in nearhit("check", status=1).stdout


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.txt", "", "not one of .npy, .npz, .jsonl, .parquet"),
        ("rows.jsonl", "", "no rows"),
        ("rows.jsonl", "{", "line 1 is not JSON"),
        ("rows.jsonl", "[]", "line 1 is not an object"),
        ("rows.jsonl", '{"text": "a"}', "no `embedding`"),
        ("rows.jsonl", '{"embedding": [1, 2]}\n{"embedding": [1]}', "no embeddings of one length"),
        (
            "rows.jsonl",
            '{"embedding": [1, 2]}\n{"embedding": [0, 0]}',
            "row 1: the embedding is a zero vector",
        ),
        ("rows.jsonl", '{"embedding": [1, NaN]}', "row 0: the embedding holds NaN or infinity"),
        ("rows.jsonl", '{"embedding": [1, 2], "id": "a/b"}', "id: 'a/b' is not an id"),
        ("rows.npy", "no array", "rows.npy"),
    ],
)
def test_bad_file_is_refused_with_its_place(
    nearhit: Run, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    done = nearhit("build", "--cache", "faq", "--input", str(tmp_path / name), status=1)
    assert message in done.stderr


def test_parquet_npz_and_npy_give_the_same_rows(
    nearhit: Run, answer: Answer, embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs the extra train")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"question {number}" for number in range(len(embeddings))]
    parquet.write_table(
        arrow.table({"embedding": embeddings.tolist(), "text": texts}), tmp_path / "rows.parquet"
    )
    np.savez(tmp_path / "rows.npz", embeddings=embeddings, text=texts)
    np.save(tmp_path / "rows.npy", embeddings)
    (tmp_path / "rows.txt").write_text("\n".join(texts))
    for name in ("rows.parquet", "rows.npz", "rows.npy"):
        extra = ("--texts", str(tmp_path / "rows.txt")) if name == "rows.npy" else ()
        cache = name.replace(".", "-")
        nearhit("build", "--cache", cache, "--input", str(tmp_path / name), *extra)
        done = answer(nearhit("check", "--cache", cache, "--json"))
        assert (done["entry_count"], done["problems"]) == (120, [])


def test_crossmodal_encoder_is_trained_and_searched_from_the_command_line(
    nearhit: Run, answer: Answer, config_path: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    classes = np.arange(120) % 3
    views = {
        modality: rng.standard_normal((3, dim))[classes] + 0.3 * rng.standard_normal((120, dim))
        for modality, dim in (("image", 12), ("text", 8))
    }
    nearhit("migrate")
    with ServerProcess(config_path, address=load_config(config_path).server.address) as server:
        client = server.client
        modalities = [pb.Modality(modality=name, dim=rows.shape[1]) for name, rows in views.items()]
        cache = pb.Cache(modalities=modalities, code_bits=64, label_bits=64)
        client.call(client.admin.CreateCache, CreateCacheRequest(cache_id="shop", cache=cache))
        client.create_category("shop", "all")
        for modality, rows in views.items():
            requests = [
                store_request(
                    "shop", "all", embedding=row, modality=modality, response=b"", labels=[f"c{number}"]
                )
                for row, number in zip(rows, classes, strict=True)
            ]
            client.batch_store("shop", requests)
        trained = answer(nearhit("train", "--cache", "shop", "--crossmodal", "--activate", "--json"))
        assert trained["map_image_to_text"] > 0.8 and trained["classes"] == 3
        nearhit("build", "--cache", "shop")
        np.save(tmp_path / "query.npy", views["image"].astype(np.float32))

        def labels_found(row: int) -> set[tuple[str, ...]]:
            done = nearhit(
                *("search", "shop", "--address", load_config(config_path).server.address, "--json"),
                *("--embedding", str(tmp_path / "query.npy"), "--row", str(row)),
                *("--modality", "image", "--target-modality", "text", "--top-k", "3"),
            )
            return {tuple(found["labels"]) for found in answer(done)["results"]}

        # A server opens what was built within a second.
        assert any(labels_found(0) for _ in range(20))
        for row in range(3):
            assert labels_found(row) == {(f"c{row}",)}
