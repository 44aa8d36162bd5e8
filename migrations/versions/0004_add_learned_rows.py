"""Add what label parts learned from, so that it can be forgotten, and drop generations of forgotten rows."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

RowId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "learned_rows",
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("row_id", RowId, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("modality", sa.String(length=32), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_learned_rows_cache_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("cache_id", "row_id", name=op.f("pk_learned_rows")),
    )
    op.create_index(op.f("ix_learned_rows_cache_id_name"), "learned_rows", ["cache_id", "name"])
    op.create_table(
        "learned_by",
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("encoder_id", sa.String(length=32), nullable=False),
        sa.Column("row_id", RowId, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_learned_by_cache_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("cache_id", "encoder_id", "row_id", name=op.f("pk_learned_by")),
    )
    op.create_index(op.f("ix_learned_by_cache_id_row_id"), "learned_by", ["cache_id", "row_id"])
    op.create_table(
        "forgotten_rows",
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("row_id", RowId, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_forgotten_rows_cache_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("cache_id", "row_id", name=op.f("pk_forgotten_rows")),
    )
    op.add_column("encoders", sa.Column("untraced_row_count", sa.BigInteger(), nullable=True))
    # Of a label part from before, nobody knows the rows.
    op.execute("UPDATE encoders SET untraced_row_count = 0 WHERE label_bits = 0")
    op.add_column("generations", sa.Column("dropped_ms", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("generations", "dropped_ms")
    op.drop_column("encoders", "untraced_row_count")
    op.drop_table("forgotten_rows")
    op.drop_table("learned_by")
    op.drop_table("learned_rows")
