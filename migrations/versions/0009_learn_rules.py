"""Let categories learn how they decide: rules, and what each verdict tells of its lookup."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

RowId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("feedback", sa.Column("evidence", sa.LargeBinary(), nullable=True))
    op.create_index("ix_feedback_cache_id_id", "feedback", ["cache_id", "id"])
    op.create_table(
        "decision_rules",
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("category_id", RowId, autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("update_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_decision_rules_cache_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["category_id"], ["categories.id"], name=op.f("fk_decision_rules_category_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("cache_id", "category_id", name=op.f("pk_decision_rules")),
    )


def downgrade() -> None:
    op.drop_table("decision_rules")
    op.drop_index("ix_feedback_cache_id_id", table_name="feedback")
    op.drop_column("feedback", "evidence")
