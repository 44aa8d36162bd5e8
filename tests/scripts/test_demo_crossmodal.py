"""What the demonstration of two modalities stores and refuses."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scripts.demo_crossmodal import STORED_IMAGES, load_digits

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_digits_are_unit_rows_of_every_class_stored_or_not() -> None:
    pytest.importorskip("sklearn", reason="needs the extra demo")
    digits = load_digits()
    assert digits.images.shape == (1797, 64) and digits.pixels.shape == (1797, 8, 8)
    np.testing.assert_allclose(np.linalg.norm(digits.images, axis=1), 1, atol=1e-6)
    for part in (slice(None, STORED_IMAGES), slice(STORED_IMAGES, None)):
        assert set(digits.labels[part]) == set(range(10))


def test_folder_of_something_else_is_left_alone(nearhit: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept.txt").write_text("kept")
    done = nearhit("demo-crossmodal", "--dir", str(tmp_path / "mine"), status=1)
    assert "holds something else than a demo" in done.stderr
    assert (tmp_path / "mine" / "kept.txt").read_text() == "kept"
