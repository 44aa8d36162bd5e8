"""What the commands share: the configuration, the connection, progress bars and printing."""

import argparse
import json
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from service.config import Config, load_config

DEFAULT_ADDRESS = "127.0.0.1:7700"
MOST_NUMBER = 1e9  # 31 years in seconds, more GiB than there are: no sum or deadline overflows


class CommandError(Exception):
    """A command cannot do what was asked; the message is for the person who asked."""


def positive_number(text: str) -> float:
    """A number in (0, MOST_NUMBER], as an argument's type. Raises: argparse.ArgumentTypeError."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= MOST_NUMBER:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, at most {MOST_NUMBER:g}")
    return number


def positive_integer(text: str) -> int:
    """A whole number in [1, MOST_NUMBER], as an argument's type. Raises: argparse.ArgumentTypeError."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 0 < number <= MOST_NUMBER:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0, at most {MOST_NUMBER:g}")
    return number


def add_config(parser: argparse.ArgumentParser) -> None:
    """The option that names the configuration file."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file; see `nearhit serve --print-config`. NEARHIT_<SECTION>_<KEY> variables win over it",
    )


def add_address(parser: argparse.ArgumentParser) -> None:
    """The options of a command that talks to a server."""
    parser.add_argument(
        "--address", default=DEFAULT_ADDRESS, help="the server, host:port (default %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=positive_number, default=10.0, metavar="SECONDS", help="default %(default)s"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option for programs that read the output."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def read_config(arguments: argparse.Namespace) -> Config:
    """The configuration that the arguments name. Raises: ConfigurationError."""
    return load_config(arguments.config)


def print_result(result: dict[str, Any], *, as_json: bool) -> None:
    """One result as a JSON line, or a line per value."""
    if as_json:
        print(json.dumps(result, default=str))
        return
    width = max(len(key) for key in result)
    for key, value in result.items():
        print(f"{key:<{width}}  {value}")


class ProgressBars:
    """One bar per stage on standard error; silent where that is not a terminal and for JSON."""

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent or not sys.stderr.isatty()
        self._stage = ""
        self._bar: tqdm[Any] | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of a stage are done."""
        if self._silent:
            return
        if stage != self._stage or self._bar is None:
            self.close()
            self._stage, self._bar = stage, tqdm(total=total, desc=stage, unit_scale=True)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what the event carries."""

    _STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        event: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        event |= {key: value for key, value in vars(record).items() if key not in self._STANDARD}
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


def configure_logging(config: Config) -> None:
    """Log to standard error as the configuration says."""
    handler = logging.StreamHandler()
    formatter: Callable[[], logging.Formatter] = (
        JsonFormatter
        if config.log.format == "json"
        else lambda: logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    handler.setFormatter(formatter())
    logging.basicConfig(level=config.log.level.upper(), handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
