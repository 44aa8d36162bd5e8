"""Create the tables of the first version."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

RowId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "caches",
        sa.Column("id", RowId, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("description", sa.String(length=256), nullable=False),
        sa.Column("modalities", sa.JSON(), nullable=False),
        sa.Column("code_bits", sa.Integer(), nullable=False),
        sa.Column("label_bits", sa.Integer(), nullable=False),
        sa.Column("active_encoder_id", sa.String(length=32), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("config_version", sa.BigInteger(), nullable=False),
        sa.Column("token_key", sa.LargeBinary(), nullable=False),
        sa.Column("create_ms", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_caches")),
        sa.UniqueConstraint("name", name=op.f("uq_caches_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "calibrations",
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("query_encoder_id", sa.String(length=32), nullable=False),
        sa.Column("segment_encoder_id", sa.String(length=32), nullable=False),
        sa.Column("create_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_calibrations_cache_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint(
            "cache_id", "query_encoder_id", "segment_encoder_id", name=op.f("pk_calibrations")
        ),
    )
    op.create_table(
        "categories",
        sa.Column("id", RowId, autoincrement=True, nullable=False),
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("threshold", sa.Float(precision=53), nullable=False),
        sa.Column("ttl_ms", sa.BigInteger(), nullable=True),
        sa.Column("ttl_mode", sa.String(length=8), nullable=False),
        sa.Column("max_entries", sa.BigInteger(), nullable=False),
        sa.Column("max_bytes", sa.BigInteger(), nullable=False),
        sa.Column("eviction", sa.String(length=8), nullable=False),
        sa.Column("shadow", sa.Boolean(), nullable=False),
        sa.Column("entry_count", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("hit_count", sa.BigInteger(), nullable=False),
        sa.Column("miss_count", sa.BigInteger(), nullable=False),
        sa.Column("shadow_hit_count", sa.BigInteger(), nullable=False),
        sa.Column("bypass_count", sa.BigInteger(), nullable=False),
        sa.Column("create_ms", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_categories_cache_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_categories")),
        sa.UniqueConstraint("cache_id", "name", name=op.f("uq_categories_cache_id_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "changes",
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("operation", sa.SmallInteger(), nullable=False),
        sa.Column("entry_id", RowId, nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_changes_cache_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("cache_id", "seq", name=op.f("pk_changes")),
    )
    op.create_table(
        "class_codes",
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("label", sa.String(length=128), nullable=False),
        sa.Column("code", sa.LargeBinary(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_class_codes_cache_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("cache_id", "position", name=op.f("pk_class_codes")),
        sa.UniqueConstraint("cache_id", "label", name=op.f("uq_class_codes_cache_id_label")),
    )
    op.create_table(
        "encoders",
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("encoder_id", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("parent_id", sa.String(length=32), nullable=True),
        sa.Column("previous_id", sa.String(length=32), nullable=True),
        sa.Column("weights", sa.LargeBinary(), nullable=False),
        sa.Column("learning_state", sa.LargeBinary(), nullable=True),
        sa.Column("watermark", sa.BigInteger(), nullable=False),
        sa.Column("label_bits", sa.Integer(), nullable=False),
        sa.Column("class_count", sa.Integer(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("create_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_encoders_cache_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("cache_id", "encoder_id", name=op.f("pk_encoders")),
    )
    op.create_table(
        "generations",
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("token", sa.String(length=32), nullable=False),
        sa.Column("create_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_generations_cache_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("cache_id", "token", name=op.f("pk_generations")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", RowId, autoincrement=True, nullable=False),
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=True),
        sa.Column("lease_ms", sa.BigInteger(), nullable=True),
        sa.Column("attempt_count", sa.Integer(), nullable=False),
        sa.Column("report", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("create_ms", sa.BigInteger(), nullable=False),
        sa.Column("end_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_jobs_cache_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("cache_id", "name", name=op.f("uq_jobs_cache_id_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "requests",
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=16), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.Column("create_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_requests_cache_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("cache_id", "request_id", name=op.f("pk_requests")),
    )
    op.create_index(op.f("ix_requests_create_ms"), "requests", ["create_ms"], unique=False)
    op.create_table(
        "entries",
        sa.Column("id", RowId, autoincrement=True, nullable=False),
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("category_id", RowId, nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("fingerprint_key", sa.LargeBinary(length=16), nullable=True),
        sa.Column("fingerprint", sa.Text(), nullable=True),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("has_labels", sa.Boolean(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("modality", sa.String(length=32), nullable=False),
        sa.Column("embedder_id", sa.Text(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.Column("code", sa.LargeBinary(), nullable=True),
        sa.Column("label_code", sa.LargeBinary(), nullable=True),
        sa.Column("encoder_id", sa.String(length=32), nullable=True),
        sa.Column("ttl_ms", sa.BigInteger(), nullable=True),
        sa.Column("ttl_mode", sa.String(length=8), nullable=False),
        sa.Column("create_ms", sa.BigInteger(), nullable=False),
        sa.Column("expire_ms", sa.BigInteger(), nullable=False),
        sa.Column("access_ms", sa.BigInteger(), nullable=False),
        sa.Column("access_count", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_entries_cache_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["category_id"], ["categories.id"], name=op.f("fk_entries_category_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_entries")),
        sa.UniqueConstraint("cache_id", "name", name=op.f("uq_entries_cache_id_name")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_entries_cache_id_id"), "entries", ["cache_id", "id"], unique=False)
    op.create_index(op.f("ix_entries_cache_id_seq"), "entries", ["cache_id", "seq"], unique=False)
    op.create_index(
        op.f("ix_entries_category_id_access_count_access_ms"),
        "entries",
        ["category_id", "access_count", "access_ms"],
        unique=False,
    )
    op.create_index(
        op.f("ix_entries_category_id_access_ms"), "entries", ["category_id", "access_ms"], unique=False
    )
    op.create_index(
        op.f("ix_entries_category_id_expire_ms"), "entries", ["category_id", "expire_ms"], unique=False
    )
    op.create_index(
        op.f("ix_entries_category_id_fingerprint_key"),
        "entries",
        ["category_id", "fingerprint_key"],
        unique=False,
    )
    op.create_table(
        "feedback",
        sa.Column("id", RowId, autoincrement=True, nullable=False),
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("category_id", RowId, nullable=False),
        sa.Column("lookup_digest", sa.LargeBinary(length=16), nullable=False),
        sa.Column("entry_id", RowId, nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("distance", sa.Float(precision=53), nullable=False),
        sa.Column("threshold", sa.Float(precision=53), nullable=False),
        sa.Column("query_code", sa.LargeBinary(), nullable=True),
        sa.Column("generation", sa.String(length=32), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("create_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_feedback_cache_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["category_id"], ["categories.id"], name=op.f("fk_feedback_category_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback")),
        sa.UniqueConstraint("cache_id", "lookup_digest", name=op.f("uq_feedback_cache_id_lookup_digest")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "entry_tags",
        sa.Column("entry_id", RowId, nullable=False),
        sa.Column("tag", sa.String(length=128), nullable=False),
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_entry_tags_cache_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["entry_id"], ["entries.id"], name=op.f("fk_entry_tags_entry_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("entry_id", "tag", name=op.f("pk_entry_tags")),
    )
    op.create_index(op.f("ix_entry_tags_cache_id_tag"), "entry_tags", ["cache_id", "tag"], unique=False)
    op.create_table(
        "responses",
        sa.Column("entry_id", RowId, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("content_type", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(
            ["entry_id"], ["entries.id"], name=op.f("fk_responses_entry_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("entry_id", name=op.f("pk_responses")),
    )


def downgrade() -> None:
    op.drop_table("responses")
    op.drop_index(op.f("ix_entry_tags_cache_id_tag"), table_name="entry_tags")
    op.drop_table("entry_tags")
    op.drop_table("feedback")
    op.drop_index(op.f("ix_entries_category_id_fingerprint_key"), table_name="entries")
    op.drop_index(op.f("ix_entries_category_id_expire_ms"), table_name="entries")
    op.drop_index(op.f("ix_entries_category_id_access_ms"), table_name="entries")
    op.drop_index(op.f("ix_entries_category_id_access_count_access_ms"), table_name="entries")
    op.drop_index(op.f("ix_entries_cache_id_seq"), table_name="entries")
    op.drop_index(op.f("ix_entries_cache_id_id"), table_name="entries")
    op.drop_table("entries")
    op.drop_index(op.f("ix_requests_create_ms"), table_name="requests")
    op.drop_table("requests")
    op.drop_table("jobs")
    op.drop_table("generations")
    op.drop_table("encoders")
    op.drop_table("class_codes")
    op.drop_table("changes")
    op.drop_table("categories")
    op.drop_table("calibrations")
    op.drop_table("caches")
