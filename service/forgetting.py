"""Forget entries: out of the store, out of every label part that has learned them, out of every generation.

What is fitted on all rows together stays until the next training: instance projections and radii; class codes
stay once they are issued. `forget_report` says what was done and what was not.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Engine, delete, func, insert, select, update

from service.database import reading, writing
from service.decision_rules import empty_rules
from service.errors import InvalidRequestError
from service.label_removal import (
    Renewal,
    RenewalKey,
    learned_from,
    renew,
    renewal_key,
    replace_encoders,
    to_renew,
)
from service.learned_rows import delete_learned, delete_unlearned, id_chunks, present
from service.records import CacheRecord, EncoderRecord
from service.registry import bump_config
from service.rows import read_cache, read_cache_by_id
from service.tables import entries, entry_tags, feedback, forgotten_rows, generations, learned_rows, requests
from service.transaction import CacheTransaction


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetSelection:
    """Which rows to forget: those that any value names, live, expired, or gone and still learned."""

    names: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreChanges:
    """What a forgetting has changed in the store, or would change.

    entry_count: entries deleted. learned_row_count: rows that label parts had learned, deleted.
    feedback_count, answer_count: verdicts on them, and remembered answers that name them. destroyed: encoders
    whose label parts held one of them. renewed: destroyed encoder -> the one in its place; in a dry run "".
    """

    entry_count: int
    learned_row_count: int
    feedback_count: int
    answer_count: int
    destroyed: tuple[str, ...]
    renewed: dict[str, str]

    @property
    def selects_nothing(self) -> bool:
        """Whether there was nothing to forget."""
        return not (self.entry_count or self.learned_row_count or self.answer_count)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a selection means in one state of the store. entry_ids: sorted. row_ids: of entries and of learned
    rows. names: under which answers may name them."""

    entry_ids: list[int]
    row_ids: list[int]
    learned_ids: list[int]
    names: list[str]
    destroyed: dict[str, EncoderRecord]
    renewals: list[RenewalKey]


def preview(engine: Engine, cache: str, selection: ForgetSelection) -> StoreChanges:
    """What `forget_rows` would change now; nothing is written. Raises: as forget_rows."""
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        plan = _plan(connection, record, selection)
        answers = sum(
            connection.execute(select(func.count()).select_from(requests).where(*named)).scalar_one()
            for named in _answers(record.id, plan.names)
        )
        verdicts = sum(
            connection.execute(
                select(func.count()).select_from(feedback).where(*_verdicts(record.id, chunk))
            ).scalar_one()
            for chunk in id_chunks(plan.row_ids)
        )
    return _changes(plan, verdicts, answers, dict.fromkeys((key[0] for key in plan.renewals), ""))


def forget_rows(
    engine: Engine, cache: str, selection: ForgetSelection, *, clock: Callable[[], int]
) -> StoreChanges:
    """Take what the selection means out of the store and out of all label parts, in one transaction.

    Generations built so far are dropped: from the commit on they are refused everywhere; where nothing is
    selected too, as they may hold rows that were deleted since, whose names nobody knows any more. So queries
    of verdicts on entries that are gone are emptied too. What label parts are without the rows is computed
    before, without a lock. clock: ms.

    Raises:
        InvalidRequestError: the selection names nothing.
        NotFoundError: no such cache.
        CheckpointError, TrainingDataError: an encoder that would be renewed is damaged; nothing is changed.
    """
    made: dict[RenewalKey, Renewal] = {}
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        plan = _plan(connection, record, selection)
        for key in plan.renewals:
            made[key] = renew(connection, record.id, key, destroyed=plan.destroyed)
    with writing(engine) as connection:
        tx = CacheTransaction.lock(connection, record.id, now_ms=clock())
        record = read_cache_by_id(connection, record.id)
        plan = _plan(connection, record, selection)
        _drop_generations(tx)
        _drop_stray_queries(tx)
        renewals = {
            key[0]: made[key] if key in made else renew(connection, record.id, key, destroyed=plan.destroyed)
            for key in plan.renewals
        }
        answers = sum(
            connection.execute(delete(requests).where(*named)).rowcount
            for named in _answers(record.id, plan.names)
        )
        if not plan.row_ids:
            return _changes(plan, 0, answers, {})
        verdicts = _delete_rows(tx, plan)
        if verdicts:  # rules may have been learned from them, those that borrow too
            empty_rules(connection, record.id, now_ms=tx.now_ms)
        replace_encoders(connection, record, plan.destroyed, renewals, now_ms=tx.now_ms)
        learned_count = delete_learned(connection, record.id, plan.learned_ids)
        assert learned_count >= len(plan.learned_ids), "selected in this transaction, each once a space"
        delete_unlearned(connection, record.id)
        renewed = {encoder_id: own.encoder.encoder_id for encoder_id, own in renewals.items()}
    return _changes(plan, verdicts, answers, renewed)


def _plan(connection: Connection, record: CacheRecord, selection: ForgetSelection) -> _Plan:
    if selection == ForgetSelection():
        raise InvalidRequestError("the selection names nothing", reason="EMPTY_SELECTION")
    found = _selected_entries(connection, record.id, selection)
    learned = _selected_learned(connection, record.id, selection)
    row_ids = sorted({*found, *learned})
    teaches = bool(learned) or any(has_labels for _, has_labels in found.values())
    destroyed = learned_from(connection, record.id, row_ids, teaches=teaches)
    carried = _carried(connection, record.id, sorted(found)) if destroyed else set()
    renewals = [
        renewal_key(connection, record.id, encoder_id, row_ids)
        for encoder_id in to_renew(connection, record, destroyed, carried=carried)
    ]
    names = {*(name for name, _ in found.values()), *learned.values(), *selection.names}
    return _Plan(sorted(found), row_ids, sorted(learned), sorted(names), destroyed, renewals)


def _selected_entries(
    connection: Connection, cache_id: int, selection: ForgetSelection
) -> dict[int, tuple[str, bool]]:
    """Row id -> name, and whether it has labels; expired entries too."""
    of_cache = entries.c.cache_id == cache_id
    conditions: list[ColumnElement[bool]] = [
        *(entries.c.name.in_(chunk) for chunk in id_chunks(selection.names)),
        *(entries.c.source.in_(chunk) for chunk in id_chunks(selection.sources)),
    ]
    for chunk in id_chunks(selection.tags):
        tagged = select(entry_tags.c.entry_id).where(
            entry_tags.c.cache_id == cache_id, entry_tags.c.tag.in_(chunk)
        )
        conditions.append(entries.c.id.in_(tagged))
    if selection.labels:
        wanted = frozenset(selection.labels)
        labelled = select(entries.c.id, entries.c.labels).where(of_cache, entries.c.has_labels)
        ids = [row.id for row in connection.execute(labelled) if not wanted.isdisjoint(row.labels)]
        conditions += [entries.c.id.in_(chunk) for chunk in id_chunks(ids)]
    found: dict[int, tuple[str, bool]] = {}
    for condition in conditions:
        query = select(entries.c.id, entries.c.name, entries.c.has_labels).where(of_cache, condition)
        found |= {row.id: (row.name, row.has_labels) for row in connection.execute(query)}
    return found


def _selected_learned(connection: Connection, cache_id: int, selection: ForgetSelection) -> dict[int, str]:
    """Row id -> name of the kept rows of label parts, whether or not their entries are there."""
    columns = learned_rows.c
    query = select(columns.row_id, columns.name).where(columns.cache_id == cache_id)
    found: dict[int, str] = {}
    for column, values in ((columns.name, selection.names), (columns.source, selection.sources)):
        for chunk in id_chunks(values):
            found |= {row.row_id: row.name for row in connection.execute(query.where(column.in_(chunk)))}
    if selection.tags or selection.labels:
        tags, labels = frozenset(selection.tags), frozenset(selection.labels)
        found |= {
            row.row_id: row.name
            for row in connection.execute(query.add_columns(columns.tags, columns.labels))
            if not (tags.isdisjoint(row.tags) and labels.isdisjoint(row.labels))
        }
    return found


def _carried(connection: Connection, cache_id: int, without: Sequence[int]) -> set[str]:
    """The encoders whose codes entries carry, but for entries of these row ids."""
    counted = (
        select(entries.c.encoder_id, func.count())
        .where(entries.c.cache_id == cache_id, entries.c.encoder_id.is_not(None))
        .group_by(entries.c.encoder_id)
    )
    counts: dict[str, int] = {row[0]: row[1] for row in connection.execute(counted)}
    for chunk in id_chunks(without):
        for encoder_id, count in connection.execute(counted.where(entries.c.id.in_(chunk))):
            counts[encoder_id] -= count
    return {encoder_id for encoder_id, count in counts.items() if count}


def _drop_generations(tx: CacheTransaction) -> None:
    """Stand by no generation built so far, and tell every replica."""
    kept = generations.c.dropped_ms.is_(None)
    dropped = update(generations).where(generations.c.cache_id == tx.cache_id, kept)
    tx.connection.execute(dropped.values(dropped_ms=tx.now_ms))
    bump_config(tx.connection, tx.cache_id)


def _drop_stray_queries(tx: CacheTransaction) -> None:
    """Empty the queries of verdicts whose entry is gone: any may be of what is meant, and none is needed."""
    live = select(entries.c.id).where(entries.c.id == feedback.c.entry_id, entries.c.cache_id == tx.cache_id)
    stray = (feedback.c.cache_id == tx.cache_id, feedback.c.query_vector.is_not(None), ~live.exists())
    tx.connection.execute(update(feedback).where(*stray).values(query_vector=None))


def _delete_rows(tx: CacheTransaction, plan: _Plan) -> int:
    """Delete entries with verdicts on them, and remember the ids; how many verdicts there were."""
    verdicts = sum(
        tx.connection.execute(delete(feedback).where(*_verdicts(tx.cache_id, chunk))).rowcount
        for chunk in id_chunks(plan.row_ids)
    )
    tx.delete(plan.entry_ids)
    known = present(tx.connection, tx.cache_id, plan.row_ids, forgotten_rows.c.row_id)
    fresh = [{"cache_id": tx.cache_id, "row_id": row_id} for row_id in plan.row_ids if row_id not in known]
    if fresh:
        tx.connection.execute(insert(forgotten_rows), fresh)
    return verdicts


def _verdicts(cache_id: int, row_ids: Collection[int]) -> tuple[ColumnElement[bool], ...]:
    return feedback.c.cache_id == cache_id, feedback.c.entry_id.in_(row_ids)


def _answers(cache_id: int, names: Sequence[str]) -> Iterator[tuple[ColumnElement[bool], ...]]:
    """Conditions on the answers to request ids that name these entries."""
    for chunk in id_chunks(names):
        yield requests.c.cache_id == cache_id, requests.c.answer["name"].as_string().in_(chunk)


def _changes(plan: _Plan, verdicts: int, answers: int, renewed: dict[str, str]) -> StoreChanges:
    return StoreChanges(
        entry_count=len(plan.entry_ids),
        learned_row_count=len(plan.learned_ids),
        feedback_count=verdicts,
        answer_count=answers,
        destroyed=tuple(sorted(plan.destroyed)),
        renewed=renewed,
    )
