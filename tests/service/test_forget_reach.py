"""What a forgetting reaches beyond the rows that it finds, and what its report says that it does not."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from forgotten_rows_at_work import build, bytes_under, forget_all, put, record_of
from forgotten_rows_at_work import forget as forget_in_store
from learning_rows import DIM, activate, active_id, encoders, train
from store_rows import StoreCache, make_cache

from hashing.crossmodal import train_crossmodal
from hashing.crossmodal_config import CrossModalConfig, KernelSettings
from index.manifest import generation_numbers
from service import crossmodal_learning, erasure, registry, store, tables
from service.check import check_cache
from service.config import Config, RefreshConfig, StoreConfig
from service.database import migrate, open_engine, writing
from service.errors import PreconditionError
from service.forget_report import preview_forgetting
from service.forgetting import ForgetSelection
from service.records import ModalitySpec
from service.replica import CacheReplica, index_root


@pytest.fixture
def config(tmp_path: Path, config_of: Callable[[StoreConfig], Config]) -> Config:
    """Where the generations lie."""
    made = config_of(StoreConfig(url="sqlite:///unused", data_dir=str(tmp_path / "var")))
    return replace(made, refresh=RefreshConfig(feed_seconds=0.001))


@pytest.fixture
def lone_cache(tmp_path: Path) -> StoreCache:
    """A cache of a SQLite database of its own."""
    engine = open_engine(StoreConfig(url=f"sqlite:///{tmp_path}/nearhit.db"))
    migrate(engine)
    return make_cache(engine, dim=DIM)


def teach(cache: StoreCache) -> None:
    """Labelled rows that the active encoder has learned, most of them."""
    faq = cache.category("faq")
    for label in "ab":
        put(cache, faq, label, *(f"{label}{i}" for i in range(10)))
    activate(cache, train(cache).encoder_id)


def test_an_entry_deleted_since_the_build_is_in_no_file_after_it_is_forgotten(
    lone_cache: StoreCache, config: Config, tmp_path: Path
) -> None:
    put(lone_cache, lone_cache.category("faq"), "", "n0", "n1", "n2")
    build(lone_cache, config)
    gone, kept, _ = lone_cache.entries()
    lone_cache.mutate(partial(store.invalidate, selection=store.Selection(names=("n0",))))
    assert gone.response in bytes_under(tmp_path)
    report = forget_all(lone_cache, config, "n0")
    assert report.changes.selects_nothing and report.problems == ()
    assert report.files is not None
    assert (report.files.removed, report.files.built) == (("gen-00000001",), "gen-00000002")
    left = bytes_under(tmp_path)
    assert [part in left for part in (gone.vector, gone.text.encode(), gone.response)] == [False] * 3
    assert kept.response in left
    assert check_cache(lone_cache.engine, lone_cache.name, config).problems == ()


def test_generations_elsewhere_are_dropped_also_where_nothing_is_selected(
    lone_cache: StoreCache, config: Config
) -> None:
    put(lone_cache, lone_cache.category("faq"), "", "n0", "n1")
    build(lone_cache, config)
    replica = CacheReplica(
        lone_cache.engine, record_of(lone_cache), search=config.search, data_dir=config.store.data_dir
    )
    lone_cache.mutate(partial(store.invalidate, selection=store.Selection(names=("n0",))))
    assert forget_in_store(lone_cache, names=["n0"]).selects_nothing
    replica.refresh_settings()
    replica.remove_dropped_generations()
    assert generation_numbers(index_root(config.store.data_dir, lone_cache.id)) == []


def test_a_build_that_is_dropped_again_and_again_is_a_problem_of_the_report(
    lone_cache: StoreCache, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(lone_cache, lone_cache.category("faq"), "", "n0", "n1")
    build(lone_cache, config)
    monkeypatch.setattr("service.generations.is_dropped", lambda *_: True)
    report = forget_all(lone_cache, config, "n0")
    assert report.changes.entry_count == 1
    assert ["no generation was built" in problem for problem in report.problems] == [True]
    assert report.files is not None
    assert (report.files.removed, report.files.built) == (("gen-00000001",), "")


def test_other_refusals_of_a_build_are_raised(
    lone_cache: StoreCache, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PreconditionError("no", reason="OTHER")

    put(lone_cache, lone_cache.category("faq"), "", "n0", "n1")
    build(lone_cache, config)
    monkeypatch.setattr(erasure, "build_index", refuse)
    with pytest.raises(PreconditionError):
        forget_all(lone_cache, config, "n0")


def test_a_report_says_of_which_encoders_nobody_knows_what_they_have_learned(
    lone_cache: StoreCache, config: Config
) -> None:
    teach(lone_cache)
    put(lone_cache, lone_cache.category("other"), "", "plain")
    report = forget_all(lone_cache, config, "plain")
    assert report.kept.untraced == {}
    of_cache = tables.encoders.c.cache_id == lone_cache.id
    for count in (None, 3):
        with writing(lone_cache.engine) as connection:
            connection.execute(tables.encoders.update().where(of_cache).values(untraced_row_count=count))
        report = preview_forgetting(lone_cache.engine, lone_cache.name, ForgetSelection(names=("x",)))
        assert report.kept.untraced == {active_id(lone_cache): count}


def test_a_report_names_what_lies_beyond_its_reach(lone_cache: StoreCache, config: Config) -> None:
    notes = "\n".join(forget_all(lone_cache, config, "n0").notes)
    for named in ("backups", "`loaded/`", "labels"):
        assert named in notes


def test_a_training_of_two_modalities_that_read_a_forgotten_row_is_not_kept(
    lone_cache: StoreCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    modalities = {"text": ModalitySpec(dim=DIM), "image": ModalitySpec(dim=DIM)}
    with writing(lone_cache.engine) as connection:
        made = registry.create_cache(
            connection, "art", modalities=modalities, code_bits=64, label_bits=64, description="", now_ms=0
        )
    art = StoreCache(lone_cache.engine, "art", made.id)
    faq = art.category("faq")
    for modality in modalities:
        for label in "ab":
            put(art, faq, label, *(f"{modality}-{label}{i}" for i in range(8)), modality=modality)
        put(art, faq, "", f"plain {modality}", modality=modality)

    def train_meanwhile(*arguments: Any, **named: Any) -> Any:
        assert forget_in_store(art, names=["plain image"]).entry_count == 1
        return train_crossmodal(*arguments, **named)

    monkeypatch.setattr(crossmodal_learning, "train_crossmodal", train_meanwhile)
    small = CrossModalConfig(
        code_bits=64,
        label_bits=64,
        itq_iterations=2,
        function_feature_count=16,
        label_feature_count=16,
        kernels={modality: KernelSettings(gamma=1.0, ridge=0.01) for modality in modalities},
    )
    with pytest.raises(PreconditionError) as raised:
        crossmodal_learning.train_crossmodal_from_store(
            art.engine, "art", config=small, progress=None, now_ms=1
        )
    assert raised.value.reason == "ROWS_FORGOTTEN"
    assert encoders(art) == {}
