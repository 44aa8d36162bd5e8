"""One build in a process of its own: `python -m service.compaction_process`; see compaction.py.

Reads one line of JSON, {"cache": name, "config": {section: {key: value}}}, and ends when its input does: who
started it has died. Prints one line of JSON: the "outcome", which is "built", with "generation" and
"row_count"; "in_progress", another process builds the cache; "gone", there is no such cache; or "failed",
with a "reason".
"""

import json
import os
import signal
import sys
import threading
import time
from typing import Any, get_type_hints

from index.errors import BuildInProgressError, DamagedGenerationError
from index.manifest import current_generation, read_manifest
from service.config import Config
from service.database import open_engine, reading
from service.errors import NotFoundError
from service.generations import build_index
from service.replica import index_root
from service.rows import read_cache

NICENESS = 10
_MOST_REASON = 2_000  # characters; a pipe takes at least 4,096 bytes without a reader
_MEBIBYTE = 2**20
_READ_BYTES = 4_096


def build(cache: str, config: Config) -> dict[str, Any]:
    """Build a generation of the cache, with graphs where the current one has any; what came of it."""
    engine = open_engine(config.store)
    try:
        with reading(engine) as connection:
            record = read_cache(connection, cache)
        built = build_index(
            engine,
            cache,
            search=config.search,
            data_dir=config.store.data_dir,
            with_graph=_has_graph(config, record.id),
            reencode=False,
            memory_limit_bytes=config.compaction.memory_limit_mib * _MEBIBYTE,
            progress=lambda _stage, _done, _total: None,
            now_ms=time.time_ns() // 1_000_000,
        )
    except BuildInProgressError:
        return {"outcome": "in_progress"}
    except NotFoundError:
        return {"outcome": "gone"}
    finally:
        engine.dispose()
    report = built.report
    return {"outcome": "built", "generation": report.generation, "row_count": report.row_count}


def read_order(line: bytes) -> tuple[str, Config]:
    """The cache and the configuration that a line names."""
    order = json.loads(line)
    sections = get_type_hints(Config)
    values = {name: sections[name](**section) for name, section in order["config"].items()}
    return order["cache"], Config(**values)


def main() -> int:
    """Build what the first line of the input asks for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: who started this process ends it
    os.nice(NICENESS)
    cache, config = read_order(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        answer = build(cache, config)
    except Exception as error:  # outermost: whatever it is, who started this logs it
        reason = f"{type(error).__name__}: {error}"
        answer = {"outcome": "failed", "reason": reason[:_MOST_REASON]}
    print(json.dumps(answer), flush=True)
    return 1 if answer["outcome"] == "failed" else 0


def _end_with_input() -> None:
    # Not through sys.stdin, whose lock the end of the process would wait for.
    while os.read(sys.stdin.fileno(), _READ_BYTES):
        pass
    os._exit(1)


def _has_graph(config: Config, cache_id: int) -> bool:
    """Whether the current generation has graphs, as far as its manifest can be read."""
    root = index_root(config.store.data_dir, cache_id)
    try:
        name = current_generation(root)
        return name is not None and any(entry.graph for entry in read_manifest(root, name).segments)
    except DamagedGenerationError:
        return False


if __name__ == "__main__":
    sys.exit(main())
