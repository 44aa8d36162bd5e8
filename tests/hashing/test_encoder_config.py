import pytest

from hashing import ConfigError, EncoderConfig


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", "pca"),
        ("code_bits", 0),
        ("code_bits", 63),
        ("code_bits", 100),
        ("code_bits", 1088),
        ("code_bits", 64.0),
        ("label_bits", 32),
        ("label_bits", True),
        ("itq_iterations", 0),
        ("feature_count", 0),
        ("gamma", 0.0),
        ("gamma", float("nan")),
        ("ridge", -1.0),
        ("ridge", float("inf")),
        ("ridge", "0.1"),
        ("seed", -1),
        ("seed", 1.5),
    ],
)
def test_value_out_of_range_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        EncoderConfig(**{key: value})  # type: ignore[arg-type]
    assert caught.value.key == key
    assert caught.value.value is value


@pytest.mark.parametrize("bits", [64, 192, 1024])
def test_every_multiple_of_a_word_is_accepted(bits: int) -> None:
    config = EncoderConfig(code_bits=bits, label_bits=bits)
    assert (config.code_bits, config.label_bits) == (bits, bits)
