"""What a call can raise."""

from collections.abc import Mapping

import grpc
from google.protobuf.message import DecodeError

from nearhit.v1.errors_pb2 import ErrorInfo, ErrorStatus

_DETAILS_KEY = "grpc-status-details-bin"


class NearhitError(Exception):
    """A call that failed. `code` is the gRPC status, `reason` the stable cause, e.g. "DIMENSION_MISMATCH"."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})


def to_error(error: grpc.RpcError) -> NearhitError:
    """The error with what the server said of it."""
    info = _error_info(error)
    return NearhitError(error.code(), error.details() or "", reason=info.reason, metadata=dict(info.metadata))


def _error_info(error: grpc.RpcError) -> ErrorInfo:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            try:
                return ErrorInfo.FromString(ErrorStatus.FromString(value).details[0].value)
            except (DecodeError, IndexError):
                break
    return ErrorInfo()
