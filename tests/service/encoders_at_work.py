"""A cache with an encoder that serves, and a generation."""

from nearhit import Client
from nearhit.v1 import admin_service_pb2 as admin_pb
from waiting import eventually

from hashing import EncoderConfig
from service.application import clock_ms
from service.config import Config
from service.database import open_engine
from service.generations import build_index
from service.learning import train_from_store


def train(
    config: Config,
    client: Client,
    *,
    with_graph: bool,
    cache: str = "rows",
    code_bits: int = 64,
    modality: str = "text",
) -> None:
    """An active encoder with label codes, and a generation that the server serves."""
    engine = open_engine(config.store)
    encoder = train_from_store(
        engine,
        cache,
        config=EncoderConfig(code_bits=code_bits, label_bits=64, itq_iterations=5, feature_count=64),
        modality=modality,
        progress=None,
        now_ms=clock_ms(),
    )
    name = f"caches/{cache}/encoders/{encoder.encoder_id}"
    client.call(client.admin.ActivateEncoder, admin_pb.ActivateEncoderRequest(name=name))
    built = build_index(
        engine,
        cache,
        search=config.search,
        data_dir=config.store.data_dir,
        with_graph=with_graph,
        reencode=False,
        memory_limit_bytes=2**28,
        progress=lambda _step, _done, _total: None,
        now_ms=clock_ms(),
    )
    engine.dispose()
    request = admin_pb.GetIndexRequest(name=f"caches/{cache}/index")
    eventually(lambda: client.call(client.admin.GetIndex, request).generation == built.report.generation)
