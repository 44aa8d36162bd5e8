"""A random history of changes, builds and reopenings against a dict."""

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from index_rows import ENCODER, encode, exact_distances, make_rows, nearest_ids, unit_vectors

from index import (
    NEVER,
    Changes,
    IndexConfig,
    PathUnavailableError,
    Rows,
    SearchPath,
    SearchRequest,
    SegmentKey,
    VectorIndex,
    build_generation,
    check_generation,
    current_generation,
    open_generation,
    vector_index,
)

CONFIG = IndexConfig(
    code_bits=70,
    label_bits=64,
    candidate_count=1_000,
    exact_count=64,
    cascade_min_rows=0,
    probe_count=99,
    lists_min_rows=6,
    rows_per_list=3,
)
NO_LISTS = replace(CONFIG, lists_min_rows=1_000)
KEYS = [SegmentKey(1, "text", ENCODER), SegmentKey(1, "text", None), SegmentKey(2, "text", ENCODER)]
IDS = st.integers(0, 25)
IN_MEMORY = Path("/dev/shm")  # where the system has it: a build waits for the disk
TIMES = st.sampled_from([10, 20, 30, NEVER])


@dataclass
class ModelRow:
    key: SegmentKey
    rows: Rows  # one row, as stored
    expire_time: int

    def current(self):
        columns = self.rows.columns | {"expire_times": np.array([self.expire_time])}
        return Rows.from_columns(columns, payloads=self.rows.payloads)


class IndexMachine(RuleBasedStateMachine):
    @initialize(
        compact_min_dead=st.sampled_from([0, 3, vector_index.COMPACT_MIN_DEAD]), with_rows=st.booleans()
    )
    def start(self, compact_min_dead, with_rows):
        self.usual_min_dead = vector_index.COMPACT_MIN_DEAD
        vector_index.COMPACT_MIN_DEAD = compact_min_dead
        self.root = Path(tempfile.mkdtemp(dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
        self.index = VectorIndex(CONFIG)
        self.model: dict[int, ModelRow] = {}
        self.history: list[Changes] = []
        self.now_ms = 0
        self.seed = 0
        if with_rows:
            for key in KEYS:
                self.upsert_rows(key, [entry_id for entry_id in range(26) if KEYS[entry_id % 3] is key], 30)

    def teardown(self):
        if hasattr(self, "root"):
            shutil.rmtree(self.root)
            vector_index.COMPACT_MIN_DEAD = self.usual_min_dead

    def apply(self, **fields):
        changes = Changes(seq=len(self.history) + 1, **fields)
        self.history.append(changes)
        self.index.apply(changes)

    @rule(key=st.sampled_from(KEYS), ids=st.lists(IDS, unique=True, min_size=1, max_size=6), time=TIMES)
    def upsert(self, key, ids, time):
        self.upsert_rows(key, ids, time)

    def upsert_rows(self, key, ids, time):
        self.seed += 1
        rows = make_rows(
            ids,
            seed=self.seed,
            with_codes=key.encoder_id is not None,
            expire_times=np.full(len(ids), time),
            scopes=np.array([entry_id % 2 for entry_id in ids], dtype=np.uint64),
            fingerprints=np.array([[entry_id % 7, self.seed % 3] for entry_id in ids], dtype=np.uint64),
            payloads=[f"{entry_id} of {self.seed}".encode() for entry_id in ids],
        )
        for offset, entry_id in enumerate(ids):
            self.model[entry_id] = ModelRow(key, rows.take(np.array([offset])), time)
        self.apply(upserts=((key, rows),))

    @rule(ids=st.lists(IDS, unique=True, max_size=6))
    def delete(self, ids):
        for entry_id in ids:
            self.model.pop(entry_id, None)
        self.apply(deleted_ids=np.array(ids, dtype=np.int64))

    @rule(times=st.dictionaries(IDS, TIMES, max_size=6))
    def set_expire_times(self, times):
        for entry_id, time in times.items():
            if entry_id in self.model:
                self.model[entry_id].expire_time = time
        self.apply(
            expire_ids=np.array(list(times), dtype=np.int64),
            expire_times=np.array(list(times.values()), dtype=np.int64),
        )

    @rule(step_ms=st.sampled_from([5, 10]))
    def advance(self, step_ms):
        self.now_ms += step_ms

    @rule(
        with_graph=st.booleans(),
        with_lists=st.booleans(),
        memory_limit_bytes=st.sampled_from([1, 5_000, 1 << 30, 1 << 30]),
        swaps=st.sampled_from([True, True, False]),
    )
    def seal(self, with_graph, with_lists, memory_limit_bytes, swaps):
        """Build from the live rows; a server may notice later, at the next swap or restart."""
        build_generation(
            self.root,
            cache="model",
            config=CONFIG if with_lists else NO_LISTS,
            batches=[(row.key, row.current()) for row in self.model.values()],
            watermark=len(self.history),
            with_graph=with_graph,
            memory_limit_bytes=memory_limit_bytes,
        )
        if swaps:
            self.open_current()

    @rule()
    def fail_to_seal(self):
        """A build that dies leaves the current generation as it was."""
        before = current_generation(self.root)

        def batches():
            yield from [(row.key, row.current()) for row in self.model.values()][:3]
            raise InterruptedError

        with pytest.raises(InterruptedError):
            build_generation(
                self.root,
                cache="model",
                config=CONFIG,
                batches=batches(),
                watermark=len(self.history),
                with_graph=False,
                memory_limit_bytes=1,
            )
        assert current_generation(self.root) == before

    @rule()
    def crash_and_restart(self):
        self.open_current()

    def open_current(self):
        """Open the current generation, which may lie behind, and apply what came since; forget the rest."""
        name = current_generation(self.root)
        if name is None:
            self.index = VectorIndex(CONFIG)
        else:
            self.index = open_generation(self.root, name, config=CONFIG, cache="model")
        for changes in self.history[self.index.applied_seq :]:
            self.index.apply(changes)

    @rule()
    def drop_category(self):
        """Once in a while a category goes: the store deletes its rows, the index forgets them at once."""
        gone = [entry_id for entry_id, row in self.model.items() if row.key.category_id == 2]
        for entry_id in gone:
            del self.model[entry_id]
        self.apply(deleted_ids=np.array(gone, dtype=np.int64))
        self.index.drop_category(2)

    @invariant()
    def current_generation_is_sound(self):
        name = current_generation(self.root)
        assert name is None or check_generation(self.root, name) == []

    @invariant()
    def ids_equal_the_model(self):
        assert self.index.live_ids().tolist() == sorted(self.model)

    @invariant()
    def whole_rows_equal_the_model(self):
        found = {}
        for key, rows in self.index.rows_of(np.arange(40)):
            for offset, entry_id in enumerate(rows.entry_ids.tolist()):
                assert entry_id not in found
                found[entry_id] = key, rows.take(np.array([offset]))
        assert sorted(found) == sorted(self.model)
        for entry_id, (key, rows) in found.items():
            expected = self.model[entry_id].current()
            assert (key, rows.payloads) == (self.model[entry_id].key, expected.payloads)
            assert rows.columns.keys() == expected.columns.keys()
            for name, column in rows.columns.items():
                np.testing.assert_array_equal(column, expected.columns[name])

    @invariant()
    def searches_equal_brute_force(self):
        query = unit_vectors(1, seed=1000 + self.seed)[0]
        for partition in ((1, "text"), (2, "text")):
            rows = [row for row in self.model.values() if row.key.partition == partition]
            if not rows:
                continue
            ids = np.array([int(row.rows.entry_ids[0]) for row in rows])
            vectors = np.concatenate([row.rows.vectors for row in rows])
            for scope in (None, 1):
                live = np.array(
                    [self.is_live(row) and (scope is None or ids[i] % 2) for i, row in enumerate(rows)]
                )
                expected = nearest_ids(ids, exact_distances(vectors, query), k=8, live=live.astype(bool))
                for path in (None, *SearchPath):
                    self.check_search(partition, query, scope=scope, path=path, expected=expected)

    def check_search(self, partition, query, *, scope, path, expected):
        """Against brute force; a path that no segment has is refused, and only then."""
        asked = SearchRequest(
            partitions=(partition,),
            vector=query,
            codes={ENCODER: encode(query[None])[0]},
            k=8,
            now_ms=self.now_ms,
            scope=scope,
            threshold=2.0,
            radii={ENCODER: {64: 64, 70: 70}},
            path=path,
        )
        try:
            result = self.index.search(asked)
        except PathUnavailableError:
            assert not self.has_path(partition, path)
            return
        assert [match.entry_id for match in result.matches] == expected
        for match in result.matches:
            assert match.payload == self.model[match.entry_id].rows.payloads[0]

    def has_path(self, partition, path):
        facts = [
            segment
            for part in self.index.facts().partitions
            if (part.category_id, part.modality) == partition
            for segment in part.segments
        ]
        has = {
            SearchPath.HNSW: any(segment.has_graph for segment in facts),
            SearchPath.IVF: any(segment.sizes_bytes.get("lists", 0) for segment in facts),
        }
        return has.get(path, path in (None, SearchPath.EXACT) or any(self.codes_of(partition)))

    def codes_of(self, partition):
        views = [view for key, view in self.index.segment_views() if key.partition == partition]
        return [view.codes is not None and view.row_count > 0 for view in views]

    @invariant()
    def fingerprints_equal_the_model(self):
        for partition in ((1, "text"), (2, "text")):
            for key in ((1, 0), (3, 1), (6, 2)):
                having = [
                    entry_id
                    for entry_id, row in self.model.items()
                    if row.key.partition == partition
                    and self.is_live(row)
                    and tuple(row.rows.fingerprints[0].tolist()) == key
                ]
                match = self.index.find_fingerprint(partition, key, now_ms=self.now_ms)
                assert (match is None) == (not having)
                assert match is None or match.entry_id in having

    def is_live(self, row):
        return self.now_ms < row.expire_time


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
