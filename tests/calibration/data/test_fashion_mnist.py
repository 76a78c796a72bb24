"""Fetching Fashion-MNIST: whichever source answers, digests checked, a clear error otherwise."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

from artifacts import InputError
from calibration.data.published import fashion_mnist

CONTENT = {name: name.encode() for name in fashion_mnist.DIGESTS}


def packed(name: str) -> bytes:
    return gzip.compress(CONTENT[name])


def refuse(*_: object) -> bytes:
    raise OSError("no answer")


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(
        fashion_mnist, "DIGESTS", {name: hashlib.sha256(raw).hexdigest() for name, raw in CONTENT.items()}
    )
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path.relative_to("/") / "debian")
    monkeypatch.setattr(fashion_mnist, "_download", refuse)
    monkeypatch.setattr(fashion_mnist, "_download_debian", refuse)
    return tmp_path


NAME = "t10k-labels-idx1-ubyte"


def test_the_cache_comes_first(sources: Path) -> None:
    cache = sources / "cache"
    cache.mkdir()
    (cache / f"{NAME}.gz").write_bytes(packed(NAME))
    assert fashion_mnist._read_or_fetch(NAME, cache) == CONTENT[NAME]


def test_an_installed_package_is_taken_and_kept(sources: Path) -> None:
    (sources / "debian").mkdir()
    (sources / "debian" / f"{NAME}.gz").write_bytes(packed(NAME))
    assert fashion_mnist._read_or_fetch(NAME, sources / "cache") == CONTENT[NAME]
    assert (sources / "cache" / f"{NAME}.gz").read_bytes() == packed(NAME)


def test_a_mirror_that_lies_is_passed_over(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(url: str) -> bytes:
        return gzip.compress(b"something else") if url.startswith(fashion_mnist.MIRRORS[0]) else packed(NAME)

    monkeypatch.setattr(fashion_mnist, "_download", answer)
    assert fashion_mnist._read_or_fetch(NAME, sources / "cache") == CONTENT[NAME]


def test_a_damaged_cache_is_mended(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = sources / "cache"
    cache.mkdir()
    (cache / f"{NAME}.gz").write_bytes(packed(NAME)[:-9])
    monkeypatch.setattr(fashion_mnist, "_download_debian", lambda name, _: packed(name))
    assert fashion_mnist._read_or_fetch(NAME, cache) == CONTENT[NAME]
    assert (cache / f"{NAME}.gz").read_bytes() == packed(NAME)


def test_no_source_answers(sources: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)could not be had.*no answer.*--data DIR"):
        fashion_mnist._read_or_fetch(NAME, sources / "cache")


@pytest.mark.parametrize("cache", [None, Path("/dev/null/cache")], ids=["no home", "a home that cannot be written"])
def test_what_cannot_be_kept_is_taken_all_the_same(
    sources: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cache: Path | None
) -> None:
    monkeypatch.setattr(fashion_mnist, "_download", lambda _: packed(NAME))
    assert fashion_mnist._read_or_fetch(NAME, cache) == CONTENT[NAME]
    assert ("cannot keep" in caplog.text) == (cache is not None)


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", fail)
    assert fashion_mnist.find_cache() is None
    assert "no home folder" in caplog.text
