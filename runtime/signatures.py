"""Signatures of bundles, by OpenSSF's Model Signing: who made this, and is every byte of it as it was then?

A bundle's own digests find damage. Whoever can change a file can change its digest too; the signature, made with a key
that is not on the machine, finds that.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from artifacts import CorruptArtifactError, MissingArtifactError, MissingExtraError, UsageError

_CERTIFICATE, _PUBLIC_KEY = b"-----BEGIN CERTIFICATE-----", b"-----BEGIN PUBLIC KEY-----"


def signature_path(bundle: Path) -> Path:
    """Returns where the signature of a bundle lies: beside its folder, which stays as it was signed."""
    whole = bundle.absolute()
    return whole.with_name(f"{whole.name}.sig")


def check_signature(bundle: Path, key: Path) -> None:
    """Verifies every file of a bundle against its signature.

    Args:
        bundle: the folder.
        key: a PEM file: a public key (an elliptic curve's), or the certificates up to a root that is trusted.

    Raises:
        UsageError: the key is neither.
        MissingArtifactError: there is no signature.
        CorruptArtifactError: the signature is another key's, or a file is not what was signed.
        MissingExtraError: Model Signing is not installed.
    """
    verifier, signature = _make_verifier(key), signature_path(bundle)
    if not signature.is_file():
        raise MissingArtifactError(
            f"{bundle} has no signature at {signature}, and one by {key} is required. Whoever made the bundle signs it "
            f"with: python -m model_signing sign key {bundle} --private_key KEY --signature {signature}"
        )
    try:
        verifier.verify(bundle, signature)
    except Exception as error:  # the library raises ValueError, its cryptography's errors, and those of broken JSON
        raise CorruptArtifactError(
            f"{bundle} is not what {signature} signs, or {key} is not the signer's ({error or type(error).__name__}); "
            "it is not opened. Take the bundle and its signature from their maker again"
        ) from error


def _make_verifier(key: Path) -> Any:
    try:
        content = key.read_bytes()
    except OSError as error:
        raise UsageError(f"the key {key} cannot be read: {error.strerror}") from error
    if _CERTIFICATE not in content and _PUBLIC_KEY not in content:
        raise UsageError(f"{key} is no PEM file with a public key or certificates; a private key stays with the signer")
    try:
        verifying: Any = importlib.import_module("model_signing.verifying")
    except ModuleNotFoundError as error:
        raise MissingExtraError("model-signing", "signing") from error
    config = verifying.Config()
    try:
        if _CERTIFICATE in content:
            return config.use_certificate_verifier(certificate_chain=[key])
        return config.use_elliptic_key_verifier(public_key=key)
    except Exception as error:  # as above
        raise UsageError(f"the key {key} cannot be used: {error}; expected one of an elliptic curve") from error
