"""Configuration: one TOML file, then NEARHIT_<SECTION>_<KEY> variables over it, read once at start."""

import json
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from hashing.shift_reference import BLOCK, LEAST_ROWS
from service.errors import ConfigurationError

MINILM_MODEL = "minilm"
MOST_PAUSE_SECONDS = 3600.0  # between two attempts at a build
MOST_REFERENCE_LOOKUPS = 65_536


def _positive(section: str, **values: float) -> None:
    for key, value in values.items():
        if not 0 < value < math.inf:
            raise ConfigurationError(f"[{section}] {key}", f"must be over 0 and finite, is {value}")


def _within(section: str, key: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigurationError(f"[{section}] {key}", f"must be in [{least}, {most}], is {value}")


def _one_of(section: str, key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"[{section}] {key}", f"must be one of {', '.join(allowed)}, is {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The gRPC front end."""

    address: str = "127.0.0.1:7700"
    threads: int = 16
    max_concurrent_calls: int = 256
    max_streams: int = 4
    grace_seconds: float = 10.0
    max_message_bytes: int = 64 * 1024 * 1024
    max_batch: int = 256
    max_response_bytes: int = 1024 * 1024

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ConfigurationError("[server] address", f"must be host:port, is {self.address!r}")
        _positive(
            "server",
            threads=self.threads,
            max_concurrent_calls=self.max_concurrent_calls,
            max_streams=self.max_streams,
            max_message_bytes=self.max_message_bytes,
            max_batch=self.max_batch,
            max_response_bytes=self.max_response_bytes,
        )
        if not 0 <= self.grace_seconds < math.inf:
            raise ConfigurationError(
                "[server] grace_seconds", f"must be at least 0 and finite, is {self.grace_seconds}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Where the truth lives. `durability` is of SQLite: full syncs every commit, normal may lose the last
    commits on power loss (never on a crash of the process)."""

    url: str = "sqlite:///var/nearhit.db"
    data_dir: str = "var"
    durability: str = "full"
    max_queued_writes: int = 4096
    max_group_rows: int = 256
    changes_retained: int = 1_000_000

    def __post_init__(self) -> None:
        _one_of("store", "durability", self.durability, ("full", "normal"))
        if not self.url.startswith(("sqlite:///", "postgresql+psycopg://")):
            raise ConfigurationError(
                "[store] url", f"must begin with sqlite:/// or postgresql+psycopg://, is {self.url!r}"
            )
        if not self.data_dir:
            raise ConfigurationError("[store] data_dir", "must not be empty")
        _positive(
            "store",
            max_queued_writes=self.max_queued_writes,
            max_group_rows=self.max_group_rows,
            changes_retained=self.changes_retained,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """How the index searches; see ARCHITECTURE.md for the paths. Up to `exact_limit` entries without codes
    are compared exactly; above `scan_limit` a graph is preferred to a scan. `candidate_count` codes are
    reranked at least, and `candidates_per_result` for each result; of a sealed segment `exact_count` of those
    at least are measured on float16 after int8. Segments of `cascade_min_rows` entries or more are searched
    on CASCADE where the threshold is small enough; a build gives those of `lists_min_rows` or more inverted
    lists, of which IVF searches `probe_count` at least, and as many as hold `list_recall` of the nearest
    entries or what a search asks for. Codes of at most `max_live_encoders` encoders serve at once."""

    exact_limit: int = 20_000
    scan_limit: int = 1_000_000
    candidate_count: int = 256
    candidates_per_result: int = 32
    exact_count: int = 32
    cascade_min_rows: int = 50_000
    lists_min_rows: int = 200_000
    probe_count: int = 16
    list_recall: float = 0.98
    max_live_encoders: int = 4

    def __post_init__(self) -> None:
        _positive(
            "search",
            exact_limit=self.exact_limit,
            scan_limit=self.scan_limit,
            candidate_count=self.candidate_count,
            candidates_per_result=self.candidates_per_result,
            exact_count=self.exact_count,
            cascade_min_rows=self.cascade_min_rows,
            lists_min_rows=self.lists_min_rows,
            probe_count=self.probe_count,
            max_live_encoders=self.max_live_encoders,
        )
        if not 0 <= self.list_recall <= 1:
            raise ConfigurationError("[search] list_recall", f"must be in [0, 1], is {self.list_recall}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshConfig:
    """How often a replica follows the store, and how far a read waits for it."""

    feed_seconds: float = 0.05
    verdicts_seconds: float = 0.25
    accesses_seconds: float = 1.0
    expiry_seconds: float = 5.0
    min_seq_wait_seconds: float = 2.0
    max_queued_accesses: int = 65_536

    def __post_init__(self) -> None:
        _positive(
            "refresh",
            feed_seconds=self.feed_seconds,
            verdicts_seconds=self.verdicts_seconds,
            accesses_seconds=self.accesses_seconds,
            expiry_seconds=self.expiry_seconds,
            min_seq_wait_seconds=self.min_seq_wait_seconds,
            max_queued_accesses=self.max_queued_accesses,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderConfig:
    """Text to embedding, in a process of its own. `model`: "minilm", or the file of a text tower that was
    trained over it; empty: none, texts are answered by fingerprint only. The process has `timeout_seconds`
    for one batch, a call waits `max_wait_seconds` for its turn and answer."""

    model: str = ""
    start_seconds: float = 120.0
    timeout_seconds: float = 5.0
    max_wait_seconds: float = 20.0
    max_texts: int = 256

    def __post_init__(self) -> None:
        if self.model not in ("", MINILM_MODEL) and not Path(self.model).is_file():
            raise ConfigurationError(
                "[embedder] model",
                f"must be {MINILM_MODEL}, a text tower's file, or empty: there is no file {self.model!r}",
            )
        _positive(
            "embedder",
            start_seconds=self.start_seconds,
            timeout_seconds=self.timeout_seconds,
            max_wait_seconds=self.max_wait_seconds,
            max_texts=self.max_texts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateConfig:
    """When the worker learns: once `min_labelled_rows` wait, or one of them for `max_age_seconds` (0: age
    does not count). An update reads at most `max_update_rows`, and is rejected where it loses over
    `max_map_drop` of mAP on up to `max_gate_rows` old rows, or where the answers of surely more than the
    share `max_flips` of their queries turn from right to wrong. Instance codes learn (with torch) once
    `min_verdicts` with a query wait (0: never; `max_update_rows` where that is less), 25 right and 25 wrong
    at least; of each kind the newest `max_update_rows` are read. Files that appear below the folder `inbox`
    (empty: none) are loaded, those over `inbox_max_mib` refused. The worker looks every `poll_seconds`. A
    dead worker's job is taken over `lease_seconds` after its last sign of life; what failed or was cancelled
    is not queued again for `retry_seconds`."""

    min_labelled_rows: int = 100
    min_verdicts: int = 1000
    max_age_seconds: float = 3600.0
    poll_seconds: float = 5.0
    lease_seconds: float = 60.0
    retry_seconds: float = 300.0
    max_map_drop: float = 0.01
    max_flips: float = 0.02
    max_gate_rows: int = 5_000
    max_update_rows: int = 20_000
    inbox: str = ""
    inbox_max_mib: int = 4096

    def __post_init__(self) -> None:
        _positive(
            "update",
            min_labelled_rows=self.min_labelled_rows,
            poll_seconds=self.poll_seconds,
            lease_seconds=self.lease_seconds,
            retry_seconds=self.retry_seconds,
            max_gate_rows=self.max_gate_rows,
            max_update_rows=self.max_update_rows,
            inbox_max_mib=self.inbox_max_mib,
        )
        if not 0 <= self.max_age_seconds < math.inf:
            raise ConfigurationError(
                "[update] max_age_seconds", f"must be at least 0 and finite, is {self.max_age_seconds}"
            )
        if self.min_verdicts < 0:
            raise ConfigurationError("[update] min_verdicts", f"must be at least 0, is {self.min_verdicts}")
        for key in ("max_map_drop", "max_flips"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigurationError(f"[update] {key}", f"must be in [0, 1], is {getattr(self, key)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionConfig:
    """When a server builds a new generation by itself, in a process of its own: once rows that no generation
    holds, or deleted ones that it still does, exceed `min_rows` and `share` of the live rows of a cache, or
    once a generation is damaged. `enabled` false: never. It looks every `check_seconds`. A build holds
    up to `memory_limit_mib` of rows at once. One that failed is tried again after `retry_seconds`, at most an
    hour, and after twice as long each further time, up to an hour. At a stop the server waits up to
    `snapshot_seconds` for a build that saves the next start more than `snapshot_min_rows` rows to replay."""

    enabled: bool = True
    min_rows: int = 50_000
    share: float = 0.25
    memory_limit_mib: int = 2048
    check_seconds: float = 2.0
    retry_seconds: float = 30.0
    snapshot_min_rows: int = 20_000
    snapshot_seconds: float = 60.0

    def __post_init__(self) -> None:
        _positive(
            "compaction",
            min_rows=self.min_rows,
            share=self.share,
            memory_limit_mib=self.memory_limit_mib,
            check_seconds=self.check_seconds,
            retry_seconds=self.retry_seconds,
            snapshot_min_rows=self.snapshot_min_rows,
            snapshot_seconds=self.snapshot_seconds,
        )
        if self.retry_seconds > MOST_PAUSE_SECONDS:
            raise ConfigurationError(
                "[compaction] retry_seconds",
                f"must be at most {MOST_PAUSE_SECONDS:g}, is {self.retry_seconds}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftConfig:
    """Whether a server watches how near the lookups of each category come to what it holds, and raises an
    alarm when that shifts. What is usual it learns from the first `reference_lookups` of a category: best so
    many that days and weeks are in them. Without a shift there is an alarm in some 500,000 lookups, if not
    more than `run_length` in a row depend on each other (a conversation, retries); a larger one makes alarms
    later."""

    enabled: bool = True
    reference_lookups: int = 2_000
    run_length: int = 1

    def __post_init__(self) -> None:
        _within("shift", "reference_lookups", self.reference_lookups, LEAST_ROWS, MOST_REFERENCE_LOOKUPS)
        _within("shift", "run_length", self.run_length, 1, BLOCK)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasesConfig:
    """Of lookups that miss the same at a time one computes, and others may wait for it (`lease` and `wait` of
    a lookup). A category has up to `max_per_category` leases at once, misses beyond get none. Of the threads
    that [server] max_streams leaves, up to the share `waiting_share` wait; lookups beyond do not."""

    max_per_category: int = 256
    waiting_share: float = 0.5

    def __post_init__(self) -> None:
        _positive("leases", max_per_category=self.max_per_category)
        if not 0 <= self.waiting_share <= 0.9:
            raise ConfigurationError(
                "[leases] waiting_share", f"must be in [0, 0.9], is {self.waiting_share}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """Logs go to standard error, one event a line."""

    level: str = "info"
    format: str = "json"

    def __post_init__(self) -> None:
        _one_of("log", "level", self.level, ("debug", "info", "warning", "error"))
        _one_of("log", "format", self.format, ("json", "text"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All of it."""

    server: ServerConfig = field(default_factory=ServerConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    compaction: CompactionConfig = field(default_factory=CompactionConfig)
    shift: ShiftConfig = field(default_factory=ShiftConfig)
    leases: LeasesConfig = field(default_factory=LeasesConfig)
    log: LogConfig = field(default_factory=LogConfig)


def load_config(path: Path | None = None, *, environment: Mapping[str, str] = os.environ) -> Config:
    """Read the file at `path` (none: defaults only), then the variables, which win.

    Raises:
        ConfigurationError: unreadable file, unknown section or key, value of the wrong type or range.
    """
    document = _read_document(path)
    hints = get_type_hints(Config)
    unknown = set(document) - set(hints)
    if unknown:
        raise ConfigurationError(f"[{sorted(unknown)[0]}]", f"unknown section in {path}")
    sections: dict[str, Any] = {}
    for section, section_type in hints.items():
        values = document.get(section, {})
        if not isinstance(values, dict):
            raise ConfigurationError(f"[{section}]", "must be a table")
        sections[section] = _read_section(section, section_type, values=values, environment=environment)
    return Config(**sections)


def render_config(config: Config) -> str:
    """The configuration as TOML that `load_config` reads back, every key with its value."""
    lines = []
    for section in fields(config):
        values = getattr(config, section.name)
        lines.append(f"# {' '.join((type(values).__doc__ or '').split())}\n[{section.name}]")
        for key in fields(values):
            value = getattr(values, key.name)
            lines.append(f"{key.name} = {_rendered(value)}  # default {_rendered(key.default)}")
        lines.append("")
    return "\n".join(lines)


def _rendered(value: Any) -> str:
    """As TOML. Of strings, JSON's escapes are among TOML's, but DEL is no character of TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read_document(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(str(path), f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(str(path), f"is not TOML: {error}") from error


def _read_section(
    section: str, section_type: type, *, values: dict[str, Any], environment: Mapping[str, str]
) -> object:
    hints = get_type_hints(section_type)
    for key in values:
        if key not in hints:
            raise ConfigurationError(f"[{section}] {key}", "unknown key")
    read = {key: _typed(section, key, values[key], hints[key]) for key in values}
    prefix = f"NEARHIT_{section.upper()}_"
    for variable in environment:
        if variable.startswith(prefix) and variable.removeprefix(prefix).lower() not in hints:
            raise ConfigurationError(variable, f"names no key of [{section}]")
    for key, hint in hints.items():
        variable = f"NEARHIT_{section.upper()}_{key.upper()}"
        if variable in environment:
            read[key] = _parsed(variable, environment[variable], hint)
    return section_type(**read)


def _typed(section: str, key: str, value: Any, hint: type) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigurationError(f"[{section}] {key}", f"must be {hint.__name__}, is {value!r}")
    return value


def _parsed(variable: str, text: str, hint: type) -> Any:
    if hint is bool:
        if text not in ("true", "false"):
            raise ConfigurationError(variable, f"must be true or false, is {text!r}")
        return text == "true"
    try:
        return hint(text)
    except ValueError as error:
        raise ConfigurationError(variable, f"must be {hint.__name__}, is {text!r}") from error
