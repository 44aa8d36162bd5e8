"""Continue the instance codes of a cache's active encoder with pairs, by gradient: learn, judge, keep."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, select

from hashing.checkpoint import load_encoder
from hashing.errors import CheckpointError
from hashing.inference import Encoder
from hashing.pair_gate import LEAST_ROWS, HeldOutPairs, PairGateReport, evaluate_pair_update
from hashing.trainer import Progress
from scripts.arguments import CommandError
from service import registry
from service.application import clock_ms
from service.config import Config
from service.database import writing
from service.learning import StoredRows, of_modality, read_rows
from service.records import CacheRecord
from service.rows import active_encoder_id, read_cache, read_categories, read_encoder, read_weights
from service.tables import encoders
from service.update import check_reads_space
from service.verdicts import mark_read

if TYPE_CHECKING:
    from hashing.deep.lifelong import PairUpdateReport

MAX_REHEARSED_ROWS = 20_000
MAX_GATE_ROWS = 5_000
GATE_SHARE = 0.1
JUDGED_ROWS = LEAST_ROWS + 10  # a query is not judged by its own row and its answers
SMALL_PAIR_COUNT = 4_000
"""Fewer pairs than this are passed over four times, in small batches."""

Conclude = Callable[[Connection, dict[str, Any]], None]


@dataclass(frozen=True, slots=True, eq=False)
class PairBase:
    """What pairs are learned on: the active encoder, its modality, stored entries of that, and the thresholds
    of the categories."""

    record: CacheRecord
    parent: Encoder
    modality: str
    stored: StoredRows
    thresholds: Mapping[str, float]


def read_base(connection: Connection, cache: str) -> PairBase:
    """Raises: NotFoundError; PreconditionError without an active encoder; CheckpointError."""
    record = read_cache(connection, cache)
    parent = load_encoder(read_weights(connection, record.id, active_encoder_id(record)))
    modality = next(iter(parent.projections))
    check_reads_space(record, parent, modality)
    query = of_modality(record, modality)
    stored = read_rows(connection, query, most=MAX_REHEARSED_ROWS + MAX_GATE_ROWS)
    thresholds = {own.name: own.policy.threshold for own in read_categories(connection, record.id)}
    return PairBase(record, parent, modality, stored, thresholds)


def learn_pairs(
    engine: Engine,
    base: PairBase,
    rows: NDArray[np.float32],
    pairs: NDArray[np.int64],
    *,
    entry_ids: Sequence[int] = (),
    verdict_watermark: int | None = None,
    config: Config,
    seed: int,
    progress: Progress,
    conclude: Conclude = lambda connection, outcome: None,
) -> dict[str, Any]:
    """Learn the pairs, judge the result on pairs and stored rows that it has not learned, and activate it if
    it passes. Stored codes stay: the new encoder's queries search them.

    rows: float32 [n, dim], L2-normalised. pairs: int64 [p, 3] of row, row, 1 or 0. entry_ids: of the entries
    that rows are of. verdict_watermark: as of the table; None: the pairs are no verdicts. conclude: runs in
    the transaction that keeps what came of it. Returns what there is to say of it, with `encoder_id` (None:
    nothing better was found), `accepted` and `reasons`; a figure that nothing could be judged by is None.

    Raises: CommandError without torch; PreconditionError where another encoder became active or a row that
    was read was forgotten meanwhile; NotFoundError where the cache was deleted; TrainingDataError for pairs
    that cannot be learned from; ConfigError where the training diverges.
    """
    try:
        from hashing.deep.lifelong import update_pairs
        from hashing.deep.pairs import check_pairs, split_pairs
        from hashing.deep.update_config import PairUpdateConfig
    except ImportError as error:
        raise CommandError("this needs the extra `train`: pip install nearhit[train]") from error
    parent, modality = base.parent, base.modality
    pairs = check_pairs(pairs, row_count=len(rows))
    rng = np.random.default_rng(seed)
    split = split_pairs(pairs, row_count=len(rows), validation_share=GATE_SHARE, rng=rng)
    rehearsed, judged = _share_out(base.stored.vectors, rows, split.validation, rng=rng)
    if len(judged) < LEAST_ROWS:
        waiting: dict[str, Any] = {
            "encoder_id": None,
            "accepted": False,
            "reasons": (f"{len(base.stored)} stored entries are too few to judge by: they wait for more",),
        }
        with writing(engine) as connection:
            conclude(connection, waiting)
        return waiting
    few = {"epochs": 4, "batch_size": 64} if len(pairs) < SMALL_PAIR_COUNT else {}
    learned = update_pairs(
        parent,
        embeddings=rows,
        pairs=split.training,
        rehearsal=rehearsed,
        modality=modality,
        config=PairUpdateConfig(seed=seed, **few),
        progress=progress,
    )
    child, gate = learned.encoder, None
    outcome: dict[str, Any] = {
        "encoder_id": None,
        "accepted": False,
        "reasons": ("no pass was better than the active encoder on pairs that were held out",),
    }
    if child is not None:
        progress("judge", 0, 1)
        held_out = _held_out(rows, split.validation, judged)
        gate = evaluate_pair_update(parent, child, held_out, modality=modality, thresholds=base.thresholds)
        progress("judge", 1, 1)
        outcome = {"encoder_id": child.encoder_id, **asdict(gate)}
    figures = _figures(learned.report)
    outcome = {name: None if value != value else value for name, value in (outcome | figures).items()}
    progress("activate", 0, 1)
    with writing(engine) as connection:
        if child is not None and gate is not None:
            _register(
                connection,
                base,
                child,
                gate,
                figures,
                read_row_ids=[*base.stored.row_ids, *entry_ids],
                verdict_watermark=verdict_watermark,
                config=config,
            )
        elif verdict_watermark is not None:
            mark_read(connection, base.record.id, parent.encoder_id, verdict_watermark)
        conclude(connection, outcome)
    return outcome


def _share_out(
    stored: NDArray[np.float32],
    rows: NDArray[np.float32],
    validation: NDArray[np.int64],
    *,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Stored vectors to rehearse, and a fifth of all to judge among, or JUDGED_ROWS if that is half at most.

    Those of held-out pairs are neither: they are there as answers. Vectors of pairs that are learned judge
    where there are too few others: what is searched are codes of the parent, which do not change.
    """
    paired = {row.tobytes() for row in rows}
    held_out = {row.tobytes() for row in rows[np.unique(validation[:, :2])]}
    drawn = rng.permutation([i for i, row in enumerate(stored) if row.tobytes() not in held_out])
    is_paired = np.array([stored[i].tobytes() in paired for i in drawn], dtype=bool)
    drawn = drawn[np.argsort(is_paired, kind="stable")].astype(np.int64)
    count = min(MAX_GATE_ROWS, max(len(stored) // 5, min(JUDGED_ROWS, len(drawn) // 2)))
    return stored[np.sort(drawn[count:])], stored[drawn[:count]]


def _held_out(
    rows: NDArray[np.float32], pairs: NDArray[np.int64], stored: NDArray[np.float32]
) -> HeldOutPairs:
    """Ask with the first row of each held-out pair for the second one, among stored rows."""
    asked, query = np.unique(pairs[:, 0], return_inverse=True)
    answers, answer = np.unique(pairs[:, 1], return_inverse=True)
    return HeldOutPairs(
        rows=np.concatenate([rows[answers], stored]),
        queries=rows[asked],
        pairs=np.column_stack([query, answer, pairs[:, 2]]),
    )


def _register(
    connection: Connection,
    base: PairBase,
    child: Encoder,
    gate: PairGateReport,
    figures: dict[str, float],
    *,
    read_row_ids: Sequence[int],
    verdict_watermark: int | None,
    config: Config,
) -> None:
    """Keep the child with its figures, and activate it where the gate has accepted it."""
    parent = base.parent
    locked = registry.lock_still_active(connection, base.record.id, parent.encoder_id)
    before = read_encoder(connection, locked, parent.encoder_id)
    own = (encoders.c.cache_id == locked.id, encoders.c.encoder_id == parent.encoder_id)
    learning_state = connection.execute(select(encoders.c.learning_state).where(*own)).scalar()
    judged = {name: value for name, value in asdict(gate).items() if isinstance(value, float)}
    for category, point in gate.operating_points.items():
        judged |= {
            f"{name}.{category}": value
            for name, value in asdict(point).items()
            if name.startswith("precision") and value is not None
        }
    registry.register_encoder(
        connection,
        locked,
        child,
        learning_state=learning_state if gate.accepted else None,
        watermark=before.watermark,
        trusted=_same_codes(connection, locked, parent),
        state=registry.CANDIDATE if gate.accepted else registry.REJECTED,
        reason="; ".join(gate.reasons),
        metrics=figures | {name: value for name, value in judged.items() if not np.isnan(value)},
        read_row_ids=read_row_ids,
        untraced_row_count=before.untraced_row_count,
        verdict_watermark=verdict_watermark,
        now_ms=clock_ms(),
    )
    if gate.accepted:
        registry.activate_encoder(
            connection, locked.id, child.encoder_id, max_live_encoders=config.search.max_live_encoders
        )


def _same_codes(connection: Connection, record: CacheRecord, parent: Encoder) -> set[str]:
    """The encoders whose instance codes are the parent's: those that the child's radii were measured on."""
    same = {parent.encoder_id}
    for encoder_id in registry.trusted_by(connection, record.id, parent.encoder_id):
        try:
            other = load_encoder(read_weights(connection, record.id, encoder_id))
        except CheckpointError:  # destroyed: its stand-in searches its codes
            continue
        if other.instance_id == parent.instance_id:
            same.add(encoder_id)
    return same


def _figures(report: "PairUpdateReport") -> dict[str, float]:
    """The report by metric."""
    figures = {
        "pair_count": float(report.pair_count),
        "validation_pair_count": float(report.validation_pair_count),
        "rehearsal_row_count": float(report.rehearsal_row_count),
        "stored_bits_differ": report.stored_bits_differ,
    }
    for name in ("parent_auc", "stored_auc", "child_auc"):
        figures |= {f"{name}_{count}": value for count, value in getattr(report, name).items()}
    return figures
