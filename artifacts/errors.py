"""The error tree of PAME.

    PameError                     exit code 1
    ├── UsageError                exit code 2   a name, flag or setting that does not exist or cannot be
    ├── NoPlanError               exit code 3   no exit plan meets the tolerance
    ├── InputError                              a batch or data set from the caller
    ├── GraphError                              a network that cannot be cut, split or merged
    ├── MissingExtraError                       an optional package is not installed
    ├── EngineError                             a backend failed to build, open or run an engine
    ├── RefusedError                            a serving host did not take a request in
    ├── DeadlineError                           a request's deadline passed before its answer was there
    ├── UnreachableError                        a server was not reached, or the connection to it broke
    └── ArtifactError                           a folder on disk
        ├── MissingArtifactError                not there (yet)
        ├── CorruptArtifactError                its bytes are not those that its manifest lists
        ├── SchemaError                         written by a newer PAME, or of another kind
        └── StaleArtifactError                  sound, but made for something else

Every message says what failed, on which object, what was expected and how to fix it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PameError(Exception):
    """Base of every error that PAME raises on purpose."""

    exit_code = 1


class UsageError(PameError):
    """A name, flag or setting that does not exist or cannot be combined."""

    exit_code = 2


class NoPlanError(PameError):
    """No exit plan meets the tolerance that was asked for."""

    exit_code = 3


class InputError(PameError):
    """A batch or data set from the caller has the wrong shape, dtype or values."""


class GraphError(PameError):
    """A network that cannot be cut, split, merged or reproduced by its parts."""


class MissingExtraError(PameError):
    """An optional dependency is missing; the message names the extra to install."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. Install it with: pip install 'pame[{extra}]'")
        self.package = package
        self.extra = extra


class EngineError(PameError):
    """A backend failed to build, open or run an engine."""


class RefusedError(PameError):
    """A serving host did not take a request in.

    Attributes:
        reason: of a host: ``queue_full``, ``draining``, ``stuck`` or ``closed``; of a server also ``not_found``,
            ``loading``, ``forbidden``, ``unauthorised``, ``too_large`` or ``unsupported``.
        retry_after_s: when it is worth trying again, by what waits now; ``None`` where it is not.
    """

    def __init__(self, message: str, *, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class DeadlineError(PameError):
    """The deadline of a request passed before its answer was there."""


class UnreachableError(PameError):
    """A server was not reached over the network, or the connection broke before its answer was there.

    Attributes:
        connected: whether there was a connection.
    """

    def __init__(self, message: str, *, connected: bool) -> None:
        super().__init__(message)
        self.connected = connected


class ArtifactError(PameError):
    """A folder on disk cannot be used."""


class MissingArtifactError(ArtifactError):
    """The artifact is not there (yet)."""


class CorruptArtifactError(ArtifactError):
    """The bytes on disk are not the ones that the manifest lists."""


class SchemaError(ArtifactError):
    """Written by a newer PAME, or not the kind of artifact that was expected."""


class StaleArtifactError(ArtifactError):
    """A sound artifact that was made for another model, backend or machine."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> UsageError:
    """Returns a ``UsageError`` for an unknown name that suggests the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UsageError(f"unknown {what} '{name}'.{hint} Known: {', '.join(names) or 'none'}.")
