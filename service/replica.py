"""One cache as this process serves it: settings, encoders and index, brought up to the store's feed."""

import logging
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlalchemy import Connection, Engine, select

from hashing.checkpoint import load_encoder
from hashing.errors import HashingError
from hashing.inference import Encoder
from hashing.verifier import Verifier
from index.config import IndexConfig
from index.errors import DamagedFileError, DamagedGenerationError, IndexFault
from index.manifest import current_generation, open_generation, read_manifest
from index.rows import Rows, SegmentKey
from index.sealed_segment import SealedSegment
from index.vector_index import VectorIndex
from service.coding import EncoderSet
from service.config import SearchConfig
from service.database import reading
from service.decision_rules import DecisionRule
from service.dropped_generations import is_dropped, remove_dropped
from service.embedder_maps import ServedMap, read_served_maps
from service.errors import NotCaughtUpError, NotFoundError
from service.false_hits import FalseHits
from service.feed import FeedPage, FeedPrunedError, read_changes
from service.records import CacheRecord, CategoryRecord
from service.registry import ACTIVE
from service.row_scan import scan_segment_rows
from service.rows import (
    category_not_found,
    read_cache_by_id,
    read_categories,
    read_verifiers,
    read_weights,
)
from service.stand_ins import stand_ins
from service.tables import caches, calibrations, generations
from service.verifiers import load_stored_verifier

logger = logging.getLogger(__name__)


class ForeignGenerationError(Exception):
    """A generation is of another store, or of a later state of this one than the store is in now."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A generation on disk that is not served. `is_damaged`: its files are; otherwise they are sound, and
    another one would not serve this store better."""

    generation: str
    is_damaged: bool


@dataclass(frozen=True, slots=True)
class CacheState:
    """What a request works on: one reference, never changed, only replaced.

    verifiers: the active one of each space, but for those that cannot be loaded. maps: by the space of the
    queries that they map, likewise. rules, false_hits: by row id of the category, where there are any.
    """

    record: CacheRecord
    categories: Mapping[str, CategoryRecord]
    category_names: Mapping[int, str]
    encoders: EncoderSet
    index: VectorIndex
    verifiers: Mapping[str, Verifier] = field(default_factory=dict)
    maps: Mapping[str, ServedMap] = field(default_factory=dict)
    rules: Mapping[int, DecisionRule] = field(default_factory=dict)
    false_hits: Mapping[int, FalseHits] = field(default_factory=dict)

    def category(self, name: str) -> CategoryRecord:
        """The category of that name. Raises: NotFoundError."""
        found = self.categories.get(name)
        if found is None:
            raise category_not_found(self.record.name, name)
        return found


def index_config(record: CacheRecord, search: SearchConfig) -> IndexConfig:
    """The index's settings for one cache."""
    return IndexConfig(
        code_bits=record.code_bits,
        label_bits=record.label_bits,
        exact_limit=search.exact_limit,
        scan_limit=search.scan_limit,
        candidate_count=search.candidate_count,
        candidates_per_result=search.candidates_per_result,
        exact_count=search.exact_count,
        cascade_min_rows=search.cascade_min_rows,
        lists_min_rows=search.lists_min_rows,
        probe_count=search.probe_count,
        list_recall=search.list_recall,
    )


def generation_owner(record: CacheRecord, token: str) -> str:
    """What a generation's files say they are of: the cache, and the build as the store lists it."""
    return f"{record.name}:{token}"


def is_listed(connection: Connection, record: CacheRecord, owner: str) -> bool:
    """Whether the store knows of the build and stands by it: not where the files are of another store or of a
    later state, or may hold rows that were forgotten."""
    name, _, token = owner.partition(":")
    query = select(generations.c.token).where(
        generations.c.cache_id == record.id,
        generations.c.token == token,
        generations.c.dropped_ms.is_(None),
    )
    return name == record.name and connection.execute(query).first() is not None


def index_root(data_dir: str, cache_id: int) -> Path:
    """Where a cache's generations lie; by row id, which is never used again, unlike a name."""
    return Path(data_dir) / "index" / str(cache_id)


class CacheReplica:
    """Follows the feed of one cache. Readers take `state`; one thread at a time changes it."""

    def __init__(self, engine: Engine, record: CacheRecord, *, search: SearchConfig, data_dir: str) -> None:
        """Load the current generation, or the entries where there is none, and catch up with the feed.

        Raises:
            StoreUnavailableError: the database cannot be reached.
        """
        self._engine = engine
        self._search = search
        self.root = index_root(data_dir, record.id)
        self._lock = threading.Lock()  # guards every replacement of state
        self._advanced = threading.Condition()
        self.refusal: Refusal | None = None  # of the current generation
        self.serves_dropped = False  # its generation holds forgotten rows, as tombstones: a new one is due
        self._served_owner = ""  # what the files of the served generation say they are of
        self._dropped_at: tuple[int, str | None] | None = None  # when dropped generations were looked for
        with reading(engine) as connection:
            empty = VectorIndex(index_config(record, search))
            self.state = self._read_settings(connection, CacheState(record, {}, {}, EncoderSet(), empty))
        # Nothing is served yet that all processors could be taken from.
        if not self.open_new_generation(threads=_processor_count()):
            self._rebuild()
        self.catch_up()

    def catch_up(self) -> None:
        """Apply what the feed holds beyond the index. Raises: StoreUnavailableError."""
        with self._lock:
            try:
                with reading(self._engine) as connection:
                    self._follow(connection, self.state.index)
            except FeedPrunedError as error:  # also after the store was restored from an older backup
                logger.warning("rebuilding the index of %s: %s", self.state.record.name, error)
                self._rebuild_locked()
        with self._advanced:
            self._advanced.notify_all()

    def refresh_settings(self) -> None:
        """Read settings, categories and encoders again. Raises: StoreUnavailableError, NotFoundError."""
        with self._lock, reading(self._engine) as connection:
            self.state = self._read_settings(connection, self.state)

    def use_rules(self, rules: Mapping[int, DecisionRule], false_hits: Mapping[int, FalseHits]) -> None:
        """Decide by these from now on."""
        with self._lock:
            self.state = replace(self.state, rules=rules, false_hits=false_hits)

    def open_new_generation(self, *, threads: int = 1) -> bool:
        """Serve the current generation if it is not the one served; False where there is none to open.

        threads: to load it with. A generation that is damaged, or not of this store, is refused by name,
        once, and what is served stays.
        """
        name = self._name_to_open()
        if name is None:
            return False
        try:
            # Without the lock: writes must not wait for files.
            opened, owner = self._load_generation(name, threads=threads)
            record = self.state.record
            with reading(self._engine) as connection:
                while (page := read_changes(connection, record, after=opened.applied_seq)) is not None:
                    opened.apply(page.changes)
            with self._lock, reading(self._engine) as connection:
                self._follow(connection, opened)
                state = replace(self.state, index=opened)
                self._load_encoders(connection, opened.encoder_ids(opened.partitions))
                self.state = self._read_settings(connection, replace(state, encoders=self.state.encoders))
                _drop_partitions(opened, self.state)
        except (IndexFault, ForeignGenerationError, FeedPrunedError, HashingError) as error:
            self._refuse(name, str(error), is_damaged=isinstance(error, DamagedFileError))
            return False
        self.refusal = None
        self._served_owner, self._dropped_at = owner, None
        logger.info("serving generation %s of %s", name, self.state.record.name)
        return True

    def remove_dropped_generations(self) -> None:
        """Remove generations that may hold forgotten rows; one that is served goes on until the next one.

        Looks only where settings or generation have changed since the last time, as a forgetting changes
        them. Raises: StoreUnavailableError, NotFoundError, OSError.
        """
        look = (self.state.record.config_version, self.state.index.generation)
        if look == self._dropped_at:
            return
        with reading(self._engine) as connection:
            removed = remove_dropped(connection, self.state.record, self.root)
            is_served = self.state.index.generation is not None
            self.serves_dropped = is_served and is_dropped(
                connection, self.state.record.id, self._served_owner
            )
        self._dropped_at = look
        for name in removed:
            logger.info("removed generation %s of %s: rows were forgotten", name, self.state.record.name)

    def rebuild(self) -> None:
        """Serve a new index of the entries, without a generation. Raises: StoreUnavailableError."""
        self._rebuild()
        self.serves_dropped = False

    def remove_files(self) -> None:
        """Remove the generations of a cache that was deleted; what is being served stays mapped."""
        shutil.rmtree(self.root, ignore_errors=True)

    def wait_for(self, seq: int, *, timeout_seconds: float) -> None:
        """Return once the index holds `seq`. Raises: NotCaughtUpError."""
        if self.state.index.applied_seq >= seq:
            return
        with self._advanced:
            reached = self._advanced.wait_for(
                lambda: self.state.index.applied_seq >= seq, timeout=timeout_seconds
            )
        if not reached:
            raise NotCaughtUpError(
                f"the replica is at seq {self.state.index.applied_seq}, {seq} was asked for",
                seq=self.state.index.applied_seq,
            )

    def _name_to_open(self) -> str | None:
        """The current generation, unless it is served already or was refused."""
        refused = None if self.refusal is None else self.refusal.generation
        try:
            name = current_generation(self.root)
        except DamagedGenerationError as error:
            if refused != str(error):
                self._refuse(str(error), "there is none to open", is_damaged=True)
            return None
        if name == self.state.index.generation:
            self.refusal = None
            return None
        return None if name == refused else name

    def _load_generation(self, name: str, *, threads: int) -> tuple[VectorIndex, str]:
        """The generation's index as it was built, and what its files say they are of.

        Raises: IndexFault, ForeignGenerationError.
        """
        owner = read_manifest(self.root, name).cache
        with reading(self._engine) as connection:
            if not is_listed(connection, self.state.record, owner):
                path = self.root / name
                raise ForeignGenerationError(f"{path}: was not built from this store as it is now")
        config = index_config(self.state.record, self._search)
        return open_generation(self.root, name, config=config, cache=owner, threads=threads), owner

    def _refuse(self, name: str, reason: str, *, is_damaged: bool) -> None:
        logger.error("generation %s of %s is refused: %s", name, self.state.record.name, reason)
        self.refusal = Refusal(name, is_damaged)
        self._dropped_at = None  # it may be one that was dropped during its build

    def _follow(self, connection: Connection, index: VectorIndex) -> None:
        while (page := read_changes(connection, self.state.record, after=index.applied_seq)) is not None:
            self._apply(connection, index, page)

    def _apply(self, connection: Connection, index: VectorIndex, page: FeedPage) -> None:
        self._load_encoders(connection, page.encoder_ids)
        index.apply(page.changes)

    def _rebuild(self) -> None:
        with self._lock:
            self._rebuild_locked()

    def _rebuild_locked(self) -> None:
        """Fill a new index from the entries and swap it in."""
        with reading(self._engine) as connection:
            record = read_cache_by_id(connection, self.state.record.id)
        parts: dict[SegmentKey, list[Rows]] = defaultdict(list)
        with reading(self._engine) as connection:
            for _, batches in scan_segment_rows(connection, record):
                for key, rows in batches:
                    parts[key].append(rows)
            sealed = [SealedSegment(key, Rows.concatenate(parts.pop(key))) for key in list(parts)]
            self._load_encoders(connection, [segment.key.encoder_id for segment in sealed])
            config = index_config(self.state.record, self._search)
            index = VectorIndex(config, sealed=sealed, watermark=record.seq)
            self._follow(connection, index)
        self.state = replace(self.state, index=index)

    def _read_settings(self, connection: Connection, state: CacheState) -> CacheState:
        record = read_cache_by_id(connection, state.record.id)
        found = read_categories(connection, record.id)
        state = replace(
            state,
            record=record,
            categories={category.name: category for category in found},
            category_names={category.id: category.name for category in found},
            verifiers=self._read_verifiers(connection, record, state.verifiers),
            maps=read_served_maps(connection, record, state.maps),
        )
        _drop_partitions(state.index, state)
        # The ones that stored rows need, and the active one; earlier ones are let go.
        wanted = set(state.index.encoder_ids(state.index.partitions))
        if record.active_encoder_id is not None:
            wanted.add(record.active_encoder_id)
        return replace(state, encoders=self._read_encoders(connection, record, state.encoders, wanted))

    def _read_verifiers(
        self, connection: Connection, record: CacheRecord, known: Mapping[str, Verifier]
    ) -> dict[str, Verifier]:
        """The active verifiers by space. One that cannot be loaded is left out and named: a lookup that
        needs its consent is then a miss, everything else goes on."""
        loaded: dict[str, Verifier] = {}
        for verifier in read_verifiers(connection, record.id):
            if verifier.state != ACTIVE or verifier.modality not in record.modalities:
                continue
            served = known.get(verifier.modality)
            if served is not None and served.verifier_id == verifier.verifier_id:
                loaded[verifier.modality] = served
                continue
            try:
                loaded[verifier.modality] = load_stored_verifier(connection, record, verifier)
            except (HashingError, NotFoundError) as error:
                logger.warning("verifier %s of %s cannot serve: %s", verifier.verifier_id, record.name, error)
        return loaded

    def _load_encoders(self, connection: Connection, encoder_ids: Iterable[str | None]) -> None:
        """Have the encoders of rows at hand before the rows are served."""
        known = self.state.encoders
        missing = {encoder_id for encoder_id in encoder_ids if encoder_id is not None} - set(known.by_id)
        if missing:
            loaded = self._read_encoders(connection, self.state.record, known, missing | set(known.by_id))
            self.state = replace(self.state, encoders=loaded)

    def _read_encoders(
        self, connection: Connection, record: CacheRecord, known: EncoderSet, wanted: set[str]
    ) -> EncoderSet:
        """The wanted encoders by id; a destroyed one's place takes one that may search its codes."""
        loaded = {encoder.encoder_id: encoder for encoder in known.by_id.values()}
        taking_part = stand_ins(connection, record.id)
        by_id: dict[str, Encoder] = {}
        for encoder_id in sorted(wanted):
            serving_id = taking_part.get(encoder_id, encoder_id)
            if serving_id not in loaded:
                loaded[serving_id] = load_encoder(read_weights(connection, record.id, serving_id))
            by_id[encoder_id] = loaded[serving_id]
        pairs = select(calibrations.c.query_encoder_id, calibrations.c.segment_encoder_id).where(
            calibrations.c.cache_id == record.id
        )
        return EncoderSet(
            active=by_id.get(record.active_encoder_id or ""),
            by_id=by_id,
            trusted=frozenset((row[0], row[1]) for row in connection.execute(pairs)),
        )


def _drop_partitions(index: VectorIndex, state: CacheState) -> None:
    """Let go what is of categories and spaces that are no more."""
    partitions = index.partitions
    for category_id in {category_id for category_id, _ in partitions} - set(state.category_names):
        index.drop_category(category_id)
    for space in {space for _, space in partitions} - set(state.record.modalities):
        index.drop_modality(space)


def read_versions(connection: Connection) -> dict[str, tuple[int, int, int]]:
    """Per cache name: row id, config version, seq. Cheap enough to ask many times a second."""
    query = select(caches.c.name, caches.c.id, caches.c.config_version, caches.c.seq)
    return {row.name: (row.id, row.config_version, row.seq) for row in connection.execute(query)}


def _processor_count() -> int:
    """Processors that this process may use, as far as the system says."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
