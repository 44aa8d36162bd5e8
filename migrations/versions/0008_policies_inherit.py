"""Let categories inherit policies: one column for what a category sets, its parent, and the changes of both.

Entries get what eviction, admission and verdicts need: cost, worth, model, and since when they are demoted.
"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

RowId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# The columns of before, by name. In a downgrade a category gets what it sets itself, else these values.
POLICY_COLUMNS: dict[str, tuple[Any, Any]] = {
    "threshold": (sa.Float(precision=53), "0.1"),
    "ttl_ms": (sa.BigInteger(), None),
    "ttl_mode": (sa.String(length=8), "absolute"),
    "max_entries": (sa.BigInteger(), "0"),
    "max_bytes": (sa.BigInteger(), "0"),
    "eviction": (sa.String(length=8), "lru"),
    "shadow": (sa.Boolean(), sa.false()),
    "min_probability": (sa.Float(precision=53), None),
}
EVICTIONS_OF_BEFORE = ("lru", "lfu")


def upgrade() -> None:
    op.add_column("categories", sa.Column("policy", sa.Text(), nullable=False, server_default="{}"))
    op.add_column("categories", sa.Column("parent_id", RowId, nullable=True))
    categories = _categories()
    connection = op.get_bind()
    for row in connection.execute(sa.select(categories)).all():
        own = {name: row._mapping[name] for name in POLICY_COLUMNS if row._mapping[name] is not None}
        changed = categories.update().where(categories.c.id == row.id)
        connection.execute(changed.values(policy=json.dumps(own, sort_keys=True)))
    for name in POLICY_COLUMNS:
        op.drop_column("categories", name)
    op.create_table(
        "policy_changes",
        sa.Column("id", RowId, autoincrement=True, nullable=False),
        sa.Column("cache_id", RowId, autoincrement=False, nullable=False),
        sa.Column("category_id", RowId, nullable=False),
        sa.Column("category", sa.String(length=63), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("create_ms", sa.BigInteger(), nullable=False),
        sa.Column("operation", sa.String(length=8), nullable=False),
        sa.Column("before", sa.Text(), nullable=False),
        sa.Column("after", sa.Text(), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cache_id"], ["caches.id"], name=op.f("fk_policy_changes_cache_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy_changes")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_policy_changes_cache_id_id"), "policy_changes", ["cache_id", "id"])
    op.add_column("entries", sa.Column("cost", sa.Float(precision=53), nullable=False, server_default="0"))
    op.add_column("entries", sa.Column("worth", sa.Float(precision=53), nullable=False, server_default="0"))
    op.add_column("entries", sa.Column("model", sa.Text(), nullable=False, server_default=sa.text("''")))
    op.add_column("entries", sa.Column("demote_ms", sa.BigInteger(), nullable=True))
    op.create_index(
        op.f("ix_entries_category_id_worth_access_ms"), "entries", ["category_id", "worth", "access_ms"]
    )
    op.create_index(op.f("ix_entries_category_id_id"), "entries", ["category_id", "id"])


def downgrade() -> None:
    # A program of before reads payloads with facts wrongly: generations are built anew. Demotions are lost.
    op.execute("UPDATE generations SET dropped_ms = 0 WHERE dropped_ms IS NULL")
    op.drop_index(op.f("ix_entries_category_id_id"), table_name="entries")
    op.drop_index(op.f("ix_entries_category_id_worth_access_ms"), table_name="entries")
    for name in ("demote_ms", "model", "worth", "cost"):
        op.drop_column("entries", name)
    op.drop_table("policy_changes")
    connection = op.get_bind()
    held = _held(connection)
    for name, (kind, default) in POLICY_COLUMNS.items():
        column: sa.Column[Any] = sa.Column(name, kind, nullable=default is None, server_default=default)
        op.add_column("categories", column)
    categories = _categories()
    for category_id, values in held.items():
        if not values:
            continue
        connection.execute(categories.update().where(categories.c.id == category_id).values(**values))
    op.drop_column("categories", "parent_id")
    op.drop_column("categories", "policy")


def _categories() -> sa.Table:
    columns: list[sa.Column[Any]] = [sa.Column(name, kind) for name, (kind, _) in POLICY_COLUMNS.items()]
    return sa.Table(
        "categories",
        sa.MetaData(),
        sa.Column("id", RowId),
        sa.Column("policy", sa.Text()),
        sa.Column("parent_id", RowId),
        *columns,
    )


def _held(connection: sa.Connection) -> dict[int, dict[str, object]]:
    """What holds for each category, inherited or not, of what there was before."""
    table = _categories()
    rows = connection.execute(sa.select(table.c.id, table.c.policy, table.c.parent_id)).all()
    own = {row.id: json.loads(row.policy) for row in rows}
    parents = {row.id: row.parent_id for row in rows}
    held: dict[int, dict[str, object]] = {}
    for category_id in own:
        found: dict[str, object] = {}
        current: int | None = category_id
        while current is not None:
            found = {**own[current], **found}
            current = parents[current]
        if found.get("eviction", "lru") not in EVICTIONS_OF_BEFORE:
            found["eviction"] = "lru"
        held[category_id] = {name: value for name, value in found.items() if name in POLICY_COLUMNS}
    return held
