"""Queries of one modality for entries of another, through the door, against brute force."""

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from nearhit import Client
from nearhit.client import search_request, store_request
from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb
from nearhit.v1 import search_service_pb2 as search_pb
from numpy.typing import NDArray
from refusals import refused
from waiting import eventually

from hashing import CrossModalConfig, Encoder, KernelSettings, TrainingDataError, load_encoder
from service.application import clock_ms
from service.coding import from_stored, to_stored
from service.config import Config, UpdateConfig
from service.crossmodal_learning import train_crossmodal_from_store
from service.database import open_engine, reading
from service.generations import build_index
from service.rows import read_cache, read_weights
from service.update import run_update

Vectors = NDArray[np.float32]
CLASSES = 4
COUNT = 160
DIMS = {"image": 24, "text": 16}
KERNEL = KernelSettings(gamma=1.0, ridge=1e-3)
CONFIG = CrossModalConfig(
    code_bits=128,
    label_bits=64,
    itq_iterations=3,
    label_feature_count=128,
    function_feature_count=128,
    kernels={"image": KERNEL, "text": KERNEL},
)
TO_TEXT: dict[str, Any] = {"modality": "image", "target_modality": "text"}


def draw(modality: str, *, seed: int, count: int = COUNT) -> Vectors:
    """Row i of any modality is of class i % CLASSES."""
    dim = DIMS[modality]
    centres = np.random.default_rng(dim).standard_normal((CLASSES, dim))
    rows = centres[np.arange(count) % CLASSES]
    rows = rows + 0.5 * np.random.default_rng(seed).standard_normal((count, dim))
    unit: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


ROWS = {"image": draw("image", seed=1), "text": draw("text", seed=2)}
ASKED = {"image": draw("image", seed=3, count=20), "text": draw("text", seed=4, count=20)}


def fill(client: Client, *, cache: str, labelled: bool = True, sources: bool = False) -> None:
    """Entries image-0, text-0, ... in two categories, each class of either with a label or a source."""
    modalities = [pb.Modality(modality=modality, dim=dim) for modality, dim in DIMS.items()]
    message = pb.Cache(modalities=modalities, code_bits=128, label_bits=64)
    client.call(client.admin.CreateCache, admin_pb.CreateCacheRequest(cache_id=cache, cache=message))
    for category in ("even", "odd"):
        client.create_category(cache, category)
    for modality, rows in ROWS.items():
        client.batch_store(
            cache,
            [
                store_request(
                    cache,
                    "odd" if i % 2 else "even",
                    entry=f"{modality}-{i}",
                    embedding=row,
                    modality=modality,
                    response=b"%d" % i,
                    tags=[f"t{i % 3}"],
                    scope=f"s{i % 5}",
                    labels=[f"c{i % CLASSES}"] if labelled else [],
                    source=f"page {i}" if sources else "",
                )
                for i, row in enumerate(rows)
            ],
        )


def train(config: Config, client: Client, *, cache: str) -> Encoder:
    """An active encoder of both modalities, and a generation that the server serves."""
    engine = open_engine(config.store)
    trained = train_crossmodal_from_store(engine, cache, config=CONFIG, progress=None, now_ms=clock_ms())
    name = f"caches/{cache}/encoders/{trained.encoder_id}"
    client.call(client.admin.ActivateEncoder, admin_pb.ActivateEncoderRequest(name=name))
    built = build_index(
        engine,
        cache,
        search=config.search,
        data_dir=config.store.data_dir,
        with_graph=False,
        reencode=False,
        memory_limit_bytes=2**28,
        progress=lambda _step, _done, _total: None,
        now_ms=clock_ms(),
    )
    with reading(engine) as connection:
        encoder = load_encoder(read_weights(connection, read_cache(connection, cache).id, trained.encoder_id))
    engine.dispose()
    request = admin_pb.GetIndexRequest(name=f"caches/{cache}/index")
    eventually(lambda: client.call(client.admin.GetIndex, request).generation == built.report.generation)
    return encoder


@pytest.fixture(scope="module")
def served(lone_config: Config, lone_door_client: Client) -> Iterator[tuple[Client, Encoder]]:
    """A server with the cache "kept", which has an encoder of both modalities."""
    fill(lone_door_client, cache="kept")
    yield lone_door_client, train(lone_config, lone_door_client, cache="kept")


def ids(found: search_pb.SearchResponse) -> list[str]:
    return [result.entry.name.rpartition("/")[2] for result in found.results]


def brute_force(
    encoder: Encoder, query: Vectors, *, source: str, target: str
) -> tuple[list[str], NDArray[np.float64], NDArray[np.int64]]:
    """All entries in order, their distances and Hamming distances, from the definition."""
    bits = encoder.instance_bits(from_stored(to_stored(ROWS[target])), modality=target)
    mask = encoder.cross_mask
    values = encoder.cross_values(query[None], modality=source, target=target)[0, mask].astype(float)
    cosine = np.where(bits[:, mask], 1, -1) @ values / np.linalg.norm(values) / np.sqrt(mask.sum())
    own = encoder.cross_bits(query[None], modality=source, target=target)[0]
    hamming = (bits != own)[:, mask].sum(axis=1)
    order = np.argsort(1 - cosine, kind="stable")
    return [f"{target}-{i}" for i in order], (1 - cosine)[order], hamming[order]


@pytest.mark.parametrize(("source", "target"), [("image", "text"), ("text", "image")])
def test_entries_of_the_other_modality_are_found_in_the_order_of_their_codes(
    served: tuple[Client, Encoder], source: str, target: str
) -> None:
    client, encoder = served
    for query in ASKED[source][:5]:
        found = client.search("kept", embedding=query, modality=source, target_modality=target, top_k=COUNT)
        _, distances, _ = brute_force(encoder, query, source=source, target=target)
        np.testing.assert_allclose([r.distance for r in found.results], distances, atol=1e-5)
        assert sorted(ids(found)) == sorted(f"{target}-{i}" for i in range(COUNT))
        assert found.search_path == pb.SEARCH_PATH_SCAN and found.candidates_examined == COUNT


def test_hamming_distance_is_of_the_bits_in_common(served: tuple[Client, Encoder]) -> None:
    client, encoder = served
    found = client.search("kept", embedding=ASKED["image"][0], top_k=20, **TO_TEXT)
    names, _, hamming = brute_force(encoder, ASKED["image"][0], source="image", target="text")
    wanted = dict(zip(names, hamming.tolist(), strict=True))
    assert {
        name: result.hamming_distance for name, result in zip(ids(found), found.results, strict=True)
    } == {name: wanted[name] for name in ids(found)}


@pytest.mark.parametrize("by", ["items", "classes"])
@pytest.mark.parametrize(("source", "target"), [("image", "text"), ("text", "image")])
def test_what_is_found_is_of_the_class_of_the_query(
    served: tuple[Client, Encoder], source: str, target: str, by: str
) -> None:
    client, _ = served
    requests = [
        search_request(
            "kept",
            embedding=query,
            modality=source,
            target_modality=target,
            top_k=5,
            by_label=by == "classes",
        )
        for query in ASKED[source]
    ]
    right = [
        int(name.partition("-")[2]) % CLASSES == i % CLASSES
        for i, found in enumerate(client.batch_search("kept", requests))
        for name in ids(found)
    ]
    assert np.mean(right) > 0.85


def test_category_tag_and_scope_filter_across_modalities(served: tuple[Client, Encoder]) -> None:
    client, _ = served
    found = client.search(
        "kept",
        embedding=ASKED["image"][0],
        top_k=COUNT,
        categories=["odd"],
        tags=["t1"],
        scope="s2",
        **TO_TEXT,
    )
    wanted = [f"text-{i}" for i in range(COUNT) if i % 2 and i % 3 == 1 and i % 5 == 2]
    assert sorted(ids(found)) == sorted(wanted)


def test_the_querys_own_modality_may_be_named(served: tuple[Client, Encoder]) -> None:
    client, _ = served
    named = client.search("kept", embedding=ASKED["text"][0], target_modality="text")
    assert ids(named) == ids(client.search("kept", embedding=ASKED["text"][0]))


def test_batch_may_mix_kinds(served: tuple[Client, Encoder]) -> None:
    client, _ = served
    query = ASKED["image"][1]
    requests = [
        search_request("kept", embedding=query, modality="image"),
        search_request("kept", embedding=query, **TO_TEXT),
        search_request("kept", embedding=query, by_label=True, **TO_TEXT),
        search_request("kept", embedding=ASKED["text"][1]),
    ]
    alone = [client.call(client.search_service.Search, request) for request in requests]
    assert [ids(found) for found in client.batch_search("kept", requests)] == [ids(one) for one in alone]


def test_entries_stored_after_training_are_found(served: tuple[Client, Encoder]) -> None:
    client, _ = served
    row = draw("text", seed=8, count=1)[0]
    stored = client.batch_store(
        "kept", [store_request("kept", "even", entry="text-new", embedding=row, response=b"", scope="later")]
    )
    found = client.search(
        "kept", embedding=ASKED["image"][0], scope="later", min_seq=stored[0].entry.seq, **TO_TEXT
    )
    assert ids(found) == ["text-new"]


def test_unknown_target_is_refused(served: tuple[Client, Encoder]) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_MODALITY"):
        served[0].search("kept", embedding=ASKED["text"][0], target_modality="sound")


@pytest.mark.parametrize(
    "path", [pb.SEARCH_PATH_CASCADE, pb.SEARCH_PATH_IVF, pb.SEARCH_PATH_HNSW, pb.SEARCH_PATH_EXACT]
)
def test_only_a_scan_crosses_modalities(served: tuple[Client, Encoder], path: pb.SearchPath) -> None:
    client, _ = served
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "PATH_UNAVAILABLE"):
        client.search("kept", embedding=ASKED["image"][0], path=path, **TO_TEXT)
    assert client.search("kept", embedding=ASKED["image"][0], path=pb.SEARCH_PATH_SCAN, **TO_TEXT).results


def test_without_an_encoder_of_both_nothing_crosses(lone_door_client: Client) -> None:
    fill(lone_door_client, cache="untrained")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "NO_CROSS_MODAL_ENCODER"):
        lone_door_client.search("untrained", embedding=ASKED["image"][0], **TO_TEXT)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "NO_LABEL_CODES"):
        lone_door_client.search("untrained", embedding=ASKED["image"][0], by_label=True, **TO_TEXT)


def test_equal_sources_pair_entries_without_labels(lone_config: Config, lone_door_client: Client) -> None:
    fill(lone_door_client, cache="paired", labelled=False, sources=True)
    encoder = train(lone_config, lone_door_client, cache="paired")
    assert encoder.label_modalities == ()
    right = [
        int(name.partition("-")[2]) % CLASSES == i % CLASSES
        for i, query in enumerate(ASKED["image"])
        for name in ids(lone_door_client.search("paired", embedding=query, top_k=5, **TO_TEXT))
    ]
    assert np.mean(right) > 0.6


def test_nothing_in_common_is_said(lone_config: Config, lone_door_client: Client) -> None:
    fill(lone_door_client, cache="apart", labelled=False)
    engine = open_engine(lone_config.store)
    with pytest.raises(TrainingDataError, match="nothing says what they have in common"):
        train_crossmodal_from_store(engine, "apart", config=CONFIG, progress=None, now_ms=clock_ms())
    engine.dispose()


def test_update_teaches_both_modalities_a_new_label(lone_config: Config, lone_door_client: Client) -> None:
    client = lone_door_client
    fill(client, cache="updated")
    train(lone_config, client, cache="updated")
    rng = np.random.default_rng(5)
    centres = {modality: rng.standard_normal(dim) for modality, dim in DIMS.items()}
    for modality, dim in DIMS.items():
        centre = centres[modality]
        client.batch_store(
            "updated",
            [
                store_request(
                    "updated",
                    "even",
                    entry=f"{modality}-late-{i}",
                    embedding=centre + 0.2 * rng.standard_normal(dim),
                    modality=modality,
                    response=b"",
                    labels=["late"],
                )
                for i in range(20)
            ],
        )
    engine = open_engine(lone_config.store)
    outcome = run_update(
        engine, "updated", config=UpdateConfig(max_map_drop=0.5), max_live_encoders=4, clock=clock_ms
    )
    engine.dispose()
    assert outcome.accepted, outcome.reasons
    assert outcome.new_labels == ("late",)
    assert outcome.label_codes_issued == 40
    wanted = {target: {f"{target}-late-{i}" for i in range(20)} for target in DIMS}

    def found(source: str, target: str) -> set[str]:
        query = centres[source] + 0.2 * rng.standard_normal(DIMS[source])
        asked = {"modality": source, "target_modality": target, "by_label": True, "top_k": 20}
        return set(ids(client.search("updated", embedding=query, **asked)))

    eventually(lambda: found("text", "text") == wanted["text"])  # the server takes the new encoder over
    for source in DIMS:
        for target in DIMS:
            assert found(source, target) == wanted[target]
