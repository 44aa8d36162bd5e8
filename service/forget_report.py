"""A whole forgetting, from the selection to the files, and the report of it that a reader can check."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from service.config import Config
from service.database import reading
from service.embedder_maps import read_maps
from service.erasure import ErasedFiles, erase_free_space, erase_generations, had_graph
from service.forget_proof import LabelProof, StoredCodes, code_bits_changed, prove_label_parts, read_codes
from service.forgetting import ForgetSelection, StoreChanges, forget_rows, preview
from service.generations import Progress
from service.records import CacheRecord
from service.registry import ACTIVE, DESTROYED
from service.rows import read_cache, read_encoders, read_verifiers

# Rounds of the feed that servers get between the commit and the end, to leave the rows out.
FOLLOW_ROUNDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptParts:
    """What is not subtracted from. encoders: their instance parts and radii were fitted on rows of the cache,
    all together. untraced: encoder -> rows of files in its label part, None: nobody knows what
    it has learned. verifiers: trained from files. maps: from a new embedder, fitted on rows of the cache."""

    encoders: tuple[str, ...]
    untraced: dict[str, int | None]
    verifiers: tuple[str, ...]
    maps: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetReport:
    """What a forgetting did. changes: in the store. files: None in a dry run.

    proofs, code_bits_changed: of stored codes, against those of before; () and None where no proof was asked
    for. problems: what is not done or not proved; none: the rows are gone from all that this names. notes:
    what it cannot reach.
    """

    cache: str
    changes: StoreChanges
    active_encoder: str | None
    files: ErasedFiles | None
    kept: KeptParts
    proofs: tuple[LabelProof, ...]
    code_bits_changed: int | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def max_difference(self) -> float | None:
        """The largest of the proofs' differences."""
        figures = [own.max_difference for own in self.proofs]
        return max((figure for figure in figures if figure is not None), default=None)

    @property
    def query_bits_changed(self) -> int | None:
        """Bits of all proofs together."""
        figures = [own.query_bits_changed for own in self.proofs if own.query_bits_changed is not None]
        return sum(figures) if figures else None


def preview_forgetting(engine: Engine, cache: str, selection: ForgetSelection) -> ForgetReport:
    """What `forget` would do now; nothing is changed. Raises: InvalidRequestError, NotFoundError."""
    changes = preview(engine, cache, selection)
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        return ForgetReport(
            cache=cache,
            changes=changes,
            active_encoder=record.active_encoder_id,
            files=None,
            kept=_kept(connection, record),
            proofs=(),
            code_bits_changed=None,
            problems=(),
            notes=(),
        )


def forget(
    engine: Engine,
    cache: str,
    selection: ForgetSelection,
    *,
    config: Config,
    clock: Callable[[], int],
    progress: Progress,
    prove: bool = False,
    rewrite: bool = True,
) -> ForgetReport:
    """Forget rows, erase their traces on this machine, and say what was done.

    Run again after a crash it finishes: what was selected may be gone by then, files and free space are
    erased all the same. prove: compare label parts with training on the rest, and codes with those of before.
    rewrite: the SQLite file as a whole, see `erasure.erase_free_space`. clock: ms.

    Raises:
        InvalidRequestError: the selection names nothing.
        NotFoundError: no such cache.
        CheckpointError, TrainingDataError: an encoder that would be renewed is damaged; nothing is changed.
        StoreUnavailableError, OSError: the rows may be forgotten, files may be left: run it again.
    """
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        before = read_codes(connection, record) if prove else None
    with_graph = had_graph(config, record.id)
    changes = forget_rows(engine, cache, selection, clock=clock)
    committed = time.monotonic()
    files = erase_generations(engine, record, config, with_graph=with_graph, clock=clock, progress=progress)
    problems = [*files.problems, *erase_free_space(engine, rewrite=rewrite)]
    with reading(engine) as connection:
        record = read_cache(connection, cache)
        proofs = _prove(connection, record, changes) if prove else ()
        changed = _code_bits_changed(connection, record, before)
        kept = _kept(connection, record)
    problems += [f"encoder {own.encoder_id}, {own.modality}: {own.problem}" for own in proofs if own.problem]
    if changed:
        problems.append(f"{changed} bits of stored codes are not those of before")
    rounds_seconds = FOLLOW_ROUNDS * config.refresh.feed_seconds
    time.sleep(max(0.0, committed + rounds_seconds - time.monotonic()))
    return ForgetReport(
        cache=cache,
        changes=changes,
        active_encoder=record.active_encoder_id,
        files=files,
        kept=kept,
        proofs=proofs,
        code_bits_changed=changed,
        problems=tuple(problems),
        notes=_notes(cache, kept, is_sqlite=engine.dialect.name == "sqlite", rewrite=rewrite),
    )


def _prove(connection: Connection, record: CacheRecord, changes: StoreChanges) -> tuple[LabelProof, ...]:
    """Proofs of the active encoder and of all that were renewed."""
    asked = [*changes.renewed.values(), *([record.active_encoder_id] if record.active_encoder_id else [])]
    return tuple(
        proof
        for encoder_id in dict.fromkeys(asked)
        for proof in prove_label_parts(connection, record, encoder_id)
    )


def _code_bits_changed(connection: Connection, record: CacheRecord, before: StoredCodes | None) -> int | None:
    if before is None:
        return None
    return code_bits_changed(before, read_codes(connection, record), code_bits=record.code_bits)


def _kept(connection: Connection, record: CacheRecord) -> KeptParts:
    alive = [own for own in read_encoders(connection, record.id) if own.state != DESTROYED]
    return KeptParts(
        encoders=tuple(own.encoder_id for own in alive),
        untraced={own.encoder_id: own.untraced_row_count for own in alive if own.untraced_row_count != 0},
        verifiers=tuple(own.verifier_id for own in read_verifiers(connection, record.id)),
        maps=tuple(own.map_id for own in read_maps(connection, record.id) if own.state == ACTIVE),
    )


def _notes(cache: str, kept: KeptParts, *, is_sqlite: bool, rewrite: bool) -> tuple[str, ...]:
    """What a forgetting does not reach, in words for an operator."""
    notes = [
        "servers follow within moments; one that cannot reach the store serves what it had until it can",
        "backups of the database and copies of its files are the operator's to remove",
        "files that an inbox has loaded stay in its `loaded/` folders until the operator removes them",
        "names of labels stay in what finished jobs report",
    ]
    if kept.encoders:
        notes.append(
            "instance codes and label features of the encoders kept were fitted on all rows together; to"
            f" start over: `nearhit train --cache {cache} --activate`, then `nearhit build --cache {cache}"
            " --reencode`"
        )
    if kept.verifiers:
        notes.append("verifiers were trained from files, whose rows are not traced")
    if kept.maps:
        notes.append("the map from the new embedder was fitted on all rows together; it ends with the change")
    if not is_sqlite:
        notes.append("PostgreSQL uses freed space again, it does not zero it; archives of its log keep rows")
    elif not rewrite:
        notes.append("the database file was not rewritten: its pages may hold copies of deleted cells")
    return tuple(notes)
