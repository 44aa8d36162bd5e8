"""The cross-modal benchmark on a small folder of the form that it reads."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scripts.arguments import CommandError
from scripts.bench.crossmodal import load_crossmodal
from scripts.bench.crossmodal_rivals import RIVALS

Run = Callable[..., "subprocess.CompletedProcess[str]"]
CLASSES = 3
METHODS = {"label_codes", "label_codes_asymmetric", "function_codes", "function_codes_asymmetric", *RIVALS}


def arrays_of(*, train: int = 150, test: int = 45) -> dict[str, np.ndarray]:
    """Histograms of two modalities around a profile for each class."""
    arrays = {}
    for part, count, seed in (("train", train, 0), ("test", test, 1)):
        rng = np.random.default_rng(seed)
        labels = np.arange(count) % CLASSES
        arrays[f"label_{part}"] = labels
        for modality, dim in (("image", 12), ("text", 6)):
            profile = np.random.default_rng(dim).dirichlet(np.ones(dim), CLASSES)
            drawn = [rng.dirichlet(0.5 + 20 * profile[label]) for label in labels]
            arrays[f"{modality}_{part}"] = np.array(drawn, dtype=np.float32)
    return arrays


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("rows")
    np.savez(path / "small_crossmodal.npz", **arrays_of())
    return path


def test_quick_run_prints_every_method_beside_a_rival(nearhit: Run, folder: Path) -> None:
    done = nearhit("bench", "crossmodal", "--data", str(folder), "--quick", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {(line["method"], line["metric"]): line for line in lines}
    for metric in ("map_image_to_text", "map_text_to_image"):
        for method in METHODS:
            line = found[method, metric]
            assert 0.3 < line["value"] <= 1 and line["bits"] == 64 and line["seeds"] == 1
            assert (line["bench"], line["dataset"], line["n"]) == ("crossmodal", "small_crossmodal", 150)
        ours = found["label_codes_asymmetric", metric]
        assert ours["value"] > 0.7
        assert ours["ratio"] == pytest.approx(ours["value"] / ours["rival_value"])
        assert ours["rival"] in RIVALS
        assert found["function_codes_new_rows", metric]["rival"].endswith("_functions_new_rows")


def test_labels_may_be_a_matrix(tmp_path: Path) -> None:
    arrays = arrays_of()
    for part in ("train", "test"):
        arrays[f"label_{part}"] = np.eye(CLASSES, dtype=np.int64)[arrays[f"label_{part}"]]
    np.savez(tmp_path / "wiki_crossmodal.npz", **arrays)
    data = load_crossmodal(tmp_path)
    assert data.train_labels.shape == (150, CLASSES) and data.test_labels.sum() == 45


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("text_test"), "text_test"),
        (lambda arrays: arrays.update(image_train=arrays["image_train"][:-1]), "image_train is"),
        (lambda arrays: arrays.update(text_test=arrays["text_test"][:, :-1]), "text_test is"),
        (lambda arrays: arrays["text_train"].fill(np.nan), "no finite float"),
        (lambda arrays: arrays.update(label_test=arrays["label_test"][:, None]), "labels are"),
    ],
)
def test_folder_that_does_not_fit_is_named(tmp_path: Path, change: Callable, message: str) -> None:
    arrays = arrays_of()
    change(arrays)
    np.savez(tmp_path / "wiki_crossmodal.npz", **arrays)
    with pytest.raises(CommandError, match=message):
        load_crossmodal(tmp_path)


def test_folder_without_rows_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="holds 0"):
        load_crossmodal(tmp_path)


@pytest.mark.parametrize("name", RIVALS)
def test_rerun_codes_rows_alike_stored_and_from_features(name: str) -> None:
    arrays = arrays_of()
    views = arrays["image_train"].astype(np.float64), arrays["text_train"].astype(np.float64)
    rival = RIVALS[name](*views, np.eye(CLASSES)[arrays["label_train"]], bits=16, seed=0)
    for place, view in enumerate(views):
        coded = np.where(rival.encode[place](view) > 0, 1, -1)
        assert coded.shape == rival.stored[place].shape == (150, 16)
        assert set(np.unique(rival.stored[place])) <= {-1.0, 1.0}
        assert (coded == rival.stored[place]).mean() > 0.7
