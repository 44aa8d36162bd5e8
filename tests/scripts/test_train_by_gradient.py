"""`nearhit train` by gradient: what works as a person runs it, what is refused through `main`."""

import json
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scripts.__main__ import main
from service.config import load_config
from service.database import open_engine, writing
from service.forgetting import ForgetSelection, forget_rows
from service.records import ModalitySpec
from service.registry import create_cache

pytest.importorskip("torch", reason="torch is not installed")

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Answer = Callable[["subprocess.CompletedProcess[str]"], dict[str, Any]]
Rows = NDArray[np.float32]

QUICK = "[tower]\nhidden_width = 8\n[optimiser]\nepochs = 2\nbatch_size = 32\n"


@pytest.fixture
def quick(tmp_path: Path) -> Callable[[str], str]:
    """Writes a training configuration of some losses, small and quick, and returns its path."""

    def write(losses: str) -> str:
        (tmp_path / "mine.toml").write_text(losses + QUICK)
        return str(tmp_path / "mine.toml")

    return write


@pytest.fixture
def empty_cache(config_path: Path) -> Callable[..., None]:
    """Creates a cache of these modalities and dimensions, 64 bits."""

    def create(**dims: int) -> None:
        assert main(["migrate", "--config", str(config_path)]) == 0
        with writing(open_engine(load_config(config_path).store)) as connection:
            create_cache(
                connection,
                "art",
                modalities={name: ModalitySpec(dim=dim, embedder_id="") for name, dim in dims.items()},
                code_bits=64,
                label_bits=64,
                description="",
                now_ms=0,
            )

    return create


def _write_rows(path: Path, embeddings: Rows, *, labelled: bool = True) -> Path:
    """Rows of four clusters in turn as .jsonl, with the cluster as label."""
    with path.open("w") as file:
        for number, embedding in enumerate(embeddings):
            row: dict[str, Any] = {"id": f"q{number}", "embedding": embedding.tolist(), "response": "r"}
            if labelled:
                row["labels"] = [f"cluster{number % 4}"]
            file.write(json.dumps(row) + "\n")
    return path


def test_labelled_preset_learns_from_the_store(
    nearhit: Run, answer: Answer, embeddings: Rows, tmp_path: Path
) -> None:
    rows = _write_rows(tmp_path / "rows.jsonl", embeddings)
    nearhit("build", "--cache", "faq", "--input", str(rows))
    trained = answer(nearhit("train", "--cache", "faq", "--preset", "labelled", "--activate", "--json"))
    assert (trained["state"], trained["classes"], trained["label_bits"]) == ("active", 4, 64)
    assert trained["validation_map_text"] > 0.5
    assert trained["row_count"] == 120
    assert trained["labelled_row_count"] < 120  # of those, none that updates are judged on
    built = answer(nearhit("build", "--cache", "faq", "--json"))
    assert (built["rows"], built["rows_coded"]) == (120, 120)
    nearhit("check")


def test_a_training_that_read_a_forgotten_row_is_not_kept(
    config_path: Path,
    quick: Any,
    embeddings: Rows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = _write_rows(tmp_path / "rows.jsonl", embeddings, labelled=False)
    given = ["--config", str(config_path), "--cache", "faq"]
    assert main(["build", *given, "--code-bits", "64", "--input", str(rows)]) == 0
    engine = open_engine(load_config(config_path).store)

    def train_meanwhile(*arguments: Any, **named: Any) -> Any:
        forget_rows(engine, "faq", ForgetSelection(names=("q7",)), clock=lambda: 1)
        return train(*arguments, **named)

    from hashing.deep.training import train

    monkeypatch.setattr("hashing.deep.training.train", train_meanwhile)
    capsys.readouterr()
    assert main(["train", *given, "--training", quick("[losses.neighbours]\ndistance = 1.0\n")]) == 1
    assert "1 rows were forgotten" in capsys.readouterr().err
    assert main(["encoders", *given, "--json"]) == 0
    assert capsys.readouterr().out == ""


def test_rows_of_a_file_with_a_matrix_of_labels(
    nearhit: Run, answer: Answer, empty_cache: Any, quick: Any, embeddings: Rows, tmp_path: Path
) -> None:
    empty_cache(text=32)
    labels = np.eye(4, dtype=np.uint8)[np.arange(120) % 4] | np.eye(4, dtype=np.uint8)[0]
    labels[:20] = 0
    np.savez(tmp_path / "rows.npz", embeddings=embeddings, labels=labels, label_names=list("abcd"))
    done = nearhit(
        *("train", "--cache", "art", "--data", str(tmp_path / "rows.npz"), "--json"),
        *("--training", quick("[losses.labels]\nlikelihood = 1.0\n"), "--seed", "3"),
    )
    trained = answer(done)
    assert (trained["state"], trained["code_bits"], trained["classes"]) == ("candidate", 64, 4)
    assert (trained["row_count"], trained["labelled_row_count"]) == (120, 100)
    assert "20 of 120 rows (text) have no label" in done.stderr


def test_two_modalities_are_matched_by_id(
    nearhit: Run, answer: Answer, empty_cache: Any, embeddings: Rows, tmp_path: Path
) -> None:
    empty_cache(text=32, image=16)
    order = np.random.default_rng(0).permutation(120)
    _write_rows(tmp_path / "text.jsonl", embeddings, labelled=False)
    ids = np.array([f"q{number}" for number in order])
    np.savez(tmp_path / "image.npz", embeddings=embeddings[order, :16][:100], id=ids[:100])
    trained = answer(
        nearhit(
            *("train", "--cache", "art", "--preset", "semi-paired", "--json"),
            *("--data", f"text={tmp_path / 'text.jsonl'}", "--data", f"image={tmp_path / 'image.npz'}"),
        )
    )
    # Partners in the same place would be chance: 10 of some 50 rows.
    assert trained["validation_recall_image_to_text"] > 0.4
    assert trained["validation_recall_text_to_image"] > 0.4
    assert trained["row_count"] == 120


def test_pairs_by_id_of_the_rows_of_a_file(
    nearhit: Run, answer: Answer, empty_cache: Any, quick: Any, embeddings: Rows, tmp_path: Path
) -> None:
    empty_cache(text=32)
    _write_rows(tmp_path / "rows.jsonl", embeddings, labelled=False)
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for row in range(0, 120, 8):
            for first, second, similar in ((0, 4, 1), (1, 5, 1), (2, 3, 0), (6, 7, 0)):
                pair = {"a": f"q{row + first}", "b": f"q{row + second}", "label": similar}
                file.write(json.dumps(pair) + "\n")
    given = ("train", "--cache", "art", "--training", quick("[losses.pairs]\nlogistic = 1.0\n"), "--json")
    pairs = ("--pairs", str(tmp_path / "pairs.jsonl"))
    trained = answer(nearhit(*given, *pairs, "--data", str(tmp_path / "rows.jsonl")))
    assert trained["pair_count"] == 60
    refused = nearhit(*given, *pairs, status=1)
    assert "no [embedder] model is configured" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_training_goes_on_from_its_checkpoint(
    config_path: Path,
    empty_cache: Any,
    quick: Any,
    embeddings: Rows,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty_cache(text=32)
    np.save(tmp_path / "rows.npy", embeddings)
    given = ["train", "--config", str(config_path), "--cache", "art", "--json"]
    given += ["--training", quick("[losses.neighbours]\ndistance = 1.0\n")]
    given += ["--data", str(tmp_path / "rows.npy"), "--checkpoint", str(tmp_path / "state.pt")]
    capsys.readouterr()
    printed = []
    for _ in range(2):
        assert main(given) == 0
        printed.append(json.loads(capsys.readouterr().out))
        assert (tmp_path / "state.pt").is_file()
    assert printed[0]["encoder"] == printed[1]["encoder"]
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:999])
    assert main(given) == 1
    assert "state.pt cannot be read" in capsys.readouterr().err


def test_shown_preset_is_a_training_configuration(nearhit: Run) -> None:
    assert tomllib.loads(nearhit("train", "--preset", "labelled", "--show").stdout)["losses"]["labels"]
    assert tomllib.loads(nearhit("train", "--show").stdout)["losses"]["pairs"]


def test_unknown_preset_is_told(nearhit: Run) -> None:
    refused = nearhit("train", "--show", "--preset", "dpsh", status=1)
    assert refused.stderr.startswith("nearhit train: preset must be one of crossmodal-labelled, ")


CROSSMODAL = ("--cache", "art", "--preset", "crossmodal-paired")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "name the cache with --cache"),
        (("--cache", "art", "--preset", "dpsh"), "preset must be one of crossmodal-labelled, "),
        ((*CROSSMODAL, "--crossmodal"), "--crossmodal is no training by gradient"),
        (("--cache", "art", "--preset", "pairs", "--training", "{mine}"), "not both"),
        (("--cache", "art", "--training", "{no_toml}"), "no.toml: "),
        (("--cache", "art", "--training", "{absent}"), "absent.toml"),
        (("--cache", "art", "--training", "{wrong}"), "optimiser.epochs must be an integer in 1..1000"),
        (("--cache", "art", "--preset", "unlabelled"), "text: training needs at least 2 rows, got 0"),
        (("--cache", "art", "--preset", "labelled", "--data", "{rows}"), "losses.labels must be 0, as what"),
        (("--cache", "art", "--preset", "unlabelled", "--data", "{narrow}"), "[120, 31], the cache's are"),
        (("--cache", "art", "--preset", "unlabelled", "--data", "audio={rows}"), "no modality 'audio'"),
        (
            ("--cache", "art", "--preset", "unlabelled", "--data", "{rows}", "--data", "text={rows}"),
            "--data names modality 'text' twice",
        ),
        (
            ("--cache", "art", "--preset", "unlabelled", "--data", "{rows}", "--views", "16,x"),
            "whole numbers",
        ),
        (
            ("--cache", "art", "--preset", "multi-view", "--data", "{rows}", "--views", "16,15"),
            "views of 16, 15 columns do not make up 32",
        ),
        (("--cache", "art", "--views", "16,16"), "--views goes with --preset"),
        (
            ("--cache", "art", "--data", "{rows}", "--preset", "unlabelled", "--device", "abacus"),
            "device must",
        ),
        (("--cache", "art", "--pairs", "{pairs}"), "pairs alone; name the file of their rows with --data"),
        (
            (*CROSSMODAL, "--data", "text={rows}", "--data", "image={short}"),
            "unequal length (text 120, image 100) need an `id` a row",
        ),
    ],
)
def test_what_cannot_be_trained_is_told(
    config_path: Path,
    empty_cache: Any,
    embeddings: Rows,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: tuple[str, ...],
    message: str,
) -> None:
    empty_cache(text=32, image=32)
    (tmp_path / "mine.toml").write_text("[losses.pairs]\nlogistic = 1.0\n")
    (tmp_path / "no.toml").write_text("[losses\n")
    (tmp_path / "wrong.toml").write_text("[losses.pairs]\nlogistic = 1.0\n[optimiser]\nepochs = 0\n")
    np.save(tmp_path / "rows.npy", embeddings)
    np.save(tmp_path / "short.npy", embeddings[:100])
    np.save(tmp_path / "narrow.npy", embeddings[:, :31])
    np.save(tmp_path / "pairs.npy", np.array([[0, 1, 1]]))
    names = {own.stem: own for own in tmp_path.iterdir()}
    names |= {"no_toml": tmp_path / "no.toml", "absent": tmp_path / "absent.toml"}
    named = [part.format(**names) for part in given]
    assert main(["train", "--config", str(config_path), *named]) == 1
    assert message in capsys.readouterr().err


def test_one_class_is_refused_only_where_a_loss_reads_it(
    config_path: Path,
    empty_cache: Any,
    quick: Any,
    embeddings: Rows,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty_cache(text=32)
    np.savez(tmp_path / "rows.npz", embeddings=embeddings, labels=["only"] * 120)
    given = ["train", "--config", str(config_path), "--cache", "art", "--json"]
    given += ["--data", str(tmp_path / "rows.npz")]
    assert main([*given, "--preset", "labelled"]) == 1
    assert "one class only" in capsys.readouterr().err
    assert main([*given, "--training", quick("[losses.neighbours]\ndistance = 1.0\n")]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == 0
