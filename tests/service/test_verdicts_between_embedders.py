"""Verdicts while an embedder takes another's place: a pair is of one space."""

from collections.abc import Callable

from nearhit import Client
from nearhit.v1 import semantic_cache_service_pb2 as cache_pb
from sqlalchemy import select
from two_embedders import NEW, OLD, WORLD, fill, move, opened, start, takes
from waiting import eventually

from service.config import Config
from service.database import reading
from service.server import Server
from service.tables import feedback

RIGHT = cache_pb.VERDICT_RIGHT


def kept_queries(config: Config) -> list[bool]:
    """Whether each verdict, in order, has its query."""
    with opened(config) as engine, reading(engine) as connection:
        found = connection.execute(select(feedback.c.query_vector).order_by(feedback.c.id)).scalars()
        return [vector is not None for vector in found]


def test_query_is_kept_with_an_entry_of_its_own_embedder_alone(
    sqlite_config: Config, start_server: Callable[[Config], Server], connect: Callable[[Server], Client]
) -> None:
    client = connect(start_server(sqlite_config))
    fill(client)
    of_old = client.lookup("faq", "billing", embedding=WORLD.asked_old[0], embedder_id=OLD)
    given = client.record_feedback(of_old.lookup_token, RIGHT, embedding=WORLD.asked_old[0], embedder_id=OLD)
    assert given.query_kept
    start(sqlite_config)
    eventually(lambda: takes(client, WORLD.new[0], NEW))
    mapped = client.lookup("faq", "billing", embedding=WORLD.asked_new[1], embedder_id=NEW)
    assert mapped.mapped
    given = client.record_feedback(mapped.lookup_token, RIGHT, embedding=WORLD.asked_new[1], embedder_id=NEW)
    assert (given.recorded, given.query_kept) == (True, False)
    assert kept_queries(sqlite_config) == [True, False]
    assert move(sqlite_config, [0]) == (1, 0)
    assert kept_queries(sqlite_config) == [False, False]
