"""`nearhit train-verifier` from its files to a server that asks what it trained."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nearhit import Client
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray

from scripts import training_files
from scripts.__main__ import main
from scripts.arguments import CommandError
from scripts.pair_files import read_embedded_pairs, read_text_pairs
from scripts.server_process import ServerProcess, write_config
from service.config import load_config
from service.database import migrate, open_engine, writing
from service.embedder import Embedder
from service.records import ModalitySpec
from service.registry import create_cache

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Answer = Callable[["subprocess.CompletedProcess[str]"], dict[str, Any]]
Embeddings = NDArray[np.float32]
PAIRS = 120

# Stands in for the model: the vector of a text follows from it and has as many dimensions as asked for.
STAND_IN = """
import json, random, struct, sys

def write(content):
    sys.stdout.buffer.write(struct.pack("<I", len(content)) + content)
    sys.stdout.buffer.flush()

dim = int(sys.argv[1])
write(json.dumps({"embedder_id": "stand-in", "dim": dim}).encode())
while head := sys.stdin.buffer.read(4):
    texts = json.loads(sys.stdin.buffer.read(struct.unpack("<I", head)[0]))
    rows = [[random.Random(f"{text} {i}").gauss(0, 1) for i in range(dim)] for text in texts]
    write(struct.pack("<I", dim) + b"".join(struct.pack(f"<{dim}f", *row) for row in rows))
"""


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A .npz of pairs that are mostly the same where they are near."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((PAIRS, 32))
    noise = rng.uniform(0.1, 1.1, PAIRS)
    partners = rows + noise[:, None] * rng.standard_normal(rows.shape)
    numbers = np.arange(PAIRS)
    labelled = np.column_stack([numbers, numbers + PAIRS, rng.random(PAIRS) > noise])
    path = tmp_path / "pairs.npz"
    np.savez(path, embeddings=np.concatenate([rows, partners]), pairs=labelled)
    return path


@pytest.fixture
def trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command in this process on a store with the cache "faq"; its status and what it said."""
    config = write_config(tmp_path)
    engine = open_engine(load_config(config).store)
    migrate(engine)
    spaces = {"text": ModalitySpec(dim=32), "image": ModalitySpec(dim=16)}
    with writing(engine) as connection:
        create_cache(
            connection, "faq", modalities=spaces, code_bits=64, label_bits=64, description="", now_ms=1
        )
    engine.dispose()

    def run(path: Path, *options: str, cache: str = "faq") -> tuple[int, str]:
        status = main(
            ["train-verifier", "--config", str(config), "--cache", cache, "--pairs", str(path), *options]
        )
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def saved(path: Path, **arrays: Any) -> Path:
    """A .npz of these arrays."""
    np.savez(path, **arrays)
    return path


def test_running_server_asks_what_was_trained(
    served: tuple[ServerProcess, str], nearhit: Run, answer: Answer, pairs: Path
) -> None:
    server, address = served
    client: Client = server.client
    client.create_cache("faq", dim=32)
    done = answer(nearhit("train-verifier", "--cache", "faq", "--pairs", str(pairs), "--activate", "--json"))
    assert (done["state"], done["modality"], done["with_texts"]) == ("active", "text", False)
    asking = ("--category", "strict", "--threshold", "0.5", "--min-probability", "0.5")
    nearhit("create", "faq", *asking, "--address", address)
    stored = np.load(pairs)["embeddings"][0]
    client.store("faq", "strict", embedding=stored, response=b"yes")
    away = np.random.default_rng(1).standard_normal(32)
    near, far = (client.lookup("faq", "strict", embedding=stored + share * away) for share in (0.1, 0.8))
    assert (near.outcome, near.HasField("probability")) == (cache_pb.LOOKUP_OUTCOME_HIT, True)
    assert far.reason == cache_pb.LOOKUP_REASON_UNVERIFIED
    nearhit("check")


def test_same_file_and_seed_give_the_same_verifier(
    trained: Callable[..., tuple[int, str]], pairs: Path
) -> None:
    first, again = (json.loads(trained(pairs, "--json", *options)[1]) for options in ((), ("--activate",)))
    assert (first["state"], again["state"]) == ("candidate", "active")
    assert first["verifier"] == again["verifier"]


def test_texts_beside_the_file_are_learned_from(
    trained: Callable[..., tuple[int, str]], pairs: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("".join(f"question {number}\n" for number in range(2 * PAIRS)))
    status, printed = trained(pairs, "--json", "--texts", str(tmp_path / "texts.txt"))
    assert (status, json.loads(printed)["with_texts"]) == (0, True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embeddings": None}, "no .npz of embeddings and pairs"),
        ({"pairs": None}, "no .npz of embeddings and pairs"),
        ({"embeddings": np.eye(2 * PAIRS, 31)}, "the cache's are floats [n, 32]"),
        ({"embeddings": np.ones(32)}, "embeddings are float64[32]"),
        ({"embeddings": np.ones((2 * PAIRS, 32), dtype=np.int64)}, "embeddings are int64"),
        ({"embeddings": np.full((2 * PAIRS, 32), np.nan)}, "NaN or infinity"),
        ({"embeddings": np.zeros((2 * PAIRS, 32))}, "zero vector"),
        ({"pairs": [[0, 2 * PAIRS, 1]]}, f"refers to rows [0, {2 * PAIRS}], there are {2 * PAIRS}"),
        ({"pairs": [[0, 1, 1]]}, "one class only"),
        ({"text": ["one"]}, f"1 texts for {2 * PAIRS} rows"),
        ({"text": np.arange(2 * PAIRS)}, "text must be strings"),
    ],
)
def test_bad_pairs_are_refused(
    trained: Callable[..., tuple[int, str]], pairs: Path, changed: dict[str, Any], message: str
) -> None:
    arrays = dict(np.load(pairs)) | changed
    saved(pairs, **{name: array for name, array in arrays.items() if array is not None})
    status, printed = trained(pairs)
    assert status == 1 and message in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--modality", "sound"), "no modality 'sound'"),
        (("--modality", "image"), "the cache's are floats [n, 16]"),
        (("--texts", "absent.txt"), "absent.txt"),
        (("--seed", "-1"), "seed must be"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    trained: Callable[..., tuple[int, str]], pairs: Path, options: tuple[str, ...], message: str
) -> None:
    status, printed = trained(pairs, *options)
    assert status == 1 and message in printed


def test_files_and_caches_that_are_not_there_are_named(
    trained: Callable[..., tuple[int, str]], pairs: Path, tmp_path: Path
) -> None:
    assert "absent.npz" in trained(tmp_path / "absent.npz")[1]
    assert "caches/none does not exist" in trained(pairs, cache="none")[1]
    np.save(tmp_path / "rows.npy", np.eye(32))
    assert "no .npz" in trained(tmp_path / "rows.npy")[1]
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no archive")
    assert "no .npz" in trained(tmp_path / "bad.npz")[1]


def test_texts_without_an_embedder_are_refused(
    trained: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"a": "x", "b": "y", "label": 1}\n')
    assert "no [embedder] model is configured" in trained(path)[1]
    assert "--texts goes with a .npz" in trained(path, "--texts", str(path))[1]
    assert "give a .npz" in trained(path, "--modality", "image")[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no pairs"),
        ("{", "line 1: is not JSON"),
        ('{"a": "x", "b": "y", "label": 1}\n[]', "line 2: needs a, b, label"),
        ('{"a": "x", "b": "y"}', "line 1: needs a, b, label"),
        ('{"a": "x", "b": " ", "label": 1}', "a and b must be texts"),
        ('{"a": "x", "b": 3, "label": 1}', "a and b must be texts"),
        ('{"a": "x", "b": "y", "label": 2}', "label must be 1 (same) or 0"),
        ('{"a": "x", "b": "y", "label": "1"}', "label must be 1 (same) or 0"),
        ('{"a": "x", "b": "y", "label": [1]}', "label must be 1 (same) or 0"),
        ('{"a": "\xff", "b": "y", "label": 1}'.encode("latin-1"), "codec can't decode"),
    ],
)
def test_bad_line_of_texts_is_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CommandError) as raised:
        read_text_pairs(path)
    assert message in str(raised.value) and str(path) in str(raised.value)


def test_texts_are_rows_once_each(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [("x", "y", 1), ("y", "z", 0), ("z", "x", False), ("é", "x", True)]
    path.write_text(
        "\n\n".join(json.dumps(dict(zip(("a", "b", "label"), line, strict=True))) for line in lines)
    )
    found = read_text_pairs(path)
    assert found.texts == ["x", "y", "z", "é"]
    assert found.pairs.tolist() == [[0, 1, 1], [1, 2, 0], [2, 0, 0], [3, 0, 1]]


def test_archive_is_read_as_it_is(pairs: Path) -> None:
    found = read_embedded_pairs(pairs)
    assert (found.embeddings.shape, found.pairs.shape, found.texts) == ((2 * PAIRS, 32), (PAIRS, 3), None)
    texts = [f"question {number}" for number in range(2 * PAIRS)]
    assert read_embedded_pairs(saved(pairs, **dict(np.load(pairs)), text=texts)).texts == texts


@pytest.mark.parametrize(
    ("dim", "status", "message"), [(32, 0, '"with_texts": true'), (16, 1, "the embedding has 16 dimensions")]
)
def test_texts_are_embedded_by_the_configured_model(
    trained: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    dim: int,
    status: int,
    message: str,
) -> None:
    command = (sys.executable, "-c", STAND_IN, str(dim))
    monkeypatch.setattr(training_files, "Embedder", partial(Embedder, command=command))
    monkeypatch.setenv("NEARHIT_EMBEDDER_MODEL", "minilm")
    monkeypatch.setenv("NEARHIT_EMBEDDER_MAX_TEXTS", "50")
    lines = [(f"where is {i}?", f"where can I find {i}?", 1) for i in range(60)]
    lines += [(f"cancel {i}", f"how tall is tower {i}?", 0) for i in range(60)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"a": a, "b": b, "label": label}) for a, b, label in lines))
    found, printed = trained(path, "--json")
    assert (found, message in printed) == (status, True)
