"""A server of one's own in a folder: for the demo and the benchmarks."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from nearhit import Client

from scripts.arguments import CommandError

_START_SECONDS = 180.0
_POLL_SECONDS = 0.5  # how often a starting server is checked for having ended


def write_config(folder: Path, *, embedder: str = "") -> Path:
    """A configuration file whose database, index and server are of this folder alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = folder / "nearhit.toml"
    path.write_text(
        f'[server]\naddress = "127.0.0.1:{port}"\n\n'
        f'[store]\nurl = "sqlite:///{folder}/nearhit.db"\ndata_dir = "{folder}"\n\n'
        f'[embedder]\nmodel = "{embedder}"\n\n'
        '[log]\nlevel = "warning"\nformat = "text"\n',
        encoding="utf-8",
    )
    return path


class ServerProcess:
    """`nearhit serve` as a process; `client` speaks to it."""

    def __init__(self, config_path: Path, *, address: str) -> None:
        self._command = [sys.executable, "-m", "scripts", "serve", "--config", str(config_path)]
        self._address = address
        self._process: subprocess.Popen[bytes] | None = None
        self.client = Client(address, timeout_seconds=60.0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until it answers. Raises: CommandError: it ended, or took too long."""
        self._process = subprocess.Popen(self._command, start_new_session=True)
        try:
            self._await(self._process)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it in order."""
        self.client.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        """kill -9, with everything that it started."""
        self.client.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # it ended, and left nothing
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while process.poll() is None:
            with contextlib.suppress(TimeoutError):
                self.client.wait_until_ready(timeout_seconds=_POLL_SECONDS)
                return
            if time.monotonic() >= deadline:
                raise CommandError(f"the server did not start at {self._address} in {_START_SECONDS:.0f} s")
        raise CommandError(f"the server at {self._address} ended at its start, status {process.returncode}")
