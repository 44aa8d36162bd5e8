"""Batches whose queries share a pass over the codes: each is answered as if it were alone."""

from collections.abc import Iterator

import numpy as np
import pytest
from encoders_at_work import train
from nearhit import Client
from nearhit.client import lookup_request, search_request, store_request
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray

from service.config import Config

Vectors = NDArray[np.float32]


@pytest.fixture(scope="module")
def rows() -> Vectors:
    """200 unit vectors of 32 dimensions around four centres."""
    rng = np.random.default_rng(8)
    centres = 2 * rng.standard_normal((4, 32))
    drawn = centres[np.arange(200) % 4] + rng.standard_normal((200, 32))
    unit: Vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return unit


@pytest.fixture(scope="module")
def coded(lone_config: Config, lone_door_client: Client, rows: Vectors) -> Iterator[Client]:
    """The cache "kept": categories "even" and "odd", scopes, texts, labels and tags, codes and a graph."""
    client = lone_door_client
    client.create_cache("kept", dim=rows.shape[1], code_bits=64, label_bits=64)
    for category, threshold in (("even", 0.1), ("odd", 0.3), ("empty", 0.1)):
        client.create_category("kept", category, threshold=threshold)
    client.batch_store(
        "kept",
        [
            store_request(
                "kept",
                "odd" if i % 2 else "even",
                embedding=row,
                entry=f"e{i}",
                response=b"%d" % i,
                text=f"question {i}",
                scope=f"s{i % 3}",
                tags=[f"t{i % 5}"],
                labels=[f"c{i % 4}"],
            )
            for i, row in enumerate(rows)
        ],
    )
    train(lone_config, client, with_graph=True, cache="kept")
    yield client


def mixed_lookups(rows: Vectors) -> list[cache_pb.LookupRequest]:
    """Categories, scopes, thresholds, modes, texts and fingerprints in no order."""
    rng = np.random.default_rng(9)
    requests = []
    for i in range(60):
        vector = rows[i * 3] + 0.05 * rng.standard_normal(rows.shape[1])
        requests.append(
            lookup_request(
                "kept",
                ("even", "odd", "empty")[i % 3],
                embedding=None if i % 10 == 9 else vector,
                text=f"question {i}" if i % 10 == 4 else "",
                fingerprint="none" if i % 10 == 9 else "",
                scope=f"s{i % 4}",
                threshold=None if i % 2 else 0.05,
                mode=(cache_pb.LOOKUP_MODE_SERVE, cache_pb.LOOKUP_MODE_BYPASS, cache_pb.LOOKUP_MODE_REFRESH)[
                    i % 7 % 3
                ],
            )
        )
    return requests


def test_lookups_of_a_batch_are_answered_as_each_alone(coded: Client, rows: Vectors) -> None:
    requests = mixed_lookups(rows)
    together = list(coded.batch_lookup("kept", requests))
    alone = [coded.batch_lookup("kept", [request])[0] for request in requests]
    for answer in (*together, *alone):
        answer.ClearField("latency_us")
        answer.ClearField("lookup_token")
    assert together == alone
    reasons = {cache_pb.LookupReason.Name(answer.reason).removeprefix("LOOKUP_REASON_") for answer in alone}
    assert reasons >= {"WITHIN_THRESHOLD", "BEYOND_THRESHOLD", "NO_CANDIDATE", "BYPASS", "REFRESH"}


def test_searches_of_a_batch_are_answered_as_each_alone(coded: Client, rows: Vectors) -> None:
    paths = (pb.SEARCH_PATH_UNSPECIFIED, pb.SEARCH_PATH_SCAN, pb.SEARCH_PATH_HNSW, pb.SEARCH_PATH_EXACT)
    requests = [
        search_request(
            "kept",
            embedding=rows[i] + rows[i + 1],
            top_k=1 + i % 4 * 5,
            categories=[[], ["even"], ["odd", "empty"]][i % 3],
            tags=["t1", "t2"] if i % 5 == 0 else [],
            scope=f"s{i % 4}" if i % 2 else None,
            path=paths[i % 4],
            by_label=i % 7 == 3,
            min_recall=1.0 if i % 6 == 1 else 0.0,
            view=pb.ENTRY_VIEW_BASIC if i % 3 else pb.ENTRY_VIEW_UNSPECIFIED,
        )
        for i in range(60)
    ]
    together = list(coded.batch_search("kept", requests))
    alone = [coded.batch_search("kept", [request])[0] for request in requests]
    assert together == alone
    assert {answer.search_path for answer in alone} == set(paths[1:])
