"""The store's schema as SQLAlchemy Core tables; `migrations/` brings a database to it.

Times are int64 milliseconds since the epoch; an entry that never expires has `expire_ms` NEVER_MS. Ids of
resources are strings and unique in their cache; the integer `id` of a row is what the index knows.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

NEVER_MS = 2**63 - 1

# SQLite only numbers rows by itself in a column of exactly this type.
RowId = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _row_id() -> Column[int]:
    return Column("id", RowId, primary_key=True, autoincrement=True)


def _cache_ref(*, primary_key: bool = False) -> Column[int]:
    reference = ForeignKey("caches.id", ondelete="CASCADE")
    return Column("cache_id", RowId, reference, nullable=False, primary_key=primary_key, autoincrement=False)


def _category_ref() -> Column[int]:
    return Column("category_id", RowId, ForeignKey("categories.id", ondelete="CASCADE"), nullable=False)


caches = Table(
    "caches",
    metadata,
    _row_id(),
    Column("name", String(63), nullable=False, unique=True),
    Column("description", String(256), nullable=False),
    Column("modalities", JSON, nullable=False),  # {space: {"dim": int, "embedder_id": str, "succeeds": str}}
    Column("code_bits", Integer, nullable=False),
    Column("label_bits", Integer, nullable=False),
    Column("active_encoder_id", String(32)),
    Column("seq", BigInteger, nullable=False),  # the feed row: the last mutation of the cache's entries
    Column("config_version", BigInteger, nullable=False),  # changes with policies, encoders and categories
    Column("token_key", LargeBinary, nullable=False),  # signs lookup tokens
    Column("create_ms", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),  # the etag
    sqlite_autoincrement=True,
)

categories = Table(
    "categories",
    metadata,
    _row_id(),
    _cache_ref(),
    Column("name", String(63), nullable=False),
    Column("policy", Text, nullable=False, server_default="{}"),  # what it sets itself: policy.dump_own
    Column("parent_id", RowId),  # the category that the rest is inherited from; None: there is none
    Column("entry_count", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("hit_count", BigInteger, nullable=False),
    Column("miss_count", BigInteger, nullable=False),
    Column("shadow_hit_count", BigInteger, nullable=False),
    Column("bypass_count", BigInteger, nullable=False),
    Column("create_ms", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    UniqueConstraint("cache_id", "name"),
    sqlite_autoincrement=True,
)

entries = Table(
    "entries",
    metadata,
    _row_id(),
    _cache_ref(),
    _category_ref(),
    Column("name", String(128), nullable=False),
    Column("scope", Text, nullable=False),
    Column("fingerprint_key", LargeBinary(16)),  # keys.fingerprint_key of scope and fingerprint
    Column("fingerprint", Text),
    Column("text", Text, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("has_labels", Boolean, nullable=False),
    Column("source", Text, nullable=False),
    Column("modality", String(32), nullable=False),  # the space, a key of the cache's modalities
    Column("embedder_id", Text, nullable=False),
    Column("vector", LargeBinary, nullable=False),  # float16 little-endian, L2-normalised before rounding
    Column("code", LargeBinary),  # packed words of the encoder's instance code
    Column("label_code", LargeBinary),
    Column("encoder_id", String(32)),
    Column("ttl_ms", BigInteger),  # what a hit of a sliding entry starts again
    Column("ttl_mode", String(8), nullable=False),
    Column("create_ms", BigInteger, nullable=False),
    Column("expire_ms", BigInteger, nullable=False),
    Column("access_ms", BigInteger, nullable=False),
    Column("access_count", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("cost", Float(53), nullable=False, server_default="0"),  # of computing the response; 0: not known
    Column("worth", Float(53), nullable=False, server_default="0"),  # eviction.worth of it, written with hits
    Column("model", Text, nullable=False, server_default=text("''")),  # which made the response
    Column("demote_ms", BigInteger),  # since then it is no hit by distance; None: it is
    UniqueConstraint("cache_id", "name"),
    Index(None, "category_id", "fingerprint_key"),
    Index(None, "category_id", "expire_ms"),
    Index(None, "category_id", "access_ms"),
    Index(None, "category_id", "access_count", "access_ms"),
    Index(None, "category_id", "worth", "access_ms"),
    Index(None, "category_id", "id"),
    Index(None, "cache_id", "seq"),
    Index(None, "cache_id", "id"),  # scans of one cache in pages
    # What an update would learn, among however many entries without labels.
    Index(
        "ix_entries_labelled",
        "cache_id",
        "seq",
        sqlite_where=text("has_labels = 1"),
        postgresql_where=text("has_labels"),
    ),
    sqlite_autoincrement=True,
)

responses = Table(
    "responses",
    metadata,
    Column("entry_id", RowId, ForeignKey("entries.id", ondelete="CASCADE"), primary_key=True),
    Column("body", LargeBinary, nullable=False),
    Column("content_type", String(255), nullable=False),
)

entry_tags = Table(
    "entry_tags",
    metadata,
    Column("entry_id", RowId, ForeignKey("entries.id", ondelete="CASCADE"), primary_key=True),
    Column("tag", String(128), primary_key=True),
    _cache_ref(),
    Index(None, "cache_id", "tag"),
)

# What happened to which entry, in order; ids only, so an entry's content is gone when the entry is.
changes = Table(
    "changes",
    metadata,
    _cache_ref(primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("operation", SmallInteger, nullable=False),  # store.Operation
    Column("entry_id", RowId, nullable=False),
)

# Answers to stores that named a request id, so that a repeat gives the first answer.
requests = Table(
    "requests",
    metadata,
    _cache_ref(primary_key=True),
    Column("request_id", String(64), primary_key=True),
    Column("digest", LargeBinary(16), nullable=False),
    Column("answer", JSON, nullable=False),
    Column("create_ms", BigInteger, nullable=False, index=True),
)

encoders = Table(
    "encoders",
    metadata,
    _cache_ref(primary_key=True),
    Column("encoder_id", String(32), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("parent_id", String(32)),
    Column("previous_id", String(32)),  # the active one before this one: where a rollback goes
    Column("weights", LargeBinary, nullable=False),
    Column("learning_state", LargeBinary),  # what an update adds to
    Column("watermark", BigInteger, nullable=False),  # labels up to this seq are learned
    Column("verdict_watermark", BigInteger),  # verdicts up to this id are learned, or came to nothing
    Column("label_bits", Integer, nullable=False),  # 0: it has no label codes
    Column("class_count", Integer, nullable=False),
    Column("untraced_row_count", BigInteger),  # rows of files in its label part; None: nobody knows its rows
    Column("metrics", JSON, nullable=False),
    Column("reason", Text, nullable=False),
    Column("create_ms", BigInteger, nullable=False),
)

# Maps by which queries of a new embedder search what the one before embedded; see service.embedder_maps.
embedder_maps = Table(
    "embedder_maps",
    metadata,
    _cache_ref(primary_key=True),
    Column("map_id", String(32), primary_key=True),
    Column("modality", String(32), nullable=False),  # the space that it maps to
    Column("space", String(32), nullable=False),  # the space that it maps or mapped from; empty: it never did
    Column("embedder_id", Text, nullable=False),  # of that space
    Column("state", String(16), nullable=False),  # active | rejected | retired
    Column("weights", LargeBinary, nullable=False),  # empty unless active
    Column("report", JSON, nullable=False),
    Column("create_ms", BigInteger, nullable=False),
)

# The pairs of encoders whose queries may search each other's codes.
calibrations = Table(
    "calibrations",
    metadata,
    _cache_ref(primary_key=True),
    Column("query_encoder_id", String(32), primary_key=True),
    Column("segment_encoder_id", String(32), primary_key=True),
    Column("create_ms", BigInteger, nullable=False),
)

# Second opinions on hits; of each modality at most one is active.
verifiers = Table(
    "verifiers",
    metadata,
    _cache_ref(primary_key=True),
    Column("verifier_id", String(32), primary_key=True),
    Column("modality", String(32), nullable=False),  # of the embeddings that it reads, as in entries
    Column("state", String(16), nullable=False),
    Column("weights", LargeBinary, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("create_ms", BigInteger, nullable=False),
)

# The class codes that were issued: fixed for good, whatever becomes of the encoder that issued them.
class_codes = Table(
    "class_codes",
    metadata,
    _cache_ref(primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),  # order of issue
    Column("label", String(128), nullable=False),
    Column("code", LargeBinary, nullable=False),
    Column("seed", BigInteger, nullable=False),  # of the draw
    UniqueConstraint("cache_id", "label"),
)

# The generations that were built from this store; one that is not listed is of another store.
generations = Table(
    "generations",
    metadata,
    _cache_ref(primary_key=True),
    Column("token", String(32), primary_key=True),
    Column("create_ms", BigInteger, nullable=False),
    Column("dropped_ms", BigInteger),  # since then it may hold forgotten rows: not served, and removed
)

# What label parts learned from, also after the entry is gone: without it nothing could be subtracted.
learned_rows = Table(
    "learned_rows",
    metadata,
    _cache_ref(primary_key=True),
    Column("row_id", RowId, primary_key=True, autoincrement=False),  # of the entry, live or gone
    Column("name", String(128), nullable=False),
    Column("source", Text, nullable=False),
    Column("modality", String(32), primary_key=True),  # as in entries
    Column("tags", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("vector", LargeBinary, nullable=False),  # as in entries
    Index(None, "cache_id", "name"),
)

# Which encoder added which row; a label part holds those of the encoders that it was updated from, too.
learned_by = Table(
    "learned_by",
    metadata,
    _cache_ref(primary_key=True),
    Column("encoder_id", String(32), primary_key=True),
    Column("row_id", RowId, primary_key=True, autoincrement=False),
    Index(None, "cache_id", "row_id"),
)

# Rows that were forgotten, ids only: who read one before must not write down what came of it.
forgotten_rows = Table(
    "forgotten_rows",
    metadata,
    _cache_ref(primary_key=True),
    Column("row_id", RowId, primary_key=True, autoincrement=False),
)

# What lookups of a category are like, and the alarm where they shifted. What is read in its place by each
# replica is JSON as text: a damaged one must not keep the row from being read.
shift_monitors = Table(
    "shift_monitors",
    metadata,
    _cache_ref(primary_key=True),
    Column(
        "category_id",
        RowId,
        ForeignKey("categories.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("version", BigInteger, nullable=False),  # changes with reference and alarm
    Column("lookup_count", BigInteger, nullable=False),  # learned from, or watched since
    Column("reference", Text),  # None: it is being learned
    Column("state", Text, nullable=False),
    Column("alarm", Text),
    Column("alarm_ms", BigInteger),  # None: there is none, or it was acknowledged
    Column("update_ms", BigInteger, nullable=False),
)

# What became of categories' policies, also after the category is gone: its id is no reference.
policy_changes = Table(
    "policy_changes",
    metadata,
    _row_id(),
    _cache_ref(),
    Column("category_id", RowId, nullable=False),
    Column("category", String(63), nullable=False),  # its name
    Column("version", BigInteger, nullable=False),  # the etag after it; of a deletion, before it
    Column("create_ms", BigInteger, nullable=False),
    Column("operation", String(8), nullable=False),  # create | update | delete
    # As `policy` of categories, with the parent; empty: there was none.
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    Column("principal", Text, nullable=False),  # who; empty: not known
    Index(None, "cache_id", "id"),
    sqlite_autoincrement=True,
)

# How categories with a target decide: learned from feedback; see service.decision_rules.
decision_rules = Table(
    "decision_rules",
    metadata,
    _cache_ref(primary_key=True),
    Column(
        "category_id",
        RowId,
        ForeignKey("categories.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("version", BigInteger, nullable=False),  # changes with every rule
    Column("content", Text, nullable=False),
    Column("update_ms", BigInteger, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    _row_id(),
    _cache_ref(),
    Column("name", String(32), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("source", Text),  # of a load: the file, from the inbox on; of a reembed: the embedder
    Column("state", String(16), nullable=False),
    Column("stage", String(16)),  # of the progress; None before the first
    Column("done_count", BigInteger),
    Column("total_count", BigInteger),
    Column("owner", String(64)),
    Column("lease_ms", BigInteger),  # the worker holds the job until then
    Column("attempt_count", Integer, nullable=False),
    Column("report", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("create_ms", BigInteger, nullable=False),
    Column("end_ms", BigInteger),
    UniqueConstraint("cache_id", "name"),
    sqlite_autoincrement=True,
)

feedback = Table(
    "feedback",
    metadata,
    _row_id(),
    _cache_ref(),
    _category_ref(),
    Column("lookup_digest", LargeBinary(16), nullable=False),
    Column("entry_id", RowId, nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("distance", Float(53), nullable=False),
    Column("threshold", Float(53), nullable=False),
    Column("query_code", LargeBinary),
    Column("generation", String(32), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("create_ms", BigInteger, nullable=False),
    Column("query_vector", LargeBinary),  # what was asked, as vectors of entries; None: not known
    Column("evidence", LargeBinary),  # of service.evidence; None: of a program that had none
    UniqueConstraint("cache_id", "lookup_digest"),
    Index("ix_feedback_cache_id_id", "cache_id", "id"),
    # What an encoder may learn from, among however many verdicts without a query.
    Index(
        "ix_feedback_pairs",
        "cache_id",
        "verdict",
        "id",
        sqlite_where=text("query_vector IS NOT NULL"),
        postgresql_where=text("query_vector IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)
