"""The outermost layer of a call: errors become statuses here and nowhere else, and each call is logged."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from nearhit.v1.errors_pb2 import ErrorInfo, ErrorStatus

from service.errors import DeadlineError, InvalidRequestError, OverloadedError, ServiceError

logger = logging.getLogger(__name__)
_ERROR_INFO_URL = "type.googleapis.com/google.rpc.ErrorInfo"
_DETAILS_KEY = "grpc-status-details-bin"
_DOMAIN = "nearhit"
# Of a message: a peer refuses trailers of over 8 KiB, and a character may take 12 bytes.
_MOST_CHARACTERS = 256
_MALFORMED = object()  # stands for a request whose bytes are no message


class ErrorInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """Turns a ServiceError into its status with ErrorInfo, anything else into INTERNAL without its text.

    A call whose deadline has passed before it began is not computed.
    """

    def __init__(self, *, max_streams: int, max_message_bytes: int) -> None:
        self._max_streams = max_streams
        self._streams = threading.BoundedSemaphore(max_streams)
        self._max_message_bytes = max_message_bytes

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Wrap the method's handler."""
        handler = continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None:
            return None
        if not method.startswith("/nearhit.v1."):  # health and reflection have manners of their own
            is_two_way = handler.request_streaming and handler.response_streaming
            return self._placed_stream(handler, method) if is_two_way else handler
        if handler.response_streaming:
            return self._wrapped_stream(handler, method)
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            with _Outcome(method, context), self._stream_place(is_stream=handler.request_streaming):
                reply = behaviour(_checked(request), context)
                self._check_reply(reply)
                return reply

        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(call, _lenient(handler.request_deserializer), handler.response_serializer)

    def _wrapped_stream(self, handler: Any, method: str) -> Any:
        behaviour = handler.unary_stream

        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with _Outcome(method, context), self._stream_place(is_stream=True):
                yield from behaviour(_checked(request), context)

        deserializer = _lenient(handler.request_deserializer)
        return grpc.unary_stream_rpc_method_handler(call, deserializer, handler.response_serializer)

    def _placed_stream(self, handler: Any, method: str) -> Any:
        behaviour = handler.stream_stream

        def call(requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with _Outcome(method, context), self._stream_place(is_stream=True):
                yield from behaviour(requests, context)

        parse, render = handler.request_deserializer, handler.response_serializer
        return grpc.stream_stream_rpc_method_handler(call, parse, render)

    @contextmanager
    def _stream_place(self, *, is_stream: bool) -> Iterator[None]:
        """A place among the streams; each holds a thread for as long as its peer likes.

        Raises: OverloadedError.
        """
        if not is_stream:
            yield
            return
        if not self._streams.acquire(blocking=False):
            raise OverloadedError(f"{self._max_streams} streams are open", reason="TOO_MANY_STREAMS")
        try:
            yield
        finally:
            self._streams.release()

    def _check_reply(self, reply: Any) -> None:
        size_bytes = reply.ByteSize()
        if size_bytes > self._max_message_bytes:
            raise OverloadedError(
                f"the reply has {size_bytes} bytes, at most {self._max_message_bytes} are sent: ask for less",
                reason="REPLY_TOO_LARGE",
                size_bytes=size_bytes,
                max_bytes=self._max_message_bytes,
            )


def _lenient(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Parse to _MALFORMED instead of an error.

    What fails in there, grpc reports as INTERNAL, and the reader of a stream then waits for good.
    """

    def parse_or_mark(raw: bytes) -> Any:
        try:
            return parse(raw)
        except DecodeError:
            return _MALFORMED

    return parse_or_mark


def _checked(request: Any) -> Any:
    """A request, or each of a stream of them. Raises: InvalidRequestError."""
    if request is _MALFORMED:
        raise InvalidRequestError("the request is no message of its type", reason="MALFORMED_REQUEST")
    return map(_checked, request) if isinstance(request, Iterator) else request


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
        self._context.abort(error.status, _clipped(error.message))

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
    metadata = {key: _clipped(value) for key, value in error.metadata.items()}
    reason = ErrorInfo(reason=error.reason, domain=_DOMAIN, metadata=metadata)
    detail = AnyMessage(type_url=_ERROR_INFO_URL, value=reason.SerializeToString())
    status = ErrorStatus(code=error.status.value[0], message=_clipped(error.message), details=[detail])
    return status.SerializeToString()


def _clipped(text: str) -> str:
    """The text, or its beginning: it may repeat what a caller sent."""
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
