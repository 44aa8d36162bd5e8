"""Add verifiers, and categories that ask for their consent."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

RowId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "verifiers",
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("verifier_id", sa.String(length=32), nullable=False),
        sa.Column("modality", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("weights", sa.LargeBinary(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("create_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_verifiers_cache_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("cache_id", "verifier_id", name=op.f("pk_verifiers")),
    )
    op.add_column("categories", sa.Column("min_probability", sa.Float(precision=53), nullable=True))


def downgrade() -> None:
    op.drop_column("categories", "min_probability")
    op.drop_table("verifiers")
