"""A whole forgetting: generations, database files, servers that run meanwhile, and the report of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from forgotten_rows_at_work import build, bytes_under, encoder_of, forget_all, learned_names, put, record_of
from forgotten_rows_at_work import forget as forget_in_store
from learning_rows import DIM, activate, active_id, learn, train
from sqlalchemy import Engine
from store_rows import StoreCache, make_cache, second_engine

from hashing.crossmodal_config import CrossModalConfig, KernelSettings
from index.manifest import build_lock, current_generation, generation_numbers
from service import erasure, registry, store, tables
from service.check import check_cache
from service.compaction import build_reason
from service.config import Config, RefreshConfig, StoreConfig
from service.crossmodal_learning import train_crossmodal_from_store
from service.database import migrate, open_engine, reading, writing
from service.errors import PreconditionError
from service.forget_proof import code_bits_changed, read_codes
from service.forget_report import preview_forgetting
from service.forgetting import ForgetSelection
from service.records import ModalitySpec
from service.replica import CacheReplica, index_root
from service.rows import read_cache

NAMES = tuple(f"n{i}" for i in range(30))


@pytest.fixture
def config(tmp_path: Path, config_of: Callable[[StoreConfig], Config]) -> Config:
    """Where the generations lie."""
    made = config_of(StoreConfig(url="sqlite:///unused", data_dir=str(tmp_path / "var")))
    return replace(made, refresh=RefreshConfig(feed_seconds=0.001))


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """An empty cache, on each database."""
    return make_cache(shared_engine, dim=DIM)


@pytest.fixture
def lone_cache(tmp_path: Path) -> StoreCache:
    """A cache of a SQLite database of its own."""
    engine = open_engine(StoreConfig(url=f"sqlite:///{tmp_path}/nearhit.db"))
    migrate(engine)
    return make_cache(engine, dim=DIM)


def taught(cache: StoreCache, config: Config) -> Path:
    """Rows n0 to n29 that the active encoder has learned, most of them, in a generation; where it lies."""
    faq = cache.category("faq")
    put(cache, faq, "a", *NAMES[:15])
    put(cache, faq, "b", *NAMES[15:])
    activate(cache, train(cache).encoder_id)
    build(cache, config)
    return index_root(config.store.data_dir, cache.id)


def replica_of(cache: StoreCache, config: Config) -> CacheReplica:
    return CacheReplica(cache.engine, record_of(cache), search=config.search, data_dir=config.store.data_dir)


def served_names(replica: CacheReplica) -> set[int]:
    return set(replica.state.index.live_ids().tolist())


def test_a_report_proves_itself(cache: StoreCache, config: Config) -> None:
    root = taught(cache, config)
    before, gone = str(active_id(cache)), learned_names(cache)[0]
    report = forget_all(cache, config, gone, prove=True)
    assert report.problems == ()
    assert (report.changes.entry_count, report.changes.renewed) == (1, {before: report.active_encoder})
    assert report.max_difference is not None and report.max_difference < 1e-4
    assert (report.query_bits_changed, report.code_bits_changed) == (0, 0)
    assert [own.row_count for own in report.proofs] == [len(learned_names(cache))]
    assert report.files is not None
    assert (report.files.removed, report.files.built) == (("gen-00000001",), "gen-00000002")
    assert [generation_numbers(root), current_generation(root)] == [[2], "gen-00000002"]
    assert active_id(cache) in report.kept.encoders and before not in report.kept.encoders
    assert check_cache(cache.engine, cache.name, config).problems == ()
    json.dumps(asdict(report))


def test_a_preview_touches_no_file(cache: StoreCache, config: Config) -> None:
    root = taught(cache, config)
    before = bytes_under(root)
    report = preview_forgetting(cache.engine, cache.name, ForgetSelection(names=("n0",)))
    assert (report.changes.entry_count, report.files, bytes_under(root)) == (1, None, before)


def test_no_generation_is_built_where_there_was_none(cache: StoreCache, config: Config) -> None:
    put(cache, cache.category("faq"), "", "n0", "n1")
    report = forget_all(cache, config, "n0")
    assert report.files is not None
    assert (report.files.removed, report.files.built, report.problems) == ((), "", ())
    assert not index_root(config.store.data_dir, cache.id).exists()


def test_a_generation_of_before_that_is_put_back_is_refused_and_removed(
    cache: StoreCache, config: Config, tmp_path: Path
) -> None:
    root = taught(cache, config)
    shutil.copytree(root, tmp_path / "backup")
    gone = next(row for row in cache.entries() if row.name == "n0")
    forget_all(cache, config, "n0")
    shutil.rmtree(root)
    shutil.copytree(tmp_path / "backup", root)
    assert "may hold forgotten rows" in "".join(check_cache(cache.engine, cache.name, config).problems)
    replica = replica_of(cache, config)
    assert replica.refusal is not None
    assert gone.id not in served_names(replica)
    replica.remove_dropped_generations()
    assert generation_numbers(root) == []
    assert build(cache, config) == "gen-00000002"  # no name comes twice


def test_rows_forgotten_during_a_build_are_not_in_its_generation(cache: StoreCache, config: Config) -> None:
    root = taught(cache, config)
    pending = ["n0"]

    def forget_meanwhile(stage: str, _done: int, _total: int) -> None:
        if stage == "verify" and pending:
            forget_in_store(replace(cache, engine=elsewhere), names=[pending.pop()])

    elsewhere = second_engine(cache.engine)
    name = build(cache, config, progress=forget_meanwhile)
    elsewhere.dispose()
    assert (name, current_generation(root), generation_numbers(root)) == (name, name, [int(name[-1])])
    assert b"answer n0" not in bytes_under(root)
    assert b"answer n1" in bytes_under(root)
    assert check_cache(cache.engine, cache.name, config).problems == ()


def test_a_build_that_never_gets_past_a_forgetting_gives_up(cache: StoreCache, config: Config) -> None:
    root = taught(cache, config)
    names = iter(NAMES)
    elsewhere = second_engine(cache.engine)

    def forget_meanwhile(stage: str, _done: int, _total: int) -> None:
        if stage == "verify":
            forget_in_store(replace(cache, engine=elsewhere), names=[next(names)])

    with pytest.raises(PreconditionError) as raised:
        build(cache, config, progress=forget_meanwhile)
    elsewhere.dispose()
    assert raised.value.reason == "GENERATION_DROPPED"
    assert generation_numbers(root) == []


def test_a_build_of_another_process_is_waited_for_and_named(
    cache: StoreCache, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = taught(cache, config)
    monkeypatch.setattr(erasure, "_RETRY_SECONDS", 0.0)
    erase = partial(
        erasure.erase_generations,
        cache.engine,
        record_of(cache),
        config,
        with_graph=False,
        clock=lambda: 5,
        progress=lambda *_: None,
    )
    (root / "building-00000009").mkdir()
    with build_lock(root):
        assert "run this again" in erase(wait_seconds=0.0).problems[0]
        assert (root / "building-00000009").exists()
    assert erase(wait_seconds=0.0).problems == ()
    assert not (root / "building-00000009").exists()


def test_an_interrupted_forgetting_is_finished_by_the_next(cache: StoreCache, config: Config) -> None:
    root = taught(cache, config)
    forget_in_store(cache, names=["n0"])  # and then the process dies
    assert b"answer n0" in bytes_under(root)
    report = forget_all(cache, config, "n0")
    assert report.changes.selects_nothing
    assert report.files is not None and report.files.removed == ("gen-00000001",)
    assert (generation_numbers(root), report.problems) == ([2], ())
    assert b"answer n0" not in bytes_under(root)


def test_a_generation_that_was_removed_without_a_new_one_is_built_by_the_next_run(
    cache: StoreCache, config: Config
) -> None:
    root = taught(cache, config)
    forget_in_store(cache, names=["n0"])
    shutil.rmtree(root / "gen-00000001")
    report = forget_all(cache, config, "n0")
    assert report.files is not None and report.files.built == "gen-00000002"


def test_a_replica_elsewhere_removes_its_generations_and_asks_for_a_new_one(
    cache: StoreCache, config: Config, tmp_path: Path
) -> None:
    taught(cache, config)
    far = replace(config, store=replace(config.store, data_dir=str(tmp_path / "far")))
    build(cache, far)
    replica = replica_of(cache, far)
    replica.remove_dropped_generations()
    assert (replica.serves_dropped, build_reason(replica, far.compaction)) == (False, None)
    gone = next(row for row in cache.entries() if row.name == "n0")
    forget_all(cache, config, "n0")
    replica.refresh_settings()
    replica.catch_up()
    replica.remove_dropped_generations()
    root = index_root(far.store.data_dir, cache.id)
    assert (generation_numbers(root), replica.serves_dropped) == ([], True)
    assert build_reason(replica, far.compaction) == "rows of its generation were forgotten"
    assert gone.id not in served_names(replica) and len(served_names(replica)) == 29
    build(cache, far)
    assert replica.open_new_generation()
    replica.remove_dropped_generations()
    assert (replica.serves_dropped, build_reason(replica, far.compaction)) == (False, None)


def test_generations_of_another_store_are_not_a_replicas_to_remove(cache: StoreCache, config: Config) -> None:
    root = taught(cache, config)
    with writing(cache.engine) as connection:
        of_cache = tables.generations.c.cache_id == cache.id
        connection.execute(tables.generations.delete().where(of_cache))
    replica = replica_of(cache, config)
    replica.remove_dropped_generations()
    assert generation_numbers(root) == [1]
    forget_all(cache, config, "n0")  # who forgets has named this folder
    assert generation_numbers(root) == [2]


def test_nothing_of_a_forgotten_entry_is_left_in_any_file(
    lone_cache: StoreCache, config: Config, tmp_path: Path
) -> None:
    cache = lone_cache
    taught(cache, config)
    faq = next(iter(cache.categories()))
    draw = np.random.default_rng(0)
    for _ in range(6):  # rows that grow when they are coded, and move between pages
        put(cache, faq, "", *(draw.bytes(8).hex() + "x" * (i % 30) for i in range(60)), tags=("t",))
        build(cache, config)
    put(cache, faq, "c", *(draw.bytes(8).hex() for _ in range(12)), tags=("t",), coded=True)
    learn(cache)
    rows = [row for row in cache.entries() if row.tags]
    gone = [row for row in rows if row.name in learned_names(cache)][::2] + rows[::9]
    kept = [row for row in cache.entries() if row not in gone]
    cache.mutate(partial(store.invalidate, selection=store.Selection(names=(gone[0].name,))))
    assert all(row.vector in bytes_under(tmp_path) for row in gone)
    report = forget_all(cache, config, *(row.name for row in gone), prove=True)
    assert report.problems == ()
    left = bytes_under(tmp_path)
    for row in gone:
        found = [part in left for part in (row.vector, row.text.encode(), row.response, row.name.encode())]
        assert found == [False] * 4
    assert all(row.vector in left for row in kept)
    assert (tmp_path / "nearhit.db-wal").stat().st_size == 0
    assert check_cache(cache.engine, cache.name, config).problems == ()


def test_a_reader_that_holds_the_log_is_named(
    lone_cache: StoreCache, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "CHECKPOINT_WAIT_SECONDS", 0.0)
    put(lone_cache, lone_cache.category("faq"), "", "n0")
    reader = second_engine(lone_cache.engine)
    with reading(reader) as connection:
        read_cache(connection, lone_cache.name)
        report = forget_all(lone_cache, config, "n0", rewrite=False)
    reader.dispose()
    assert "write-ahead log" in report.problems[0]
    assert any("not rewritten" in note for note in report.notes)
    assert forget_all(lone_cache, config, "n0").problems == ()


def test_the_database_file_is_written_anew_unless_it_shall_not(
    lone_cache: StoreCache, config: Config
) -> None:
    """Moved rows leave copies that `secure_delete` does not know; a file written anew has no room for any."""
    put(lone_cache, lone_cache.category("faq"), "", *NAMES, text="long " * 1000)

    def free_pages() -> int:
        with lone_cache.engine.connect() as connection:
            return int(connection.exec_driver_sql("PRAGMA freelist_count").scalar_one())

    forget_all(lone_cache, config, *NAMES[:20], rewrite=False)
    assert free_pages() > 0
    forget_all(lone_cache, config, "n0")
    assert free_pages() == 0


def test_changed_code_bits_are_counted(lone_cache: StoreCache, config: Config) -> None:
    taught(lone_cache, config)
    record = record_of(lone_cache)
    with reading(lone_cache.engine) as connection:
        before = read_codes(connection, record)
    row = lone_cache.entries()[3]
    assert row.code is not None
    with writing(lone_cache.engine) as connection:
        other = bytes([row.code[0] ^ 0b101]) + row.code[1:]
        columns = tables.entries.c
        connection.execute(tables.entries.update().where(columns.id == row.id).values(code=other))
        changed = {"code": None, "label_code": None}
        connection.execute(tables.entries.update().where(columns.id == row.id + 1).values(**changed))
    with reading(lone_cache.engine) as connection:
        after = read_codes(connection, record)
    assert code_bits_changed(before, after, code_bits=record.code_bits) == 2
    assert code_bits_changed(before, before, code_bits=record.code_bits) == 0


def test_rows_of_a_second_modality_are_subtracted_and_proved(lone_cache: StoreCache, config: Config) -> None:
    with writing(lone_cache.engine) as connection:
        made = registry.create_cache(
            connection,
            "art",
            modalities={"text": ModalitySpec(dim=DIM), "image": ModalitySpec(dim=DIM)},
            code_bits=128,
            label_bits=64,
            description="",
            now_ms=0,
        )
    art = StoreCache(lone_cache.engine, "art", made.id)
    faq = art.category("faq")
    for modality in ("text", "image"):
        for label in "ab":
            put(art, faq, label, *(f"{modality}-{label}{i}" for i in range(20)), modality=modality)
    small = CrossModalConfig(
        code_bits=128,
        label_bits=64,
        itq_iterations=2,
        function_feature_count=64,
        label_feature_count=32,
        kernels={modality: KernelSettings(gamma=1.0, ridge=0.01) for modality in ("text", "image")},
    )
    trained = train_crossmodal_from_store(art.engine, "art", config=small, progress=None, now_ms=1).encoder_id
    activate(art, trained)
    of_text, of_image = (
        [name for name in learned_names(art) if name.startswith(modality)] for modality in ("text", "image")
    )
    assert encoder_of(art).label_modalities == ("text", "image")
    forget_in_store(art, names=of_text[:1])
    assert encoder_of(art).label_modalities == ("text", "image")
    report = forget_all(art, config, *of_image[:2], prove=True)
    assert encoder_of(art).label_modalities == ("text", "image")
    assert learned_names(art) == sorted((*of_text[1:], *of_image[2:]))
    assert [(own.modality, own.row_count) for own in report.proofs] == [
        ("text", len(of_text) - 1),
        ("image", len(of_image) - 2),
    ]
    assert (report.problems, report.query_bits_changed, report.code_bits_changed) == ((), 0, 0)
    report = forget_all(art, config, *of_text, prove=True)
    assert ([own.modality for own in report.proofs], report.problems) == (["image"], ())
    forget_in_store(art, names=of_image)
    assert (encoder_of(art).label_modalities, learned_names(art)) == ((), [])
    assert encoder_of(art).can_cross("text", target="image")
