"""The gRPC server: services, health, reflection, and an orderly end."""

import logging
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from nearhit.v1 import admin_service_pb2, search_service_pb2, semantic_cache_service_pb2
from nearhit.v1.admin_service_pb2_grpc import add_AdminServiceServicer_to_server
from nearhit.v1.search_service_pb2_grpc import add_SearchServiceServicer_to_server
from nearhit.v1.semantic_cache_service_pb2_grpc import add_SemanticCacheServiceServicer_to_server

from service.application import Application
from service.config import Config
from service.errors import ConfigurationError
from service.interceptors import ErrorInterceptor
from service.servicers.admin import AdminServicer
from service.servicers.search import SearchServicer
from service.servicers.semantic_cache import SemanticCacheServicer

logger = logging.getLogger(__name__)
_SERVICES = (
    semantic_cache_service_pb2.DESCRIPTOR.services_by_name["SemanticCacheService"].full_name,
    search_service_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name,
    admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
)


class Server:
    """One serving process. `port` is the bound one, also where the address asked for port 0."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._app = Application(config)
        self._health = health.HealthServicer()
        self._grpc = grpc.server(
            ThreadPoolExecutor(max_workers=config.server.threads, thread_name_prefix="call"),
            interceptors=(
                ErrorInterceptor(
                    max_streams=config.server.max_streams,
                    max_message_bytes=config.server.max_message_bytes,
                ),
            ),
            maximum_concurrent_rpcs=config.server.max_concurrent_calls,
            options=(
                ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server on it
                ("grpc.max_receive_message_length", config.server.max_message_bytes),
                ("grpc.max_send_message_length", config.server.max_message_bytes),
            ),
        )
        add_SemanticCacheServiceServicer_to_server(SemanticCacheServicer(self._app), self._grpc)  # type: ignore[no-untyped-call]
        add_SearchServiceServicer_to_server(SearchServicer(self._app), self._grpc)  # type: ignore[no-untyped-call]
        add_AdminServiceServicer_to_server(AdminServicer(self._app), self._grpc)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection(
            (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc
        )
        self.port = 0

    def start(self) -> None:
        """Bind, load, serve.

        Raises:
            ConfigurationError: the address cannot be bound.
            MigrationError, StoreUnavailableError, EmbedderUnavailableError: as Application.start.
        """
        try:
            self.port = self._grpc.add_insecure_port(self._config.server.address)
        except RuntimeError as error:
            raise ConfigurationError(
                "[server] address", f"{self._config.server.address} cannot be bound: is the port in use?"
            ) from error
        self._app.start()
        self._grpc.start()
        self._set_health(health_pb2.HealthCheckResponse.SERVING)
        logger.info("serving on port %d", self.port)

    def stop(self) -> None:
        """Say NOT_SERVING, let running calls end within the grace period, write what is queued."""
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._app.leases.close()
        self._grpc.stop(self._config.server.grace_seconds).wait()
        self._app.stop()
        logger.info("stopped")

    def _set_health(self, status: int) -> None:
        for service in ("", *_SERVICES):
            self._health.set(service, status)


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Raises: as Server.start."""
    ended = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        ended.set()

    server = Server(config)
    server.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    ended.wait()
    server.stop()
