"""Commands as processes of their own, forked from one that has imported all and run nothing."""

import multiprocessing.forkserver
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
OWN = ("hashing", "index", "migrations", "nearhit", "scripts", "service")
_CONTEXT = multiprocessing.get_context("forkserver")
# What is not installed is left out. torch's optimisers import its compiler.
_CONTEXT.set_forkserver_preload(["pytest", "torch._dynamo", *COMMANDS.values()])


def run_command(
    arguments: tuple[str, ...], *, folder: Path, timeout_seconds: float, fresh: bool = False
) -> "subprocess.CompletedProcess[str]":
    """Run `nearhit` with these arguments; what it prints is kept in `folder` meanwhile.

    fresh: let the process import the packages of this repository itself, as one that is started does. A
    negative status is the signal that ended it. Raises: subprocess.TimeoutExpired.
    """
    said = [folder / f".{name}" for name in ("stdout", "stderr")]
    for path in said:
        path.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'protos'}")
        multiprocessing.forkserver.ensure_running()
        given = {"environment": dict(os.environ), "said": said, "fresh": fresh}
        process = _CONTEXT.Process(target=_become_command, args=arguments, kwargs=given)
        process.start()
    process.join(timeout_seconds)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(arguments, timeout_seconds)
    status = process.exitcode
    process.close()
    stdout, stderr = (path.read_text() for path in said)
    for path in said:
        path.unlink()
    return subprocess.CompletedProcess(arguments, status, stdout, stderr)


def _become_command(*arguments: str, environment: dict[str, str], said: list[Path], fresh: bool) -> None:
    """In the process: do what `python -m scripts` does."""
    for descriptor, path in enumerate(said, start=1):
        file = os.open(path, os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for name in list(sys.modules):
        if name == "scripts.__main__" or (fresh and name.partition(".")[0] in OWN):
            del sys.modules[name]
    sys.argv = ["nearhit", *arguments]
    runpy.run_module("scripts", run_name="__main__", alter_sys=True)
