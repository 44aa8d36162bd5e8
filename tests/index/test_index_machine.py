"""A random history of changes, builds and reopenings against a dict."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from index_rows import ENCODER, encode, exact_distances, make_rows, nearest_ids, unit_vectors

from index import (
    NEVER,
    Changes,
    IndexConfig,
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

CONFIG = IndexConfig(code_bits=70, label_bits=64, candidate_count=1000)
KEYS = [SegmentKey(1, "text", ENCODER), SegmentKey(1, "text", None), SegmentKey(2, "text", ENCODER)]
IDS = st.integers(0, 25)
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
    @initialize(compact_min_dead=st.sampled_from([0, 3, vector_index.COMPACT_MIN_DEAD]))
    def start(self, compact_min_dead):
        self.usual_min_dead = vector_index.COMPACT_MIN_DEAD
        vector_index.COMPACT_MIN_DEAD = compact_min_dead
        self.root = Path(tempfile.mkdtemp())
        self.index = VectorIndex(CONFIG)
        self.model: dict[int, ModelRow] = {}
        self.history: list[Changes] = []
        self.now_ms = 0
        self.seed = 0

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

    @rule(with_graph=st.booleans(), memory_limit_bytes=st.sampled_from([1, 5_000, 1 << 30]))
    def seal(self, with_graph, memory_limit_bytes):
        build_generation(
            self.root,
            cache="model",
            config=CONFIG,
            batches=[(row.key, row.current()) for row in self.model.values()],
            watermark=len(self.history),
            with_graph=with_graph,
            memory_limit_bytes=memory_limit_bytes,
        )
        self.reopen()

    @rule()
    def reopen(self):
        name = current_generation(self.root)
        if name is None:
            self.index = VectorIndex(CONFIG)
        else:
            assert check_generation(self.root, name) == []
            self.index = open_generation(self.root, name, config=CONFIG, cache="model")
        for changes in self.history[self.index.applied_seq :]:
            self.index.apply(changes)

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
                for path in (None, SearchPath.EXACT):
                    result = self.index.search(
                        SearchRequest(
                            partitions=(partition,),
                            vector=query,
                            codes={ENCODER: encode(query[None])[0]},
                            k=8,
                            now_ms=self.now_ms,
                            scope=scope,
                            path=path,
                        )
                    )
                    assert [match.entry_id for match in result.matches] == expected
                    for match in result.matches:
                        assert match.payload == self.model[match.entry_id].rows.payloads[0]

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
TestIndexMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
