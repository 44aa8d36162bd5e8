"""Text to embedding through a process of its own, so that the serving process never imports a model.

Frames on the pipes: uint32 length, then the content. A request is a JSON list of texts, an answer is float32
[n, dim] little-endian behind a uint32 dim; dim 0 says that the model failed and the rest is the message. The
first frame that the process sends is a JSON object {"embedder_id": str, "dim": int}.
"""

import json
import logging
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from service.config import EmbedderConfig
from service.errors import EmbedderUnavailableError

logger = logging.getLogger(__name__)
EMBED_SECONDS = 120.0  # for a batch that nobody waits for as a lookup does
_LENGTH = struct.Struct("<I")


def patient(config: EmbedderConfig) -> EmbedderConfig:
    """The same embedder for work that no lookup waits for."""
    return replace(config, timeout_seconds=EMBED_SECONDS, max_wait_seconds=EMBED_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderSpec:
    """What the process says of its model."""

    embedder_id: str
    dim: int


class Embedder:
    """Owns the process, and one thread that speaks to it. A process that dies, or does not answer within
    `timeout_seconds`, is replaced at the next call. A caller who waits less leaves the process alone."""

    def __init__(self, config: EmbedderConfig, *, command: Sequence[str] = ()) -> None:
        """`command` starts another process that speaks the same frames; default: the configured model's."""
        self._config = config
        self._command = command or (sys.executable, "-m", "service.embedder_process", config.model)
        self._process: subprocess.Popen[bytes] | None = None  # the thread's own
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedder")
        self.spec: EmbedderSpec | None = None

    def start(self) -> EmbedderSpec:
        """Start the process and wait until its model is loaded. Raises: EmbedderUnavailableError."""
        self._thread.submit(self._require_process).result()
        if self.spec is None:
            raise EmbedderUnavailableError("the embedder did not say what it is")
        return self.spec

    def embed(self, texts: Sequence[str], *, timeout_seconds: float) -> NDArray[np.float32]:
        """Embed texts to float32 [n, dim], L2-normalised by the model.

        Raises:
            EmbedderUnavailableError: it died, failed, or did not answer in time.
        """
        most = self._config.max_texts
        parts = [list(texts[start : start + most]) for start in range(0, len(texts), most)]
        wait = min(self._config.max_wait_seconds, timeout_seconds)
        abandoned = threading.Event()
        try:
            answer = self._thread.submit(
                lambda: [self._embed(part) for part in parts if not abandoned.is_set()]
            )
            return np.concatenate(answer.result(timeout=wait))
        except FutureTimeoutError as error:
            raise EmbedderUnavailableError(f"the embedder did not answer within {wait:.1f} s") from error
        except (RuntimeError, CancelledError) as error:  # of a thread that was shut down
            raise EmbedderUnavailableError("the embedder was stopped") from error
        finally:
            abandoned.set()

    def stop(self) -> None:
        """End the process."""
        self._thread.shutdown(cancel_futures=True)
        self._end_process()

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        process = self._require_process()
        with self._killed_after(process, self._config.timeout_seconds):
            assert process.stdin is not None
            write_frame(process.stdin, json.dumps(texts).encode())
            answer = _read_frame(process.stdout)
        (dim,) = _LENGTH.unpack_from(answer)
        if dim == 0:
            raise EmbedderUnavailableError(f"the embedder failed: {answer[_LENGTH.size :].decode()}")
        return np.frombuffer(answer, dtype="<f4", offset=_LENGTH.size).reshape(-1, dim)

    def _require_process(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end_process()
        try:
            process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise EmbedderUnavailableError(f"the embedder cannot be started: {error}") from error
        self._process = process
        with self._killed_after(process, self._config.start_seconds):
            greeting = _read_frame(process.stdout)
        try:
            self.spec = EmbedderSpec(**json.loads(greeting))
        except (ValueError, TypeError) as error:
            self._end_process()
            raise EmbedderUnavailableError("the embedder did not say what it is") from error
        logger.info("embedder %s is ready", self.spec.embedder_id)
        return process

    @contextmanager
    def _killed_after(self, process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
        """Kill a process that does not answer in time, which ends the reading.

        Raises: EmbedderUnavailableError.
        """
        alarm = threading.Timer(seconds, process.kill)
        alarm.start()
        try:
            yield
        except OSError as error:
            self._end_process()
            raise EmbedderUnavailableError(
                f"the embedder process ended or did not answer within {seconds:.1f} s: {error}"
            ) from error
        finally:
            alarm.cancel()
            alarm.join()

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # unsent bytes of a dead process
                    pipe.close()


def write_frame(pipe: IO[bytes], content: bytes) -> None:
    """Write one frame and flush."""
    pipe.write(_LENGTH.pack(len(content)) + content)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> bytes | None:
    """Read one frame; None at the end of the stream."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    content = pipe.read(length)
    return content if len(content) == length else None


def pack_embeddings(embeddings: NDArray[Any]) -> bytes:
    """One answer frame's content."""
    return _LENGTH.pack(embeddings.shape[1]) + np.ascontiguousarray(embeddings, dtype="<f4").tobytes()


def pack_failure(message: str) -> bytes:
    """One answer frame's content that says what failed."""
    return _LENGTH.pack(0) + message.encode()


def _read_frame(pipe: IO[bytes] | None) -> bytes:
    assert pipe is not None
    content = read_frame(pipe)
    if content is None:
        raise BrokenPipeError("it closed its output")
    return content
