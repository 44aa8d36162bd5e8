"""Add the progress of jobs and the file that one loads, and an index of labelled entries."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("source", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("stage", sa.String(length=16), nullable=True))
    op.add_column("jobs", sa.Column("done_count", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("total_count", sa.BigInteger(), nullable=True))
    op.create_index(
        "ix_entries_labelled",
        "entries",
        ["cache_id", "seq"],
        sqlite_where=sa.text("has_labels = 1"),
        postgresql_where=sa.text("has_labels"),
    )


def downgrade() -> None:
    op.drop_index("ix_entries_labelled", table_name="entries")
    for column in ("total_count", "done_count", "stage", "source"):
        op.drop_column("jobs", column)
