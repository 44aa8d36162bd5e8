"""One suite over every eviction and time-to-live policy, with the clock in the test's hand."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import Engine, select
from store_rows import VECTOR_BYTES, StoreCache, make_cache, new_entry

from service import eviction, store
from service.accesses import Accesses
from service.categories import update_category
from service.database import reading, writing
from service.errors import NotFoundError, QuotaExceededError
from service.records import NewEntry, Operation, StoredEntry
from service.rows import read_cache, read_entry
from service.tables import NEVER_MS, entries

TTL_MODES = ("absolute", "sliding")


def leaving_order(
    policy: str, *, number: int, uses: int, access_ms: int, worth: float = 0.0
) -> tuple[float, ...]:
    """What a policy ranks an entry by, the first to leave first. number: of its store."""
    return {
        "lru": (access_ms, number),
        "lfu": (uses, access_ms, number),
        "fifo": (number,),
        "cost": (worth, access_ms, number),
    }[policy]


@pytest.fixture
def cache(shared_engine: Engine) -> StoreCache:
    """An empty cache."""
    return make_cache(shared_engine)


def put(cache: StoreCache, *items: NewEntry, now_ms: int = 0) -> list[StoredEntry]:
    """Store the items in one transaction."""
    return cache.mutate(partial(store.store_entries, items=items), now_ms=now_ms)


def hit(cache: StoreCache, name: str, *, now_ms: int, count: int = 1) -> None:
    """Write `count` hits of an entry, the last one at `now_ms`."""
    row_id = {record.name: record.id for record in cache.entries()}[name]
    accesses = Accesses(hits={row_id: (count, now_ms)})
    cache.mutate(partial(store.record_accesses, accesses=accesses), now_ms=now_ms)


def expire_ms(cache: StoreCache) -> dict[str, int]:
    """Expire times by entry."""
    return {record.name: record.expire_ms for record in cache.entries()}


@pytest.mark.parametrize("ttl_mode", TTL_MODES)
def test_an_entry_expires_its_categorys_time_to_live_after_the_store(
    cache: StoreCache, ttl_mode: str
) -> None:
    put(cache, new_entry(cache.category("faq", ttl_ms=50, ttl_mode=ttl_mode), "a"), now_ms=100)
    assert expire_ms(cache) == {"a": 150}


@pytest.mark.parametrize("ttl_mode", TTL_MODES)
def test_without_any_time_to_live_an_entry_never_expires(cache: StoreCache, ttl_mode: str) -> None:
    put(cache, new_entry(cache.category("faq", ttl_mode=ttl_mode), "a"), now_ms=100)
    hit(cache, "a", now_ms=200)
    assert expire_ms(cache) == {"a": NEVER_MS}


@pytest.mark.parametrize("own_ms", [7, 900])
def test_an_entrys_own_time_to_live_goes_before_its_categorys(cache: StoreCache, own_ms: int) -> None:
    put(cache, new_entry(cache.category("faq", ttl_ms=50), "a", ttl_ms=own_ms), now_ms=100)
    assert expire_ms(cache) == {"a": 100 + own_ms}


@pytest.mark.parametrize(
    ("category_mode", "own_mode", "expected"),
    [
        ("absolute", None, 150),
        ("sliding", None, 190),
        ("sliding", "absolute", 150),
        ("absolute", "sliding", 190),
    ],
)
def test_a_hit_restarts_the_time_to_live_of_sliding_entries_alone(
    cache: StoreCache, category_mode: str, own_mode: str | None, expected: int
) -> None:
    faq = cache.category("faq", ttl_ms=50, ttl_mode=category_mode)
    put(cache, new_entry(faq, "a", ttl_mode=own_mode), now_ms=100)
    hit(cache, "a", now_ms=140)
    assert expire_ms(cache) == {"a": expected}


def test_a_hit_restarts_an_entrys_own_time_to_live(cache: StoreCache) -> None:
    faq = cache.category("faq", ttl_ms=50, ttl_mode="sliding")
    put(cache, new_entry(faq, "a", ttl_ms=500), now_ms=100)
    hit(cache, "a", now_ms=140)
    assert expire_ms(cache) == {"a": 640}


def test_a_late_report_of_an_early_hit_shortens_nothing(cache: StoreCache) -> None:
    faq = cache.category("faq", ttl_ms=50, ttl_mode="sliding")
    put(cache, new_entry(faq, "a"), now_ms=100)
    hit(cache, "a", now_ms=140)
    hit(cache, "a", now_ms=120)
    assert expire_ms(cache) == {"a": 190}


def test_an_extension_is_one_change_and_a_hit_without_it_none(cache: StoreCache) -> None:
    faq = cache.category("faq", ttl_ms=50)
    put(cache, new_entry(faq, "a"), new_entry(faq, "b", ttl_mode="sliding"))
    hit(cache, "a", now_ms=10)
    hit(cache, "b", now_ms=10)
    assert [operation for _, operation, _ in cache.feed()[2:]] == [Operation.EXTEND]
    cache.check()


@pytest.mark.parametrize("changed", [{"ttl_ms": 5}, {"ttl_ms": None}, {"ttl_mode": "sliding"}])
def test_a_change_of_the_categorys_time_to_live_leaves_stored_entries_alone(
    cache: StoreCache, changed: dict[str, object]
) -> None:
    put(cache, new_entry(cache.category("faq", ttl_ms=50), "a"), now_ms=100)
    with writing(cache.engine) as connection:
        update_category(connection, cache.name, "faq", etag="", changed=changed, now_ms=0)
    hit(cache, "a", now_ms=120)
    assert expire_ms(cache) == {"a": 150}


def test_a_change_of_the_categorys_time_to_live_holds_for_later_stores(cache: StoreCache) -> None:
    faq = cache.category("faq", ttl_ms=50)
    with writing(cache.engine) as connection:
        update_category(connection, cache.name, "faq", etag="", changed={"ttl_ms": 5}, now_ms=0)
    put(cache, new_entry(faq, "a"), now_ms=100)
    assert expire_ms(cache) == {"a": 105}


def test_an_entry_is_read_until_just_before_its_expire_time(cache: StoreCache) -> None:
    put(cache, new_entry(cache.category("faq", ttl_ms=50), "a"), now_ms=100)
    with reading(cache.engine) as connection:
        record = read_cache(connection, cache.name)
        assert read_entry(connection, record, "a", now_ms=149).name == "a"
        with pytest.raises(store.NotFoundError):
            read_entry(connection, record, "a", now_ms=150)


def test_only_entries_past_their_expire_time_are_deleted(cache: StoreCache) -> None:
    faq = cache.category("faq")
    put(cache, *(new_entry(faq, f"t{ttl}", ttl_ms=ttl) for ttl in (10, 20, 30)), new_entry(faq, "never"))
    assert cache.mutate(partial(store.delete_expired, limit=100), now_ms=20) == 2
    assert cache.names() == ["t30", "never"]
    cache.check()


def test_a_limited_expiry_deletes_the_longest_dead_of_a_category_first(cache: StoreCache) -> None:
    one, two = cache.category("one"), cache.category("two")
    put(
        cache, *(new_entry(one, f"t{ttl}", ttl_ms=ttl) for ttl in (30, 10, 20)), new_entry(two, "z", ttl_ms=5)
    )
    assert cache.mutate(partial(store.delete_expired, limit=2), now_ms=99) == 2
    assert cache.names() == ["t30", "z"]
    assert cache.mutate(partial(store.delete_expired, limit=9), now_ms=99) == 2


@pytest.mark.parametrize("policy", eviction.POLICIES)
def test_expired_entries_leave_before_any_live_one(cache: StoreCache, policy: str) -> None:
    faq = cache.category("faq", max_entries=3, eviction=policy)
    put(cache, new_entry(faq, "old"), now_ms=0)
    put(cache, new_entry(faq, "late", ttl_ms=50), new_entry(faq, "dead", ttl_ms=5), now_ms=1)
    hit(cache, "dead", now_ms=3, count=9)
    assert put(cache, new_entry(faq, "new"), now_ms=20)[0].evicted_count == 1
    assert cache.names() == ["old", "late", "new"]


@pytest.mark.parametrize("policy", eviction.POLICIES)
def test_no_more_entries_leave_than_the_quota_asks_for(cache: StoreCache, policy: str) -> None:
    faq = cache.category("faq", max_bytes=4 * VECTOR_BYTES, eviction=policy)
    put(cache, *(new_entry(faq, name) for name in "abcd"))
    answer = put(cache, new_entry(faq, "e", response=bytes(VECTOR_BYTES)))[0]
    assert (answer.evicted_count, cache.names()) == (2, ["c", "d", "e"])


@pytest.mark.parametrize("policy", eviction.POLICIES)
def test_a_full_category_takes_nothing_from_another(cache: StoreCache, policy: str) -> None:
    full, other = (cache.category(name, max_entries=1, eviction=policy) for name in ("full", "other"))
    put(cache, new_entry(other, "kept"), new_entry(full, "a"))
    put(cache, new_entry(full, "b"))
    assert cache.names() == ["kept", "b"]


@pytest.mark.parametrize("policy", eviction.POLICIES)
def test_more_entries_than_a_page_leave_in_order(cache: StoreCache, policy: str) -> None:
    faq = cache.category("faq", max_bytes=600 * VECTOR_BYTES, eviction=policy)
    put(cache, *(new_entry(faq, f"n{i}") for i in range(600)))
    answer = put(cache, new_entry(faq, "big", response=bytes(299 * VECTOR_BYTES)))[0]
    assert answer.evicted_count == 300
    assert cache.names()[:2] == ["n300", "n301"]
    cache.check()


@pytest.mark.parametrize("policy", eviction.POLICIES)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(uses=st.lists(st.integers(0, 4), max_size=12))
def test_entries_leave_in_the_order_of_the_policy(
    shared_engine: Engine, policy: str, uses: list[int]
) -> None:
    cache = make_cache(shared_engine)
    faq = cache.category("faq", max_entries=5, eviction=policy)
    costs = [3.0, 1.0, 0.0, 2.0, 3.0]
    put(cache, *(new_entry(faq, str(i), cost=costs[i]) for i in range(5)))
    last, counts = dict.fromkeys(range(5), 0), Counter(uses)
    for now_ms, used in enumerate(uses, start=1):
        hit(cache, str(used), now_ms=now_ms)
        last[used] = now_ms
    order = sorted(
        range(5),
        key=lambda i: leaving_order(
            policy, number=i, uses=counts[i], access_ms=last[i], worth=costs[i] * (counts[i] + 1)
        ),
    )
    with writing(shared_engine) as connection:
        update_category(connection, cache.name, "faq", etag="", changed={"max_entries": 2}, now_ms=0)
    assert cache.mutate(partial(store.shrink_to_quota, category_id=faq)) == 3
    assert cache.names() == [str(i) for i in sorted(order[3:])]


def test_hits_reported_late_leave_the_last_use_as_it_was(cache: StoreCache) -> None:
    faq = cache.category("faq", max_entries=2, eviction="lru")
    put(cache, new_entry(faq, "a"), new_entry(faq, "b"))
    hit(cache, "a", now_ms=30)
    hit(cache, "b", now_ms=20)
    hit(cache, "a", now_ms=10)
    put(cache, new_entry(faq, "c"), now_ms=40)
    assert cache.names() == ["a", "c"]


def test_an_entry_larger_than_the_quota_is_refused_and_nothing_leaves(cache: StoreCache) -> None:
    faq = cache.category("faq", max_bytes=2 * VECTOR_BYTES)
    put(cache, new_entry(faq, "a"))
    with pytest.raises(QuotaExceededError) as raised:
        put(cache, new_entry(faq, "big", response=bytes(VECTOR_BYTES + 1)))
    assert raised.value.metadata == {
        "size_bytes": str(2 * VECTOR_BYTES + 1),
        "max_bytes": str(2 * VECTOR_BYTES),
    }
    assert (cache.names(), cache.seq()) == (["a"], 1)


def test_an_entry_as_large_as_the_quota_is_stored(cache: StoreCache) -> None:
    faq = cache.category("faq", max_bytes=2 * VECTOR_BYTES)
    put(cache, new_entry(faq, "a"))
    put(cache, new_entry(faq, "big", response=bytes(VECTOR_BYTES)))
    assert cache.names() == ["big"]


def test_a_batch_with_an_entry_larger_than_the_quota_stores_nothing(cache: StoreCache) -> None:
    faq = cache.category("faq", max_bytes=2 * VECTOR_BYTES)
    put(cache, new_entry(faq, "kept"))
    items = [new_entry(faq, name) for name in "abc"]
    with pytest.raises(QuotaExceededError):
        put(cache, *items, new_entry(faq, "big", response=bytes(2 * VECTOR_BYTES)))
    assert (cache.names(), cache.seq()) == (["kept"], 1)
    cache.check()


@pytest.mark.parametrize("quota", [{"max_entries": 2}, {"max_bytes": 2 * VECTOR_BYTES + 1}])
@pytest.mark.parametrize("policy", eviction.POLICIES)
def test_of_a_batch_larger_than_the_quota_the_last_entries_stay(
    cache: StoreCache, policy: str, quota: dict[str, int]
) -> None:
    faq = cache.category("faq", eviction=policy, **quota)
    answers = put(cache, *(new_entry(faq, name) for name in "abcdef"))
    assert [answer.seq for answer in answers] == sorted(answer.seq for answer in answers)
    assert cache.names() == ["e", "f"]
    assert sum(answer.evicted_count for answer in answers) == 4
    cache.check()


@pytest.mark.parametrize(
    ("changed", "left"),
    [({"max_entries": 1}, ["c"]), ({"max_bytes": 2 * VECTOR_BYTES}, ["b", "c"]), ({}, ["a", "b", "c"])],
)
def test_a_smaller_quota_evicts_down_to_it(
    cache: StoreCache, changed: dict[str, int], left: list[str]
) -> None:
    faq = cache.category("faq", max_entries=3)
    put(cache, *(new_entry(faq, name) for name in "abc"))
    with writing(cache.engine) as connection:
        update_category(connection, cache.name, "faq", etag="", changed=changed, now_ms=0)
    cache.mutate(partial(store.shrink_to_quota, category_id=faq))
    assert cache.names() == left
    cache.check()


def test_hits_of_entries_that_are_gone_are_ignored(cache: StoreCache) -> None:
    faq = cache.category("faq")
    put(cache, new_entry(faq, "a"))
    row_id = cache.entries()[0].id
    cache.mutate(partial(store.delete_entry, name="a"))
    accesses = Accesses(
        hits={row_id: (1, 5)}, outcomes=Counter({(faq, "hit_count"): 2, (10**9, "hit_count"): 1})
    )
    cache.mutate(partial(store.record_accesses, accesses=accesses))
    assert cache.categories()[faq].hit_count == 2
    cache.check()


def test_hits_add_up(cache: StoreCache) -> None:
    faq = cache.category("faq")
    put(cache, new_entry(faq, "a"))
    hit(cache, "a", now_ms=5, count=3)
    hit(cache, "a", now_ms=9, count=2)
    query = select(entries.c.access_count, entries.c.access_ms).where(entries.c.cache_id == cache.id)
    with reading(cache.engine) as connection:
        assert connection.execute(query).all() == [(5, 9)]


@dataclass
class _Kept:
    """What the model knows of one entry."""

    size_bytes: int
    expire_ms: int
    access_ms: int
    access_count: int
    number: int
    cost: float
    is_sliding: bool
    had_ms: int | None  # its own time to live


class QuotaMachine(RuleBasedStateMachine):
    """One category against a model: what leaves, and that the quota holds after every acknowledged store."""

    engine: Engine
    policy: str
    ttl_mode: str
    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.cache = make_cache(self.engine)
        self.max_entries, self.max_bytes = 4, 10 * VECTOR_BYTES
        self.faq = self.cache.category(
            "faq",
            max_entries=self.max_entries,
            max_bytes=self.max_bytes,
            eviction=self.policy,
            ttl_mode=self.ttl_mode,
        )
        self.now_ms, self.stored = 100, 0
        self.kept: dict[str, _Kept] = {}
        self.gone: set[str] = set()  # expired and deleted: they never come back, wherever the clock goes

    def _make_room(self, count: int, size_bytes: int) -> int:
        def order(name: str) -> tuple[float, ...]:
            row = self.kept[name]
            if row.expire_ms <= self.now_ms:
                return (0, row.expire_ms, row.number)
            rank = leaving_order(
                self.policy,
                number=row.number,
                uses=row.access_count,
                access_ms=row.access_ms,
                worth=row.cost * (row.access_count + 1) / row.size_bytes,
            )
            return (1, *rank)

        left = 0
        while (
            len(self.kept) + count > self.max_entries
            or sum(row.size_bytes for row in self.kept.values()) + size_bytes > self.max_bytes
        ):
            del self.kept[min(self.kept, key=order)]
            left += 1
        return left

    @rule(
        target=names,
        blocks=st.integers(0, 9),
        ttl_ms=st.sampled_from([None, 3, 30]),
        cost=st.sampled_from([0.0, 1.0, 8.0]),
    )
    def store_one(self, blocks: int, ttl_ms: int | None, cost: float) -> str:
        self.stored += 1
        name = f"n{self.stored}"
        item = new_entry(self.faq, name, response=bytes(blocks * VECTOR_BYTES), ttl_ms=ttl_ms, cost=cost)
        if item.size_bytes > self.max_bytes:
            with pytest.raises(QuotaExceededError):
                put(self.cache, item, now_ms=self.now_ms)
            return name
        left = self._make_room(1, item.size_bytes)
        expires = NEVER_MS if ttl_ms is None else self.now_ms + ttl_ms
        is_sliding = self.ttl_mode == "sliding"
        self.kept[name] = _Kept(
            item.size_bytes, expires, self.now_ms, 0, self.stored, cost, is_sliding, ttl_ms
        )
        assert put(self.cache, item, now_ms=self.now_ms)[0].evicted_count == left
        return name

    @rule(name=names, count=st.integers(1, 3))
    def use(self, name: str, count: int) -> None:
        row = self.kept.get(name)
        if row is None or row.expire_ms <= self.now_ms:
            return
        hit(self.cache, name, now_ms=self.now_ms, count=count)
        row.access_ms, row.access_count = max(row.access_ms, self.now_ms), row.access_count + count
        if row.had_ms is not None and row.is_sliding:
            row.expire_ms = max(row.expire_ms, self.now_ms + row.had_ms)

    @rule(passed_ms=st.one_of(st.integers(1, 10), st.sampled_from([-90, -20, 1_000])))
    def wait(self, passed_ms: int) -> None:
        self.now_ms = max(1, self.now_ms + passed_ms)  # clocks jump, back too

    @rule()
    def clean_up(self) -> None:
        dead = [name for name, row in self.kept.items() if row.expire_ms <= self.now_ms]
        deleted = self.cache.mutate(partial(store.delete_expired, limit=99), now_ms=self.now_ms)
        assert deleted == len(dead)
        for name in dead:
            del self.kept[name]
        self.gone.update(dead)

    @rule(name=names)
    def delete(self, name: str) -> None:
        row = self.kept.get(name)
        if row is None or row.expire_ms <= self.now_ms:
            with pytest.raises(NotFoundError):
                self.cache.mutate(partial(store.delete_entry, name=name), now_ms=self.now_ms)
        else:
            del self.kept[name]
            self.cache.mutate(partial(store.delete_entry, name=name), now_ms=self.now_ms)

    @rule(max_entries=st.integers(1, 5), blocks=st.integers(2, 12))
    def set_quota(self, max_entries: int, blocks: int) -> None:
        self.max_entries, self.max_bytes = max_entries, blocks * VECTOR_BYTES
        changed = {"max_entries": self.max_entries, "max_bytes": self.max_bytes}
        with writing(self.engine) as connection:
            update_category(connection, self.cache.name, "faq", etag="", changed=changed, now_ms=0)
        left = self._make_room(0, 0)
        shrunk = self.cache.mutate(partial(store.shrink_to_quota, category_id=self.faq), now_ms=self.now_ms)
        assert shrunk == left

    @invariant()
    def agrees(self) -> None:
        assert self.cache.names() == list(self.kept)
        assert self.gone.isdisjoint(self.cache.names())
        assert expire_ms(self.cache) == {name: row.expire_ms for name, row in self.kept.items()}
        self.cache.check()

    @rule(policy=st.sampled_from(eviction.POLICIES))
    def set_eviction(self, policy: str) -> None:
        self.policy = policy
        self._change({"eviction": policy})

    @rule(ttl_mode=st.sampled_from(TTL_MODES))
    def set_ttl_mode(self, ttl_mode: str) -> None:
        self.ttl_mode = ttl_mode
        self._change({"ttl_mode": ttl_mode})

    def _change(self, changed: dict[str, Any]) -> None:
        with writing(self.engine) as connection:
            update_category(connection, self.cache.name, "faq", etag="", changed=changed, now_ms=0)


@pytest.mark.parametrize("ttl_mode", TTL_MODES)
@pytest.mark.parametrize("policy", eviction.POLICIES)
def test_the_quota_holds_and_the_policys_entries_leave(
    shared_engine: Engine, policy: str, ttl_mode: str
) -> None:
    values = {"engine": shared_engine, "policy": policy, "ttl_mode": ttl_mode}
    machine = type("Machine", (QuotaMachine,), values)
    run_state_machine_as_test(
        machine, settings=settings(max_examples=6, stateful_step_count=20, deadline=None, database=None)
    )


@pytest.mark.parametrize("ttl_mode", TTL_MODES)
@pytest.mark.parametrize("policy", eviction.POLICIES)
def test_only_the_sliding_outlive_their_first_time_to_live_in_a_full_category(
    cache: StoreCache, policy: str, ttl_mode: str
) -> None:
    faq = cache.category("faq", max_entries=2, eviction=policy, ttl_ms=50, ttl_mode=ttl_mode)
    put(cache, new_entry(faq, "used", cost=2.0), now_ms=0)
    hit(cache, "used", now_ms=40)
    put(cache, new_entry(faq, "late", cost=2.0), now_ms=45)
    assert put(cache, new_entry(faq, "new", cost=2.0), now_ms=60)[0].evicted_count == 1
    # The absolute one has expired and leaves first; where it slides, who leaves is the policy's choice.
    unused = {"lru": "used", "lfu": "late", "fifo": "used", "cost": "late"}[policy]
    left = "used" if ttl_mode == "absolute" else unused
    assert cache.names() == [name for name in ("used", "late", "new") if name != left]
    cache.check()


def test_what_an_entry_is_worth_follows_its_cost_its_hits_and_its_size(cache: StoreCache) -> None:
    faq = cache.category("faq", max_entries=3, eviction="cost")
    put(cache, new_entry(faq, "cheap", cost=1.0), new_entry(faq, "dear", cost=9.0))
    put(cache, new_entry(faq, "large", cost=9.0, response=bytes(99 * VECTOR_BYTES)))
    hit(cache, "cheap", now_ms=5, count=9)  # worth 10 a vector, dear 9, large 0.09
    put(cache, new_entry(faq, "a", cost=20.0))
    assert cache.names() == ["cheap", "dear", "a"]
    put(cache, new_entry(faq, "b", cost=20.0))
    assert cache.names() == ["cheap", "a", "b"]


def test_entries_of_unknown_cost_leave_before_all_others_the_least_recent_first(cache: StoreCache) -> None:
    faq = cache.category("faq", max_entries=3, eviction="cost")
    put(cache, new_entry(faq, "known", cost=0.5), new_entry(faq, "a"), new_entry(faq, "b"))
    hit(cache, "a", now_ms=5, count=50)
    put(cache, new_entry(faq, "c", cost=1.0))
    assert cache.names() == ["known", "a", "c"]


def test_an_imported_entry_leaves_as_if_stored_now_and_keeps_its_cost_and_model(cache: StoreCache) -> None:
    faq = cache.category("faq", max_entries=2, eviction="fifo")
    put(cache, new_entry(faq, "first"))
    old = new_entry(faq, "imported", create_ms=-5, expire_ms=NEVER_MS, cost=2.5, model="m")
    assert cache.mutate(partial(store.import_entries, items=[old])) == 1
    put(cache, new_entry(faq, "last"))
    assert cache.names() == ["imported", "last"]
    assert [(record.cost, record.model) for record in cache.entries()] == [(2.5, "m"), (0.0, "")]
