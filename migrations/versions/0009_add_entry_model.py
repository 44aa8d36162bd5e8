"""Add the model that made a response, where a database does not know it yet."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if not _has_model():
        op.add_column("entries", sa.Column("model", sa.Text(), nullable=False, server_default=sa.text("''")))


def downgrade() -> None:
    if _has_model():
        op.drop_column("entries", "model")


def _has_model() -> bool:
    return any(column["name"] == "model" for column in sa.inspect(op.get_bind()).get_columns("entries"))
