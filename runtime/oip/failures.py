"""Failures: the codes by which HTTP and gRPC tell of our errors, their names in metrics, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

from artifacts import (
    ArtifactError,
    DeadlineError,
    EngineError,
    InputError,
    MissingArtifactError,
    MissingExtraError,
    PameError,
    RefusedError,
    UsageError,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """What a client is told.

    Attributes:
        status: of HTTP.
        code: of gRPC, by name.
        reason: for metrics; few different ones.
    """

    status: int
    code: str
    reason: str


CANCELLED = Failure(499, "CANCELLED", "cancelled")
INTERNAL = Failure(500, "INTERNAL", "internal")
_REFUSALS = {
    "queue_full": Failure(503, "UNAVAILABLE", "queue_full"),
    "draining": Failure(503, "UNAVAILABLE", "draining"),
    "closed": Failure(503, "UNAVAILABLE", "draining"),
    "loading": Failure(503, "UNAVAILABLE", "loading"),
    "stuck": Failure(503, "UNAVAILABLE", "stuck"),
    "forbidden": Failure(503, "UNAVAILABLE", "forbidden"),  # as Triton answers to a load that its mode forbids
    "not_found": Failure(404, "NOT_FOUND", "not_found"),
    "too_large": Failure(413, "RESOURCE_EXHAUSTED", "too_large"),
    "slow": Failure(408, "DEADLINE_EXCEEDED", "slow"),
    "unsupported": Failure(415, "UNIMPLEMENTED", "unsupported"),
    "unauthorised": Failure(401, "UNAUTHENTICATED", "unauthorised"),
}
_OVERLOAD_429 = Failure(429, "RESOURCE_EXHAUSTED", "queue_full")
_KINDS: tuple[tuple[type[PameError], Failure], ...] = (
    (InputError, Failure(400, "INVALID_ARGUMENT", "invalid")),
    (UsageError, Failure(400, "INVALID_ARGUMENT", "invalid")),
    (DeadlineError, Failure(504, "DEADLINE_EXCEEDED", "deadline")),
    (EngineError, Failure(500, "INTERNAL", "engine")),
    (MissingArtifactError, Failure(404, "NOT_FOUND", "not_found")),
    (ArtifactError, Failure(409, "FAILED_PRECONDITION", "bundle")),
    (MissingExtraError, Failure(501, "UNIMPLEMENTED", "unsupported")),
)


def describe_failure(error: PameError, *, overload_status: int = 503) -> Failure:
    """Returns how an error is told.

    Args:
        error: what happened.
        overload_status: of a full queue: 503, as Triton, or 429.
    """
    if isinstance(error, RefusedError):
        if error.reason == "queue_full" and overload_status == _OVERLOAD_429.status:
            return _OVERLOAD_429
        return _REFUSALS.get(error.reason, INTERNAL)
    return next((failure for kind, failure in _KINDS if isinstance(error, kind)), INTERNAL)


_TOLD_BY: dict[type[PameError], tuple[str, ...]] = {
    InputError: ("400", "INVALID_ARGUMENT"),
    DeadlineError: ("408", "504", "DEADLINE_EXCEEDED"),
    EngineError: ("500", "INTERNAL"),
}
_REFUSED_BY = {
    "404": "not_found", "NOT_FOUND": "not_found", "401": "unauthorised", "UNAUTHENTICATED": "unauthorised",
    "403": "forbidden", "PERMISSION_DENIED": "forbidden", "413": "too_large", "415": "unsupported",
    "UNIMPLEMENTED": "unsupported", "429": "queue_full",
}  # fmt: skip


def error_told_by(code: str, message: str) -> PameError:
    """Returns the error that a server tells its client of, ours or another.

    Args:
        code: the status of HTTP, or the name of gRPC's code.
        message: what it says.
    """
    for kind, codes in _TOLD_BY.items():
        if code in codes:
            return kind(message)
    return RefusedError(message, reason=_REFUSED_BY.get(code, "unavailable"))
