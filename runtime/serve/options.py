"""``ServeOptions``: what a server serves, where, to whom, and its limits."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from artifacts import PameError, UsageError
from runtime.hosting.options import HostOptions

_NAME = re.compile(r"[\w.-]{1,128}", re.ASCII)
_OFF = "off"
_LOOPBACK = "127.0.0.1"
_LARGEST_PORT = 65535
_TOKEN_LENGTH = 16
OVERLOAD_STATUSES = (503, 429)


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port of TCP; port 0: any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class BundleSource:
    """A bundle to serve: the name of its model, and its folder."""

    name: str
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of what clients may send; every one has a flag.

    Attributes:
        body_mb: a request's body, and what it grows to when it is decompressed; in MiB, as all of these.
        json_mb: the JSON of a request. Parsed, it takes many times that.
        inflight_mb: all bodies that are being received or answered.
        header_kb: the head of an HTTP request.
        connections: of HTTP at the same time, and calls of gRPC.
        read_timeout_s: for a head to arrive, and for a body.
        image_mpx: millions of pixels of a picture before it is scaled.

    Raises:
        UsageError: a limit is not a positive number.
    """

    body_mb: float = 64.0
    json_mb: float = 16.0
    inflight_mb: float = 512.0
    header_kb: float = 64.0
    connections: int = 1024
    read_timeout_s: float = 30.0
    image_mpx: float = 64.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"--max-{name.replace('_', '-')} {value}: expected a positive number")

    @property
    def body(self) -> int:
        """Bytes of a body."""
        return int(self.body_mb * (1 << 20))

    @property
    def json(self) -> int:
        """Bytes of JSON."""
        return int(self.json_mb * (1 << 20))

    @property
    def inflight(self) -> int:
        """Bytes of all bodies."""
        return int(self.inflight_mb * (1 << 20))


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """Who may talk to the server, and how.

    Attributes:
        certificate, key: PEM files for TLS; both or none.
        token: what clients send as ``Authorization: Bearer TOKEN``; ``None``: nothing. Health needs none.
        shared_memory: clients may name POSIX shared memory of this machine, which is read and written for them.
        signer: bundles must be signed by this public key, or by one of these certificates; ``None``: they need not.
        load_folder: models may be loaded from its folders and unloaded by clients; ``None``: not at all.

    Raises:
        UsageError: one of certificate and key is missing.
    """

    certificate: Path | None = None
    key: Path | None = None
    token: str | None = field(default=None, repr=False)
    load_folder: Path | None = None
    shared_memory: bool = False
    signer: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise UsageError("TLS needs both --tls-cert FILE and --tls-key FILE")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Options of a server.

    Attributes:
        bundles: what it serves from the start.
        http, grpc, metrics: where; ``None``: not at all.
        host: of every bundle.
        threads, device: as those of ``Runtime.load``.
        drain_delay_s: after SIGTERM it is not ready, but answers, for so long.
        drain_timeout_s: then for how long it finishes what it has admitted.
        overload_status: of HTTP where the queue is full.
        watch_s: look for a new bundle in each folder as often; ``None``: never.
        triton_metrics: Triton's names of metrics, besides ours.
        otlp: of a collector that a span of each request goes to; empty: as OpenTelemetry's environment variables say;
            ``None``: requests are not traced.
        limits: of what clients may send.
        security: TLS, token, and loading.
    """

    bundles: tuple[BundleSource, ...] = ()
    http: Address | None = Address(_LOOPBACK, 8000)
    grpc: Address | None = Address(_LOOPBACK, 8001)
    metrics: Address | None = Address(_LOOPBACK, 8002)
    host: HostOptions = field(default_factory=HostOptions)
    threads: int | None = None
    device: int = 0
    drain_delay_s: float = 5.0
    drain_timeout_s: float = 30.0
    overload_status: int = OVERLOAD_STATUSES[0]
    watch_s: float | None = None
    triton_metrics: bool = False
    otlp: str | None = None
    limits: Limits = field(default_factory=Limits)
    security: Security = field(default_factory=Security)

    def __post_init__(self) -> None:
        names = [source.name for source in self.bundles]
        if len(set(names)) < len(names):
            raise UsageError(f"two bundles have one name ({', '.join(names)}); give them others: --bundle NAME=DIR")
        if not names and self.security.load_folder is None:
            raise UsageError("there is nothing to serve: --bundle DIR, or --allow-load DIR")
        if self.http is None and self.grpc is None:
            raise UsageError("--http off and --grpc off leave nothing to answer at")
        for flag in ("drain_delay_s", "drain_timeout_s", "watch_s"):
            value = getattr(self, flag)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"--{flag[:-2].replace('_', '-')} {value}: expected seconds from 0")


def parse_address(text: str) -> Address | None:
    """Returns the address that a text names: ``HOST:PORT``; without a host this machine alone; ``off``: none.

    Raises:
        UsageError: it names none.
    """
    if text == _OFF:
        return None
    host, colon, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= _LARGEST_PORT):
        raise UsageError(f"address '{text}': expected HOST:PORT, e.g. 0.0.0.0:8000, or off")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    return Address(bare if colon and bare else _LOOPBACK, int(port))


def parse_bundle(text: str) -> BundleSource:
    """Returns the bundle that ``[NAME=]DIR`` names; its name is that of the run in which it lies, or of the folder.

    Raises:
        UsageError: the name would not do in an address.
    """
    name, equals, folder = text.partition("=")
    if not equals or "/" in name:
        path = Path(text)
        whole = path.resolve()
        return BundleSource(check_name(whole.parent.name if whole.name == "bundle" else whole.name), path)
    return BundleSource(check_name(name), Path(folder))


def check_name(name: str) -> str:
    """Returns the name of a model; ``UsageError`` for one that would not do in an address, or as a folder."""
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise UsageError(f"model name '{name[:200]}': expected letters, digits, dots or dashes: --bundle NAME=DIR")
    return name


def read_token(file: Path) -> str:
    """Returns the token in a file.

    Raises:
        PameError: it cannot be read.
        UsageError: it is too short to keep anybody out, or could not be sent.
    """
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PameError(f"--token-file {file} cannot be read: {error}") from error
    if len(token) < _TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"--token-file {file}: expected at least {_TOKEN_LENGTH} printable characters without spaces")
    return token
