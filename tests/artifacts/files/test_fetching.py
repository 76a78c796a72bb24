"""Files of the package index: taken once, by their digest, from whichever source answers."""

from __future__ import annotations

import hashlib

import pytest

from artifacts import InputError, PackageFile, fetch_package_file
from artifacts.files import fetching

CONTENT = b"a wheel"
FILE = PackageFile(
    project="some-net", version="1.0", name="some_net-1.0-py3-none-any.whl", kind="py3",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)  # fmt: skip


@pytest.fixture
def sources(monkeypatch):
    """What the index and pip bring; an error is raised."""
    brought: dict[str, bytes | OSError] = {"index": CONTENT, "pip": CONTENT}
    asked: list[str] = []

    def bring(source, target):
        asked.append(source)
        found = brought[source]
        if isinstance(found, OSError):
            raise found
        target.write_bytes(found)

    monkeypatch.setattr(fetching, "_download", lambda _url, target: bring("index", target))
    monkeypatch.setattr(fetching, "_ask_pip", lambda _file, target: bring("pip", target))
    return brought, asked


def test_a_file_is_fetched_once(tmp_path, sources):
    _, asked = sources
    for _ in range(2):
        assert fetch_package_file(FILE, tmp_path / "cache").read_bytes() == CONTENT
    assert asked == ["index"]
    assert FILE.url.endswith("/py3/s/some_net/some_net-1.0-py3-none-any.whl")


def test_pip_is_asked_where_the_index_does_not_answer(tmp_path, sources):
    brought, asked = sources
    brought["index"] = OSError("no route")
    assert fetch_package_file(FILE, tmp_path).read_bytes() == CONTENT
    assert asked == ["index", "pip"]


def test_a_damaged_file_is_fetched_again(tmp_path, sources):
    (tmp_path / FILE.name).write_bytes(b"half of")
    assert fetch_package_file(FILE, tmp_path).read_bytes() == CONTENT


def test_another_content_is_refused_and_not_kept(tmp_path, sources):
    brought, _ = sources
    brought.update(index=b"something else", pip=OSError("no pip"))
    with pytest.raises(InputError, match=r"(?s)could not be had.*has the SHA-256.*no pip.*yourself"):
        fetch_package_file(FILE, tmp_path)
    assert list(tmp_path.iterdir()) == []
