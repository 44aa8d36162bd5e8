import pytest

from hashing import ConfigError
from hashing.deep.config import PairConfig


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tower", "conv"),
        ("binarizer", "sign"),
        ("code_bits", 100),
        ("code_bits", 1088),
        ("hidden_width", 0),
        ("hidden_width", 64.0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("input_dropout", float("nan")),
        ("logistic_weight", -1.0),
        ("info_nce_weight", float("inf")),
        ("quantisation_weight", "0.1"),
        ("decorrelation_weight", -0.5),
        ("temperature", 0.0),
        ("batch_size", 1),
        ("epochs", 0),
        ("patience", True),
        ("learning_rate", 0.0),
        ("weight_decay", -1e-3),
        ("warmup_share", 1.0),
        ("validation_share", 0.0),
        ("validation_share", 0.5),
        ("threshold", 1),
        ("seed", -1),
    ],
)
def test_value_out_of_range_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        PairConfig(**{key: value})  # type: ignore[arg-type]
    assert caught.value.key == key
    assert caught.value.value is value


def test_training_without_a_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match="logistic_weight"):
        PairConfig(logistic_weight=0.0, info_nce_weight=0.0)


def test_either_loss_alone_is_accepted() -> None:
    assert PairConfig(logistic_weight=0.0).info_nce_weight > 0
    assert PairConfig(info_nce_weight=0.0).logistic_weight > 0
