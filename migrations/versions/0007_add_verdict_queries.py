"""Add the queries of verdicts, and how far encoders have learned from them."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("feedback", sa.Column("query_vector", sa.LargeBinary(), nullable=True))
    op.create_index(
        "ix_feedback_pairs",
        "feedback",
        ["cache_id", "verdict", "id"],
        sqlite_where=sa.text("query_vector IS NOT NULL"),
        postgresql_where=sa.text("query_vector IS NOT NULL"),
    )
    op.add_column("encoders", sa.Column("verdict_watermark", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("encoders", "verdict_watermark")
    op.drop_index("ix_feedback_pairs", table_name="feedback")
    op.drop_column("feedback", "query_vector")
