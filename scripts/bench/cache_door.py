"""A stream through the real door: a server, a category with a promise, lookups, stores of what misses
compute."""

import tempfile
from pathlib import Path

import numpy as np
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from numpy.typing import NDArray

from scripts.bench.cache_replay import Replayed
from scripts.bench.cache_streams import Stream
from scripts.server_process import ServerProcess, write_config
from service.config import load_config
from service.database import migrate, open_engine

_CACHE = _CATEGORY = "stream"


def replay_through_door(stream: Stream, order: NDArray[np.int64], *, max_wrong: float) -> Replayed:
    """Insert on miss; the response of a request is its answer, and whether a candidate had the same is
    learned from what is stored.

    Raises: CommandError: the server does not start.
    """
    right_count = wrong_count = 0
    with tempfile.TemporaryDirectory(prefix="nearhit-bench-") as folder:
        config_path = write_config(Path(folder))
        config = load_config(config_path)
        engine = open_engine(config.store)
        migrate(engine)
        engine.dispose()
        with ServerProcess(config_path, address=config.server.address) as server:
            client = server.client
            client.create_cache(_CACHE, dim=int(stream.vectors.shape[1]))
            client.create_category(
                _CACHE,
                _CATEGORY,
                max_wrong=max_wrong,
                max_wrong_of="WRONG_BASIS_REQUESTS",
                compare_responses=True,
            )
            for row in order.tolist():
                vector, answer = stream.vectors[row], b"%d" % stream.answers[row]
                found = client.lookup(_CACHE, _CATEGORY, embedding=vector)
                if found.outcome == cache_pb.LOOKUP_OUTCOME_HIT:
                    right_count += found.response == answer
                    wrong_count += found.response != answer
                else:
                    token = found.lookup_token
                    client.store(_CACHE, _CATEGORY, embedding=vector, response=answer, lookup_token=token)
    return Replayed(
        request_count=len(order), right_count=right_count, wrong_count=wrong_count, unknown_count=0
    )
