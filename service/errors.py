"""What can go wrong in the service, each with its gRPC status and a stable reason.

ServiceError
├── InvalidRequestError     INVALID_ARGUMENT     the caller's mistake; reason says which
├── NotFoundError           NOT_FOUND            no such cache, category, entry, encoder, job
├── AlreadyExistsError      ALREADY_EXISTS       the id is taken
├── ConflictError           ABORTED              an outdated etag
├── PreconditionError       FAILED_PRECONDITION  the resource is in the wrong state for it
├── QuotaExceededError      RESOURCE_EXHAUSTED   larger than the category's quota
├── OverloadedError         RESOURCE_EXHAUSTED   a named queue is full
├── StoreUnavailableError   UNAVAILABLE          the database cannot be reached; nothing was stored
│   └── StoreFullError      UNAVAILABLE          its disk is full; nothing was stored
├── EmbedderUnavailableError UNAVAILABLE         no embedder, or it does not answer
├── DamagedPolicyError      DATA_LOSS            the stored policy of a category cannot be read
├── NotCaughtUpError        UNAVAILABLE          `min_seq` was not reached in time
└── DeadlineError           DEADLINE_EXCEEDED    the caller's deadline passed; a write may still happen

ConfigurationError          raised at start; names the key
MigrationError              the database's schema is not this version's
"""

import grpc


class ServiceError(Exception):
    """An error with a status; `reason` and `metadata` become its google.rpc.ErrorInfo."""

    status = grpc.StatusCode.INTERNAL
    default_reason = "INTERNAL"

    def __init__(self, message: str, *, reason: str | None = None, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = {key: str(value) for key, value in metadata.items()}


class InvalidRequestError(ServiceError):
    """The request itself is wrong."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_REQUEST"


class NotFoundError(ServiceError):
    """The named resource does not exist."""

    status = grpc.StatusCode.NOT_FOUND
    default_reason = "NOT_FOUND"


class AlreadyExistsError(ServiceError):
    """The id is taken."""

    status = grpc.StatusCode.ALREADY_EXISTS
    default_reason = "ALREADY_EXISTS"


class ConflictError(ServiceError):
    """The resource changed since the caller read it."""

    status = grpc.StatusCode.ABORTED
    default_reason = "ETAG_MISMATCH"


class PreconditionError(ServiceError):
    """The resource is in the wrong state for the call."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "FAILED_PRECONDITION"


class QuotaExceededError(ServiceError):
    """The entry alone is larger than its category's quota."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "QUOTA_EXCEEDED"


class OverloadedError(ServiceError):
    """A bounded queue is full; try again later."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "QUEUE_FULL"


class StoreUnavailableError(ServiceError):
    """The database cannot be reached; nothing was stored."""

    status = grpc.StatusCode.UNAVAILABLE
    default_reason = "STORE_UNAVAILABLE"


class StoreFullError(StoreUnavailableError):
    """The database's disk is full; nothing was stored."""

    default_reason = "STORE_FULL"


class EmbedderUnavailableError(ServiceError):
    """There is no embedder, or it does not answer."""

    status = grpc.StatusCode.UNAVAILABLE
    default_reason = "EMBEDDER_UNAVAILABLE"


class DamagedPolicyError(ServiceError):
    """What the store keeps of a category's policy cannot hold; none of the cache's categories is guessed."""

    status = grpc.StatusCode.DATA_LOSS
    default_reason = "POLICY_DAMAGED"

    def __init__(self, category: str, problem: str) -> None:
        super().__init__(f"the policy of category {category} {problem}", category=category)


class NotCaughtUpError(ServiceError):
    """The replica has not seen the mutation that the read must reflect."""

    status = grpc.StatusCode.UNAVAILABLE
    default_reason = "NOT_CAUGHT_UP"


class DeadlineError(ServiceError):
    """The caller's deadline passed."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class ConfigurationError(Exception):
    """A configuration value is invalid; `key` names it as [section] key."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key


class MigrationError(Exception):
    """The database's schema is not the one that this version works with."""
