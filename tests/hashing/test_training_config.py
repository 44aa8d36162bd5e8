"""Settings of a training by gradient: what is refused and how it is named, the presets, overrides."""

import tomllib
from dataclasses import asdict
from typing import Any

import pytest

from hashing import ConfigError
from hashing.deep.config import (
    LabelLosses,
    Losses,
    MatchLosses,
    NeighbourLosses,
    OptimiserConfig,
    PairLosses,
    TowerConfig,
    TrainingConfig,
    ValueLosses,
    parse_config,
    preset_names,
    read_preset,
)

PAIRS = "[losses.pairs]\nlogistic = 1.0\n"
PRESETS = {
    "crossmodal-labelled",
    "crossmodal-paired",
    "labelled",
    "multi-view",
    "pairs",
    "semi-paired",
    "unlabelled",
}


def _top_level(**settings: Any) -> TrainingConfig:
    return TrainingConfig(losses=Losses(pairs=PairLosses(logistic=1.0)), **settings)


NAN, INFINITE = float("nan"), float("inf")
OUT_OF_RANGE = {
    ("", _top_level): [
        ("code_bits", 100),
        ("code_bits", 1088),
        ("label_bits", 0),
        ("label_bits", 64.0),
        ("validation_share", 0.0),
        ("validation_share", 0.5),
        ("validation_share", NAN),
        ("seed", -1),
        ("seed", 0.5),
    ],
    ("tower.", TowerConfig): [
        ("kind", "conv"),
        ("binarizer", "sign"),
        ("hidden_width", 0),
        ("hidden_width", 8193),
        ("hidden_width", 64.0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("input_dropout", NAN),
        ("threshold", 1),
    ],
    ("losses.pairs.", PairLosses): [
        ("logistic", -1.0),
        ("info_nce", INFINITE),
        ("snr", "0.1"),
        ("temperature", 0.0),
        ("mined_negatives", -1),
        ("mined_negatives", 65),
        ("mined_negatives", 3),  # without InfoNCE, which reads them
        ("closure", "yes"),
    ],
    ("losses.labels.", LabelLosses): [("likelihood", -0.1), ("central", NAN)],
    ("losses.neighbours.", NeighbourLosses): [
        ("distance", -1.0),
        ("margin", None),
        ("info_nce", INFINITE),
        ("lsh", True),
        ("temperature", -0.1),
    ],
    ("losses.matches.", MatchLosses): [
        ("info_nce", -1.0),
        ("likelihood", NAN),
        ("temperature", 0),
        ("reconstruct", -0.1),
        ("reconstruct", 1.5),
    ],
    ("losses.values.", ValueLosses): [
        ("quantisation", -0.5),
        ("bit_balance", INFINITE),
        ("decorrelation", "1"),
    ],
    ("optimiser.", OptimiserConfig): [
        ("batch_size", 1),
        ("batch_size", 65_537),
        ("epochs", 0),
        ("epochs", 1001),
        ("patience", True),
        ("learning_rate", 0.0),
        ("weight_decay", -1e-3),
        ("warmup_share", 1.0),
        ("averaging", 1.0),
        ("mixed_precision", 0),
    ],
}


@pytest.mark.parametrize(
    ("table", "kind", "name", "value"),
    [(table, kind, *case) for (table, kind), cases in OUT_OF_RANGE.items() for case in cases],
)
def test_value_out_of_range_is_refused_by_its_key(table: str, kind: Any, name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**{name: value})
    assert caught.value.key == table + name
    assert caught.value.value is value


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (PAIRS + "[tower]\nwidth = 3\n", "tower.width"),
        (PAIRS + "[losses.triplets]\nmargin = 1.0\n", "losses.triplets"),
        (PAIRS + "[losses.labels]\ncentre = 1.0\n", "losses.labels.centre"),
        (PAIRS + "[losses.labels.central]\nweight = 1.0\n", "losses.labels.central"),
        (PAIRS + "[optimizer]\nepochs = 3\n", "optimizer"),
        ("bits = 64\n" + PAIRS, "bits"),
        ("tower = 3\n" + PAIRS, "tower"),
        ("losses = []\n", "losses"),
        ("losses.pairs = 1.0\n", "losses.pairs"),
        (PAIRS + "[optimiser]\nepochs = 2.5\n", "optimiser.epochs"),
        (PAIRS + "temperature = inf\n", "losses.pairs.temperature"),
    ],
)
def test_key_that_there_is_not_or_of_a_wrong_type_is_named(text: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert caught.value.key == key


@pytest.mark.parametrize(
    "text",
    ["", "[losses]\n", "[losses.pairs]\nlogistic = 0\n", "[losses.values]\nquantisation = 1.0\n"],
)
def test_training_without_a_loss_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert caught.value.key == "losses"


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ("pairs", "logistic"),
        ("pairs", "info_nce"),
        ("pairs", "snr"),
        ("labels", "likelihood"),
        ("labels", "central"),
        ("neighbours", "distance"),
        ("neighbours", "margin"),
        ("neighbours", "info_nce"),
        ("neighbours", "lsh"),
        ("matches", "info_nce"),
        ("matches", "likelihood"),
    ],
)
def test_any_loss_alone_is_accepted(table: str, name: str) -> None:
    losses = parse_config(f"[losses.{table}]\n{name} = 0.5\n").losses
    assert getattr(getattr(losses, table), name) == 0.5
    assert [own for own in ("pairs", "labels", "neighbours", "matches") if getattr(losses, f"of_{own}")] == [
        table
    ]


def test_text_that_is_no_toml_is_a_value_error() -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        parse_config("[losses\n")


def test_overrides_win_over_the_text() -> None:
    config = parse_config("code_bits = 64\nseed = 3\n" + PAIRS, code_bits=128, label_bits=192)
    assert (config.code_bits, config.label_bits, config.seed) == (128, 192, 3)


def test_override_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="code_bits"):
        parse_config(PAIRS, code_bits=65)


def test_presets_are_those_installed() -> None:
    assert set(preset_names()) >= PRESETS
    assert list(preset_names()) == sorted(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_says_what_it_sets(name: str) -> None:
    text = read_preset(name)
    config = asdict(parse_config(text))

    def check(written: dict[str, Any], read: dict[str, Any]) -> None:
        for key, value in written.items():
            if isinstance(value, dict):
                check(value, read[key])
            else:
                assert read[key] == value

    check(tomllib.loads(text), config)
    assert text.startswith("# ")


def test_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"one of .*labelled, .*pairs.*got 'dpsh'"):
        read_preset("dpsh")
