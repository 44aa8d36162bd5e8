"""Verifiers trained on pairs of vectors, in a server's store, and what they say."""

from functools import cache

import numpy as np
from nearhit import Client
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from numpy.typing import NDArray

from hashing.deep.verifier import VerifierConfig, train_verifier
from hashing.verifier import Verifier
from service.application import clock_ms
from service.coding import from_stored, normalise, to_stored
from service.config import Config
from service.database import open_engine, writing
from service.rows import read_cache
from service.verifiers import register_verifier

Vectors = NDArray[np.float32]
PAIRS = 400


@cache
def trained_verifier(dim: int, *, seed: int = 0, with_texts: bool = False) -> Verifier:
    """A verifier that says about .9 at a cosine of .98 and .1 at .8, by texts too where it is given some.

    Another seed makes one that says a little else.
    """
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((PAIRS, dim))
    noise = rng.uniform(0.1, 1.1, PAIRS)  # of a partner at a cosine of 1 / sqrt(1 + noise^2)
    partners = rows + noise[:, None] * rng.standard_normal(rows.shape)
    same = rng.random(PAIRS) < 1 / (1 + np.exp(8 * (noise - 0.5)))
    numbers = np.arange(PAIRS)
    return train_verifier(
        normalise(np.concatenate([rows, partners]).astype(np.float32)),
        np.column_stack([numbers, numbers + PAIRS, same]),
        texts=[*map(invoice_text, numbers), *map(invoice_text, numbers + ~same)] if with_texts else None,
        config=VerifierConfig(folds=2, seed=seed),
    )


def invoice_text(number: int) -> str:
    """A question about one invoice."""
    return f"how do I pay invoice {number}?"


def register(config: Config, verifier: Verifier, *, cache: str = "faq", modality: str = "text") -> str:
    """Keep it as a candidate of the cache; its resource name."""
    engine = open_engine(config.store)
    with writing(engine) as connection:
        record = read_cache(connection, cache)
        register_verifier(connection, record, verifier, modality=modality, now_ms=clock_ms())
    engine.dispose()
    return f"caches/{cache}/verifiers/{verifier.verifier_id}"


def activate(client: Client, name: str) -> pb.Verifier:
    """Make it the active one."""
    active: pb.Verifier = client.call(
        client.admin.ActivateVerifier, admin_pb.ActivateVerifierRequest(name=name)
    )
    return active


def deactivate(client: Client, name: str) -> pb.Verifier:
    """Make it a candidate again."""
    request = admin_pb.DeactivateVerifierRequest(name=name)
    candidate: pb.Verifier = client.call(client.admin.DeactivateVerifier, request)
    return candidate


def probability(
    verifier: Verifier, query: Vectors, row: Vectors, *, query_text: str = "", text: str = ""
) -> float:
    """What it must say of a stored row, both float32 [dim] of any norm."""
    stored = from_stored(to_stored(normalise(row[None])))
    said = verifier.probabilities(normalise(query[None])[0], stored, query_text=query_text, texts=[text])
    return float(said[0])
