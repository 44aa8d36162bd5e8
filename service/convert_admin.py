"""Caches, categories, encoders and jobs: messages to values and back, validated."""

from collections.abc import Mapping
from typing import Any

from nearhit.v1 import admin_service_pb2 as admin_pb
from nearhit.v1 import resources_pb2 as pb

from index.vector_index import VectorIndex
from service.break_even import break_even_hit_rate
from service.category_shift import load_alarm
from service.convert import KEY_BYTES, RULE_SOURCES, check_text, to_timestamp
from service.convert_policy import inherited_fields, set_policy
from service.decision_rules import DecisionRule
from service.errors import InvalidRequestError
from service.keys import cache_name, child_name
from service.records import (
    CacheRecord,
    CategoryRecord,
    EncoderRecord,
    JobRecord,
    ModalitySpec,
    ShiftRecord,
    VerifierRecord,
)
from service.spaces import modalities_of, modality_of, spaces_of

DESCRIPTION_CHARACTERS = 256
_ENCODER_STATES = {
    "candidate": pb.Encoder.STATE_CANDIDATE,
    "active": pb.Encoder.STATE_ACTIVE,
    "retired": pb.Encoder.STATE_RETIRED,
    "rejected": pb.Encoder.STATE_REJECTED,
    "destroyed": pb.Encoder.STATE_DESTROYED,
}
_VERIFIER_STATES = {
    "candidate": pb.Verifier.STATE_CANDIDATE,
    "active": pb.Verifier.STATE_ACTIVE,
}
_DIRECTIONS = {"farther": pb.Shift.DIRECTION_FARTHER, "closer": pb.Shift.DIRECTION_CLOSER}
_SHIFT_STATES = {
    "learning": pb.Shift.STATE_LEARNING,
    "watching": pb.Shift.STATE_WATCHING,
    "alarm": pb.Shift.STATE_ALARM,
}
_JOB_STATES = {
    "queued": pb.Job.STATE_QUEUED,
    "running": pb.Job.STATE_RUNNING,
    "succeeded": pb.Job.STATE_SUCCEEDED,
    "failed": pb.Job.STATE_FAILED,
    "cancelled": pb.Job.STATE_CANCELLED,
}
_JOB_KINDS = {
    pb.Job.KIND_UPDATE: "update",
    pb.Job.KIND_LEARN_PAIRS: "learn-pairs",
}  # that a request may ask for
_JOB_KIND_NUMBERS = {name: number for number, name in _JOB_KINDS.items()} | {
    "load": pb.Job.KIND_LOAD,
    "reembed": pb.Job.KIND_REEMBED,
}


def to_new_cache(cache: pb.Cache) -> dict[str, Any]:
    """What `create_cache` takes. Raises: InvalidRequestError."""
    modalities: dict[str, ModalitySpec] = {}
    for spec in cache.modalities:
        if spec.modality in modalities:
            raise InvalidRequestError(f"modality {spec.modality!r} is given twice", reason="INVALID_MODALITY")
        embedder_id = check_text(spec.embedder_id, field="embedder_id", most_bytes=KEY_BYTES)
        modalities[spec.modality] = ModalitySpec(dim=spec.dim, embedder_id=embedder_id)
    return {
        "modalities": modalities,
        "code_bits": cache.code_bits or 256,
        "label_bits": cache.label_bits or 64,
        "description": to_description(cache.description),
    }


def to_description(text: str) -> str:
    """A description. Raises: InvalidRequestError."""
    if len(text) > DESCRIPTION_CHARACTERS or "\0" in text:
        raise InvalidRequestError(
            f"a description has at most {DESCRIPTION_CHARACTERS} characters and no NUL",
            reason="INVALID_VALUE",
            field="description",
        )
    return text


def from_cache(record: CacheRecord) -> pb.Cache:
    """A cache."""
    active = record.active_encoder_id
    return pb.Cache(
        name=cache_name(record.name),
        modalities=[_from_modality(record, modality) for modality in sorted(modalities_of(record))],
        code_bits=record.code_bits,
        label_bits=record.label_bits,
        active_encoder=child_name(record.name, "encoders", active) if active else "",
        seq=record.seq,
        create_time=to_timestamp(record.create_ms),
        etag=str(record.version),
        description=record.description,
    )


def from_category(
    cache: str,
    record: CategoryRecord,
    *,
    shift: ShiftRecord | None = None,
    rule: DecisionRule | None = None,
) -> pb.Category:
    """A category. shift: None where it is not watched. rule: None where none was learned."""
    category = pb.Category(
        name=child_name(cache, "categories", record.name),
        parent=child_name(cache, "categories", record.parent) if record.parent else "",
        inherited_fields=inherited_fields(record),
        entry_count=record.entry_count,
        size_bytes=record.size_bytes,
        hit_count=record.hit_count,
        miss_count=record.miss_count,
        shadow_hit_count=record.shadow_hit_count,
        bypass_count=record.bypass_count,
        create_time=to_timestamp(record.create_ms),
        etag=str(record.version),
    )
    set_policy(category, record.policy)
    break_even = break_even_hit_rate(record.policy)
    if break_even is not None:
        category.break_even_hit_rate = break_even
    if record.policy.max_wrong is not None:
        category.rule.CopyFrom(_from_rule(rule))
    if shift is not None:
        category.shift.CopyFrom(from_shift(shift))
    return category


def _from_rule(rule: DecisionRule | None) -> pb.DecisionRule:
    if rule is None:
        return pb.DecisionRule(source=pb.RULE_SOURCE_COLD)
    return pb.DecisionRule(
        source=RULE_SOURCES[rule.source],
        risk_limit=rule.risk_limit,
        judged_count=rule.judged_count,
        wrong_count=rule.wrong_count,
        risk_limit_at_load=rule.risk_limit_at_load,
    )


def from_shift(record: ShiftRecord) -> pb.Shift:
    """Whether the lookups of a category have shifted."""
    message = pb.Shift(state=_SHIFT_STATES[record.stage], lookup_count=record.lookup_count)
    if record.alarm_ms is None:
        return message
    message.alarm_time.CopyFrom(to_timestamp(record.alarm_ms))
    alarm, since_ms = load_alarm(record.alarm)
    if alarm is not None and since_ms is not None:
        message.explanation = alarm.explain()
        message.direction = _DIRECTIONS[alarm.direction]
        message.size, message.limit, message.share = alarm.size, alarm.limit, alarm.share
        message.since_time.CopyFrom(to_timestamp(since_ms))
    return message


def _from_modality(record: CacheRecord, modality: str) -> pb.Modality:
    spec, *later = (record.modalities[space] for space in spaces_of(record, modality))
    message = pb.Modality(modality=modality, dim=spec.dim, embedder_id=spec.embedder_id)
    for own in later:
        message.successor.CopyFrom(pb.Modality(modality=modality, dim=own.dim, embedder_id=own.embedder_id))
    return message


def from_index(cache: str, categories: Mapping[int, str], index: VectorIndex) -> admin_pb.Index:
    """The index of this replica."""
    message = admin_pb.Index(
        name=f"{cache_name(cache)}/index", generation=index.generation or "", seq=index.applied_seq
    )
    segments = [segment for partition in index.facts().partitions for segment in partition.segments]
    for segment in segments:
        key = segment.key
        if key.category_id not in categories:
            continue
        message.segments.add(
            category=child_name(cache, "categories", categories[key.category_id]),
            modality=modality_of(key.modality),
            encoder=child_name(cache, "encoders", key.encoder_id) if key.encoder_id else "",
            sealed=segment.is_sealed,
            row_count=segment.row_count,
            live_count=segment.row_count - segment.tombstone_count,
            size_bytes=sum(segment.sizes_bytes.values()),
            has_graph=segment.has_graph,
        )
    message.entry_count = sum(segment.live_count for segment in message.segments)
    return message


def from_encoder(cache: str, record: EncoderRecord, *, code_bits: int) -> pb.Encoder:
    """An encoder."""
    return pb.Encoder(
        name=child_name(cache, "encoders", record.encoder_id),
        state=_ENCODER_STATES[record.state],
        parent=child_name(cache, "encoders", record.parent_id) if record.parent_id else "",
        code_bits=code_bits,
        label_bits=record.label_bits,
        class_count=record.class_count,
        metrics=record.metrics,
        reason=record.reason,
        create_time=to_timestamp(record.create_ms),
    )


def from_verifier(cache: str, record: VerifierRecord) -> pb.Verifier:
    """A verifier."""
    return pb.Verifier(
        name=child_name(cache, "verifiers", record.verifier_id),
        state=_VERIFIER_STATES[record.state],
        modality=modality_of(record.modality),
        metrics=record.metrics,
        create_time=to_timestamp(record.create_ms),
    )


def to_job_kind(job: pb.Job) -> str:
    """The kind of a new job. Raises: InvalidRequestError."""
    if job.kind not in _JOB_KINDS:
        raise InvalidRequestError(
            "a job needs a kind that can be asked for: KIND_UPDATE or KIND_LEARN_PAIRS",
            reason="UNKNOWN_VALUE",
            field="kind",
        )
    return _JOB_KINDS[job.kind]


def from_job(cache: str, record: JobRecord) -> pb.Job:
    """A job."""
    job = pb.Job(
        name=child_name(cache, "jobs", record.name),
        kind=_JOB_KIND_NUMBERS[record.kind],
        state=_JOB_STATES[record.state],
        report=record.report,
        error=record.error,
        create_time=to_timestamp(record.create_ms),
        stage=record.stage or "",
        done_count=record.done_count,
        total_count=record.total_count,
        source=record.source or "",
    )
    if record.end_ms is not None:
        job.end_time.CopyFrom(to_timestamp(record.end_ms))
    return job
