"""Signed bundles: what was changed, signed by another key, or not signed at all is not opened."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("model_signing", reason="verifies signatures: pip install 'pame[signing]'")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import signing

from artifacts import CorruptArtifactError, MissingArtifactError, UsageError
from runtime import AsyncRuntime, Runtime
from runtime.signatures import signature_path


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Writes a private key and its public one, as OpenSSL would."""
    private = ec.generate_private_key(ec.SECP256R1())
    paths = folder / f"{name}.pem", folder / f"{name}.pub"
    paths[0].write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    paths[1].write_bytes(
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return paths


def sign(bundle: Path, private: Path) -> None:
    signing.Config().use_elliptic_key_signer(private_key=private).sign(bundle, signature_path(bundle))


@pytest.fixture
def bundle(toy_run: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_run.bundle, tmp_path / "bundle"))


def test_what_was_signed_is_opened(toy_run: Any, bundle: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "maker")
    sign(bundle, private)
    with Runtime.load(bundle, threads=1, verify=public) as runtime:
        assert len(runtime.run(toy_run.inputs[:3]).exit_index) == 3

    async def serve() -> int:
        async with AsyncRuntime.load(bundle, threads=1, verify=public) as host:
            answered = len((await host.infer(toy_run.inputs[:2])).exit_index)
            unsigned = shutil.copytree(bundle, tmp_path / "unsigned")
            with pytest.raises(MissingArtifactError, match="has no signature"):
                await host.reload(unsigned)
            return answered + len((await host.infer(toy_run.inputs[:2])).exit_index)

    assert asyncio.run(serve()) == 4


def test_without_a_signature_nothing_is_opened_where_one_is_required(bundle: Path, tmp_path: Path) -> None:
    _, public = make_keys(tmp_path, "maker")
    with pytest.raises(MissingArtifactError, match=r"python -m model_signing sign key .* --signature .*bundle\.sig"):
        Runtime.load(bundle, verify=public)
    Runtime.load(bundle, threads=1).close()


def test_another_signer_is_refused(bundle: Path, tmp_path: Path) -> None:
    private, _ = make_keys(tmp_path, "stranger")
    _, public = make_keys(tmp_path, "maker")
    sign(bundle, private)
    with pytest.raises(CorruptArtifactError, match="is not what"):
        Runtime.load(bundle, verify=public)


def test_a_threshold_changed_with_all_its_digests_is_refused(bundle: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "maker")
    sign(bundle, private)
    manifest = bundle / "manifest.json"
    plain = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(plain, indent=3))
    with pytest.raises(CorruptArtifactError, match="is not what"):
        Runtime.load(bundle, verify=public)
    manifest.write_text(json.dumps(plain))
    shutil.copytree(bundle, tmp_path / "more")
    (tmp_path / "more" / "added.txt").write_text("x")
    shutil.copyfile(signature_path(bundle), signature_path(tmp_path / "more"))
    with pytest.raises(CorruptArtifactError, match=r"added\.txt"):
        Runtime.load(tmp_path / "more", verify=public)


@pytest.mark.parametrize("broken", ["", "{}", '{"mediaType": 1}'])
def test_a_broken_signature_is_refused(bundle: Path, tmp_path: Path, broken: str) -> None:
    _, public = make_keys(tmp_path, "maker")
    signature_path(bundle).write_text(broken)
    with pytest.raises(CorruptArtifactError, match="is not what"):
        Runtime.load(bundle, verify=public)


def test_what_is_no_key_is_named(bundle: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "maker")
    sign(bundle, private)
    with pytest.raises(UsageError, match="a private key stays with the signer"):
        Runtime.load(bundle, verify=private)
    with pytest.raises(UsageError, match="cannot be read"):
        Runtime.load(bundle, verify=tmp_path / "nothing.pub")
    public.write_text("-----BEGIN PUBLIC KEY-----\nbroken\n-----END PUBLIC KEY-----\n")
    with pytest.raises(UsageError, match="cannot be used"):
        Runtime.load(bundle, verify=public)
