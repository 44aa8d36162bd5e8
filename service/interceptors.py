"""The outermost layer of a call: errors become statuses here and nowhere else, and each call is logged."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from nearhit.v1.errors_pb2 import ErrorInfo, ErrorStatus

from service.errors import DeadlineError, ServiceError

logger = logging.getLogger(__name__)
_ERROR_INFO_URL = "type.googleapis.com/google.rpc.ErrorInfo"
_DETAILS_KEY = "grpc-status-details-bin"
_DOMAIN = "nearhit"


class ErrorInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """Turns a ServiceError into its status with ErrorInfo, anything else into INTERNAL without its text.

    A call whose deadline has passed before it began is not computed.
    """

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Wrap the method's handler."""
        handler = continuation(handler_call_details)
        if handler is None or handler.response_streaming:
            return _wrapped_stream(handler, handler_call_details.method) if handler else None
        method = handler_call_details.method
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            with _Outcome(method, context):
                return behaviour(request, context)

        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(call, handler.request_deserializer, handler.response_serializer)


def _wrapped_stream(handler: Any, method: str) -> Any:
    behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream

    def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        with _Outcome(method, context):
            yield from behaviour(request, context)

    make = (
        grpc.stream_stream_rpc_method_handler
        if handler.request_streaming
        else grpc.unary_stream_rpc_method_handler
    )
    return make(call, handler.request_deserializer, handler.response_serializer)


class _Outcome:
    """Ends the call with the status of what its body raised."""

    def __init__(self, method: str, context: grpc.ServicerContext) -> None:
        self._method = method
        self._context = context
        self._started = time.perf_counter()

    def __enter__(self) -> None:
        remaining = self._context.time_remaining()
        if remaining is not None and remaining <= 0:
            self._abort(DeadlineError("the deadline passed before the call began"))

    def __exit__(self, kind: type | None, error: BaseException | None, _trace: object) -> None:
        if error is None:
            self._log("OK", logging.DEBUG)
        elif isinstance(error, ServiceError):
            self._abort(error)
        elif isinstance(error, Exception) and self._context.code() is None:
            logger.exception("%s failed", self._method)
            self._abort(ServiceError("internal error; the server's log says more"))

    def _abort(self, error: ServiceError) -> None:
        self._log(error.status.name, logging.INFO, reason=error.reason)
        self._context.set_trailing_metadata(((_DETAILS_KEY, _details(error)),))
        self._context.abort(error.status, error.message)

    def _log(self, status: str, level: int, *, reason: str = "") -> None:
        if logger.isEnabledFor(level):
            latency_ms = (time.perf_counter() - self._started) * 1000
            logger.log(
                level,
                "call %s %s",
                self._method,
                status,
                extra={
                    "method": self._method,
                    "status": status,
                    "reason": reason,
                    "latency_ms": round(latency_ms, 3),
                },
            )


def _details(error: ServiceError) -> bytes:
    reason = ErrorInfo(reason=error.reason, domain=_DOMAIN, metadata=error.metadata)
    detail = AnyMessage(type_url=_ERROR_INFO_URL, value=reason.SerializeToString())
    status = ErrorStatus(code=error.status.value[0], message=error.message, details=[detail])
    return status.SerializeToString()
