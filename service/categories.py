"""Mutations of categories: each checks what would hold afterwards, for the category and for all that inherit
from it, and writes down what it changed, in one transaction of the writer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, update

from service.errors import PreconditionError
from service.keys import cache_name, child_name
from service.policy import (
    OwnPolicy,
    Policy,
    Value,
    below,
    chain_of,
    changed_own,
    check_own,
    check_parent,
    check_policy,
    dump_own,
    resolve,
)
from service.policy_changes import record_change
from service.records import CacheRecord, CategoryRecord
from service.registry import ACTIVE, bump_config, check_etag, insert_new, lock_named
from service.rows import category_not_found, read_categories, read_category, read_verifiers
from service.tables import categories


@dataclass(frozen=True, slots=True)
class _Plan:
    """Parents and own policies of a cache's categories by row id, as they are to be."""

    names: Mapping[int, str]
    parents: Mapping[int, int | None]
    own: Mapping[int, OwnPolicy]

    def policies(self, category_id: int) -> Iterator[tuple[int, str, Policy]]:
        """(row id, name, what holds) of the category and of all that inherit from it."""
        for key in (category_id, *below(self.parents, category_id)):
            yield key, self.names[key], resolve(self.own[up] for up in chain_of(self.parents, key))


def create_category(
    connection: Connection,
    cache: str,
    name: str,
    *,
    own: OwnPolicy,
    parent: str = "",
    now_ms: int,
    principal: str = "",
) -> CategoryRecord:
    """Create a category. own: what it sets itself; parent: name of the one that the rest is inherited from.

    Raises:
        NotFoundError: no such cache or parent.
        AlreadyExistsError: the name is taken.
        InvalidRequestError: a value that a field cannot have, alone or with the others; too many levels.
        PreconditionError: it asks for consent, and no verifier is active.
    """
    owner = lock_named(connection, cache)
    check_own(own)
    known = read_categories(connection, owner.id)
    parent_id = _parent_id(cache, known, parent)
    new_id = 0  # row ids begin at 1
    if parent_id is not None:
        check_parent({record.id: record.parent_id for record in known}, new_id, parent_id)
    plan = _plan(known, category_id=new_id, name=name, own=own, parent_id=parent_id)
    _check_plan(connection, owner, plan, new_id, before={})
    values = {
        "cache_id": owner.id,
        "name": name,
        "policy": dump_own(own),
        "parent_id": parent_id,
        "entry_count": 0,
        "size_bytes": 0,
        "hit_count": 0,
        "miss_count": 0,
        "shadow_hit_count": 0,
        "bypass_count": 0,
        "create_ms": now_ms,
        "version": 1,
    }
    full_name = child_name(cache, "categories", name)
    insert_new(connection, insert(categories).values(**values), full_name, "CATEGORY_EXISTS")
    bump_config(connection, owner.id)
    made = read_category(connection, owner, name)
    record_change(connection, before=None, after=made, now_ms=now_ms, principal=principal)
    return made


def update_category(
    connection: Connection,
    cache: str,
    name: str,
    *,
    etag: str,
    changed: Mapping[str, Value | None],
    parent: str | None = None,
    now_ms: int,
    principal: str = "",
) -> CategoryRecord:
    """Change fields of the policy, where None means inherited from then on. parent: "" for none; None: as it
    is.

    Raises: ConflictError: another etag; NotFoundError and others as above.
    """
    owner = lock_named(connection, cache)
    known = read_categories(connection, owner.id)
    category = _named(cache, known, name)
    check_etag(category.version, etag, name=child_name(cache, "categories", name))
    check_own({field: value for field, value in changed.items() if value is not None})
    own = changed_own(category.own_policy, changed)
    parent_id = category.parent_id if parent is None else _parent_id(cache, known, parent)
    if parent_id is not None:
        check_parent({record.id: record.parent_id for record in known}, category.id, parent_id)
    plan = _plan(known, category_id=category.id, name=name, own=own, parent_id=parent_id)
    before = {record.id: record.policy for record in known}
    _check_plan(connection, owner, plan, category.id, before=before)
    values = {"policy": dump_own(own), "parent_id": parent_id, "version": categories.c.version + 1}
    connection.execute(update(categories).where(categories.c.id == category.id).values(**values))
    bump_config(connection, owner.id)
    after = read_category(connection, owner, name)
    record_change(connection, before=category, after=after, now_ms=now_ms, principal=principal)
    return after


def delete_category(
    connection: Connection, cache: str, name: str, *, etag: str, now_ms: int, principal: str = ""
) -> None:
    """Delete a category with its entries.

    Raises: NotFoundError, ConflictError; PreconditionError: it is the parent of another.
    """
    owner = lock_named(connection, cache)
    known = read_categories(connection, owner.id)
    category = _named(cache, known, name)
    full_name = child_name(cache, "categories", name)
    check_etag(category.version, etag, name=full_name)
    children = [record.name for record in known if record.parent_id == category.id]
    if children:
        raise PreconditionError(
            f"{full_name} is the parent of {', '.join(children[:5])}: delete or move those first",
            reason="CATEGORY_HAS_CHILDREN",
            category=children[0],
        )
    connection.execute(delete(categories).where(categories.c.id == category.id))
    bump_config(connection, owner.id)
    record_change(connection, before=category, after=None, now_ms=now_ms, principal=principal)


def inheritors(known: Sequence[CategoryRecord], category_id: int) -> list[int]:
    """Row ids of the category and of all that inherit from it."""
    return [category_id, *below({record.id: record.parent_id for record in known}, category_id)]


def _named(cache: str, known: Sequence[CategoryRecord], name: str) -> CategoryRecord:
    for record in known:
        if record.name == name:
            return record
    raise category_not_found(cache, name)


def _parent_id(cache: str, known: Sequence[CategoryRecord], parent: str) -> int | None:
    return _named(cache, known, parent).id if parent else None


def _plan(
    known: Sequence[CategoryRecord], *, category_id: int, name: str, own: OwnPolicy, parent_id: int | None
) -> _Plan:
    return _Plan(
        names={record.id: record.name for record in known} | {category_id: name},
        parents={record.id: record.parent_id for record in known} | {category_id: parent_id},
        own={record.id: record.own_policy for record in known} | {category_id: own},
    )


def _check_plan(
    connection: Connection,
    cache: CacheRecord,
    plan: _Plan,
    category_id: int,
    *,
    before: Mapping[int, Policy],
) -> None:
    for key, name, policy in plan.policies(category_id):
        check_policy(policy, category=name)
        asked = before.get(key, Policy()).min_probability
        if policy.min_probability is not None and policy.min_probability != asked:
            _check_consent(connection, cache)


def _check_consent(connection: Connection, cache: CacheRecord) -> None:
    if all(verifier.state != ACTIVE for verifier in read_verifiers(connection, cache.id)):
        raise PreconditionError(
            f"min_probability asks for a verifier's consent, and {cache_name(cache.name)} has no active one:"
            " train one with `nearhit train-verifier --activate`",
            reason="NO_ACTIVE_VERIFIER",
        )
