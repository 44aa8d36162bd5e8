"""The command that shows categories and acknowledges their shifts."""

import json
from array import array
from pathlib import Path

import numpy as np
import pytest

from scripts.__main__ import main
from scripts.server_process import write_config
from service import registry
from service.accesses import BestDistances
from service.categories import create_category
from service.category_shift import CategoryShift
from service.config import ShiftConfig, load_config
from service.database import migrate, open_engine, reading, writing
from service.records import ModalitySpec
from service.shift_store import read_watched, write_shift

Output = pytest.CaptureFixture[str]


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A database whose cache "faq" has two categories, of which "moved" has an alarm."""
    path = write_config(tmp_path)
    engine = open_engine(load_config(path).store)
    migrate(engine)
    with writing(engine) as connection:
        spec = {"text": ModalitySpec(dim=8)}
        for name in ("faq", "empty"):
            registry.create_cache(
                connection, name, modalities=spec, code_bits=64, label_bits=64, description="", now_ms=0
            )
        strict = {"threshold": 0.05, "ttl_ms": 60_000, "max_entries": 7, "max_bytes": 9, "shadow": True}
        create_category(connection, "faq", "calm", own=strict, now_ms=0)
        moved = create_category(connection, "faq", "moved", own={}, now_ms=0)
    shift = CategoryShift("moved", ShiftConfig(reference_lookups=200))
    draw = np.random.default_rng(0)
    for distances in (draw.beta(2, 5, 200), draw.beta(2, 5, 200) + 0.4):
        best = BestDistances(own=array("f", distances))
        shift.observe(best, entry_count=0, threshold=0.1, large_count=1_000, now_ms=1_000)
    with writing(engine) as connection:
        watched = read_watched(connection, [moved.id])[moved.id]
        assert write_shift(connection, watched, shift.to_record(version=0), now_ms=2_000)
    engine.dispose()
    return str(path)


def test_categories_are_shown_with_policy_and_what_moved(config: str, capsys: Output) -> None:
    assert main(["categories", "--config", config, "--cache", "faq"]) == 0
    calm, moved, alarm = capsys.readouterr().out.splitlines()
    assert calm.startswith("calm ") and calm.endswith("shift: learning, 0 lookups")
    assert "threshold 0.05, lru, ttl 60 s absolute, at most 7 entries, at most 9 bytes, shadow" in calm
    assert "shift: alarm" in moved
    assert alarm.startswith(
        "  alarm of 1970-01-01T00:00:01Z, since about 1970-01-01T00:00:01Z: Category moved"
    )


def test_json_has_the_figures_of_an_alarm(config: str, capsys: Output) -> None:
    assert main(["categories", "--config", config, "--cache", "faq", "--json"]) == 0
    calm, moved = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (calm["shift"]["state"], calm["shift"]["alarm"]) == ("learning", None)
    assert (calm["policy"]["threshold"], calm["entries"]) == (0.05, 0)
    assert (moved["shift"]["state"], moved["shift"]["alarm"]["direction"]) == ("alarm", "farther")
    assert "farther" in moved["shift"]["explanation"]


def test_an_acknowledged_alarm_is_gone(config: str, capsys: Output) -> None:
    assert main(["categories", "--config", config, "--cache", "faq", "--acknowledge", "moved"]) == 0
    assert "alarm" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        ["--cache", "none"],
        ["--cache", "faq", "--acknowledge", "none"],
        ["--cache", "faq", "--acknowledge", ""],
    ],
)
def test_what_does_not_exist_is_said_and_nothing_changes(
    config: str, capsys: Output, wrong: list[str]
) -> None:
    assert main(["categories", "--config", config, *wrong]) == 1
    assert "does not exist" in capsys.readouterr().err
    engine = open_engine(load_config(Path(config)).store)
    with reading(engine) as connection:
        assert read_watched(connection, [1, 2])[2].version == 1
    engine.dispose()


def test_a_cache_without_categories_says_how_to_make_one(config: str, capsys: Output) -> None:
    assert main(["categories", "--config", config, "--cache", "empty"]) == 0
    assert "nearhit create empty --category NAME" in capsys.readouterr().out
