"""Add the maps between embedders; keep what was learned of a row once a space: its vectors differ."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

RowId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "embedder_maps",
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("map_id", sa.String(length=32), nullable=False),
        sa.Column("modality", sa.String(length=32), nullable=False),
        sa.Column("space", sa.String(length=32), nullable=False),
        sa.Column("embedder_id", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("weights", sa.LargeBinary(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("create_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_embedder_maps_cache_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("cache_id", "map_id", name=op.f("pk_embedder_maps")),
    )
    _key_learned_rows("cache_id", "row_id", "modality")


def downgrade() -> None:
    # Of a row that was learned in two spaces one stays: by then neither can be told from the other.
    op.execute(
        "DELETE FROM learned_rows WHERE EXISTS (SELECT 1 FROM learned_rows AS other"
        " WHERE other.cache_id = learned_rows.cache_id AND other.row_id = learned_rows.row_id"
        " AND other.modality > learned_rows.modality)"
    )
    _key_learned_rows("cache_id", "row_id")
    op.drop_table("embedder_maps")


def _key_learned_rows(*columns: str) -> None:
    with op.batch_alter_table("learned_rows") as batch:
        batch.drop_constraint(op.f("pk_learned_rows"), type_="primary")
        batch.create_primary_key(op.f("pk_learned_rows"), list(columns))
