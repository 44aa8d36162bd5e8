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
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from service.config import EmbedderConfig
from service.errors import EmbedderUnavailableError

logger = logging.getLogger(__name__)
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderSpec:
    """What the process says of its model."""

    embedder_id: str
    dim: int


class Embedder:
    """Owns the process. A process that dies or does not answer in time is replaced at the next call."""

    def __init__(self, config: EmbedderConfig) -> None:
        self._config = config
        self._lock = threading.Lock()  # guards _process: one request at a time
        self._process: subprocess.Popen[bytes] | None = None
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedder")
        self.spec: EmbedderSpec | None = None

    def start(self) -> EmbedderSpec:
        """Start the process and wait until its model is loaded. Raises: EmbedderUnavailableError."""
        with self._lock:
            self._require_process()
            if self.spec is None:
                raise EmbedderUnavailableError("the embedder did not say what it is")
            return self.spec

    def embed(self, texts: Sequence[str], *, timeout_seconds: float) -> NDArray[np.float32]:
        """Embed texts to float32 [n, dim], L2-normalised by the model.

        Raises:
            EmbedderUnavailableError: it died, failed, or did not answer in time.
        """
        limit = self._config.timeout_seconds
        wait = min(limit, timeout_seconds)
        if not self._lock.acquire(timeout=wait):
            raise EmbedderUnavailableError(f"the embedder is busy for over {wait:.1f} s")
        try:
            return self._embed_locked(texts, wait)
        finally:
            self._lock.release()

    def stop(self) -> None:
        """End the process."""
        with self._lock:
            self._kill()
        self._reader.shutdown()

    def _embed_locked(self, texts: Sequence[str], wait: float) -> NDArray[np.float32]:
        parts = []
        for start in range(0, len(texts), self._config.max_texts):
            request = json.dumps(list(texts[start : start + self._config.max_texts])).encode()
            answer = self._exchange(self._require_process(), request, wait)
            (dim,) = _LENGTH.unpack_from(answer)
            if dim == 0:
                raise EmbedderUnavailableError(f"the embedder failed: {answer[_LENGTH.size :].decode()}")
            parts.append(np.frombuffer(answer, dtype="<f4", offset=_LENGTH.size).reshape(-1, dim))
        return np.concatenate(parts)

    def _require_process(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._kill()
        command = [sys.executable, "-m", "service.embedder_process", self._config.model]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._process = process
        greeting = self._await(self._reader.submit(_read_frame, process.stdout), self._config.start_seconds)
        self.spec = EmbedderSpec(**json.loads(greeting))
        logger.info("embedder %s is ready", self.spec.embedder_id)
        return process

    def _exchange(self, process: subprocess.Popen[bytes], request: bytes, wait: float) -> bytes:
        def exchange() -> bytes:
            assert process.stdin is not None
            write_frame(process.stdin, request)
            return _read_frame(process.stdout)

        return self._await(self._reader.submit(exchange), wait)

    def _await(self, answer: "Future[bytes]", seconds: float) -> bytes:
        try:
            return answer.result(timeout=seconds)
        except FutureTimeoutError as error:
            self._kill()
            raise EmbedderUnavailableError(f"the embedder did not answer within {seconds:.1f} s") from error
        except OSError as error:
            self._kill()
            raise EmbedderUnavailableError(f"the embedder process ended: {error}") from error

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # unsent bytes of a dead process


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
