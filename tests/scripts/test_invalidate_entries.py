"""`nearhit invalidate`."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nearhit import Client
from numpy.typing import NDArray

from scripts.server_process import ServerProcess

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Answer = Callable[["subprocess.CompletedProcess[str]"], dict[str, Any]]


@pytest.fixture
def address(served: tuple[ServerProcess, str], embeddings: NDArray[np.float32], tmp_path: Path) -> str:
    """Of a server with entries e0 to e3, one of each cluster, of the model m."""
    _, address = served
    np.save(tmp_path / "q.npy", embeddings[:4])
    with Client(address) as client:
        client.create_cache("faq", dim=32, code_bits=64)
        client.create_category("faq", "billing")
        for i in range(4):
            client.store("faq", "billing", embedding=embeddings[i], entry=f"e{i}", response=b"", model="m")
    return address


def left(address: str) -> list[str]:
    """Ids of what is stored."""
    with Client(address) as client:
        return [entry.name[-2:] for entry in client.list_entries("faq")]


def test_what_is_near_is_counted_and_then_deleted(
    nearhit: Run, answer: Answer, address: str, tmp_path: Path
) -> None:
    asked = ["faq", "--near", str(tmp_path / "q.npy"), "--row", "2", "--radius", "0.01", "--model", "m"]
    asked += ["--created-before", "2100-01-01", "--address", address, "--json"]
    assert answer(nearhit("invalidate", *asked, "--dry-run")) == {"would_delete": 1}
    assert left(address) == ["e0", "e1", "e2", "e3"]
    assert answer(nearhit("invalidate", *asked))["deleted"] == 1
    assert left(address) == ["e0", "e1", "e3"]
    asked = ["faq", "--entry", "e0", "--entry", "e1", "--category", "billing", "--address", address]
    assert "2" in nearhit("invalidate", *asked).stdout
    assert left(address) == ["e3"]
    assert "deleted  0" in nearhit("invalidate", "faq", "--older-than", "60", "--address", address).stdout
    assert "no selector" in nearhit("invalidate", "faq", "--address", address, status=1).stderr


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        (["--radius", "0.1"], "--radius goes with", 1),
        (["--near-text", "x"], "--radius goes with", 1),
        (["--near", "absent.npy", "--radius", "0.1"], "absent.npy", 1),
        (["--near", "a.npy", "--near-text", "x", "--radius", "0.1"], "not allowed with", 2),
        (["--older-than", "0"], "not a number above 0", 2),
        (["--created-before", "yesterday"], "not a time", 2),
    ],
    ids=str,
)
def test_wrong_arguments_are_explained(nearhit: Run, arguments: list[str], words: str, status: int) -> None:
    assert words in nearhit("invalidate", "faq", *arguments, status=status).stderr
