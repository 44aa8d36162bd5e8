"""How encoders descend from each other, and the command that shows and changes which one serves."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scripts.arguments import CommandError
from scripts.list_encoders import descent, whole_id
from service.records import EncoderRecord

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def encoder(name: str, *, parent: str | None, create_ms: int) -> EncoderRecord:
    return EncoderRecord(
        encoder_id=name,
        state="retired",
        parent_id=parent,
        previous_id=None,
        watermark=create_ms,
        label_bits=64,
        class_count=2,
        untraced_row_count=0,
        metrics={},
        reason="",
        create_ms=create_ms,
    )


def shown(records: Sequence[EncoderRecord]) -> list[tuple[int, str]]:
    return [(depth, record.encoder_id) for depth, record in descent(records)]


def test_children_stand_under_their_parent_in_the_order_of_time() -> None:
    records = [
        encoder("grandchild", parent="child", create_ms=4),
        encoder("other", parent=None, create_ms=3),
        encoder("late", parent="root", create_ms=5),
        encoder("child", parent="root", create_ms=2),
        encoder("root", parent=None, create_ms=1),
        encoder("orphan", parent="gone", create_ms=0),
    ]
    assert shown(records) == [
        (0, "orphan"),
        (0, "root"),
        (1, "child"),
        (2, "grandchild"),
        (1, "late"),
        (0, "other"),
    ]


@given(st.lists(st.none() | st.integers(0, 20), max_size=20), st.randoms())
def test_each_encoder_is_shown_once_behind_its_parent(parents: list[int | None], random: Any) -> None:
    parents = [
        None if parent is None or parent >= number else parent for number, parent in enumerate(parents)
    ]
    records = [
        encoder(str(number), parent=None if parent is None else str(parent), create_ms=number)
        for number, parent in enumerate(parents)
    ]
    random.shuffle(records)
    place = {name: (position, depth) for position, (depth, name) in enumerate(shown(records))}
    assert len(place) == len(shown(records)) == len(parents)
    for number, parent in enumerate(parents):
        position, depth = place[str(number)]
        above = (-1, -1) if parent is None else place[str(parent)]
        assert position > above[0] and depth == above[1] + 1


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("abcd1", "abcd1234"),
        ("abcd2222", "abcd2222"),
        ("abcd222", "abcd222"),  # is one itself, and another begins so
        ("zzzz", "zzzz9999"),
        ("zzz", "zzz"),  # too short: no encoder's id
        ("0000", "0000"),
    ],
)
def test_an_encoder_is_meant_by_the_beginning_of_its_id(given: str, meant: str) -> None:
    assert whole_id(given, ["abcd1234", "abcd2222", "abcd222", "zzzz9999"]) == meant


def test_a_beginning_that_fits_two_encoders_names_both() -> None:
    with pytest.raises(CommandError, match="abcd1234 and abcd2222"):
        whole_id("abcd", ["abcd2222", "zzzz9999", "abcd1234"])


def test_encoders_are_listed_activated_and_rolled_back(
    nearhit: Run, embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    def listed(*change: str) -> list[dict[str, Any]]:
        lines = nearhit("encoders", "--cache", "faq", "--json", *change).stdout.splitlines()
        return [json.loads(line) for line in lines]

    np.save(tmp_path / "rows.npy", embeddings)
    nearhit("build", "--cache", "faq", "--input", str(tmp_path / "rows.npy"))
    assert "no encoder" in nearhit("encoders", "--cache", "faq").stdout
    nearhit("train", "--cache", "faq", "--activate")
    nearhit("train", "--cache", "faq", "--seed", "1")
    first, second = listed()
    assert (first["state"], second["state"]) == ("active", "candidate")
    assert (first["entries_after_seq"], first["entries_to_seq"]) == (0, 120)
    assert first["metrics"]["row_count"] == 120
    states = {found["encoder"]: found["state"] for found in listed("--activate", second["encoder"][:12])}
    assert states == {first["encoder"]: "retired", second["encoder"]: "active"}
    states = {found["encoder"]: found["state"] for found in listed("--rollback")}
    assert states == {first["encoder"]: "active", second["encoder"]: "retired"}
    assert (
        "no encoder to roll back to" in nearhit("encoders", "--cache", "faq", "--rollback", status=1).stderr
    )
    assert "does not exist" in nearhit("encoders", "--cache", "faq", "--activate", "0" * 32, status=1).stderr
    assert first["encoder"][:12] in nearhit("encoders", "--cache", "faq").stdout
