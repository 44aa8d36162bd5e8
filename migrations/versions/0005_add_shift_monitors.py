"""Add the shift monitors of categories."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

RowId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "shift_monitors",
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("category_id", RowId, autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("lookup_count", sa.BigInteger(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("alarm", sa.Text(), nullable=True),
        sa.Column("alarm_ms", sa.BigInteger(), nullable=True),
        sa.Column("update_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_shift_monitors_cache_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["category_id"],
            ["categories.id"],
            name=op.f("fk_shift_monitors_category_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("cache_id", "category_id", name=op.f("pk_shift_monitors")),
    )


def downgrade() -> None:
    op.drop_table("shift_monitors")
