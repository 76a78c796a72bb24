"""Tests of the store: artifacts are published whole or not at all, and checked to the byte before use."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import (
    ArtifactError,
    CorruptArtifactError,
    MissingArtifactError,
    SchemaError,
    copy_folder,
    digest_of,
    is_current,
    load_arrays,
    new_artifact,
    open_artifact,
    save_arrays,
)

REMEDY = "python -m thing make"
CONTENT = {"a.bin": b"some bytes", "sub/b.bin": b"other bytes", "empty": b""}


def publish(folder: Path, content: dict[str, bytes] = CONTENT, **parameters: object) -> Path:
    with new_artifact(folder, kind="thing", inputs={"up": "1"}, parameters=parameters) as staging:
        for name, value in content.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(value)
    return folder


def manifest_edit(folder: Path, edit: Callable[[dict], None]) -> None:
    path = folder / "manifest.json"
    plain = json.loads(path.read_text())
    edit(plain)
    del plain["sha256"]
    path.write_text(json.dumps({**plain, "sha256": digest_of(plain)}))


def open_thing(folder: Path) -> dict[str, bytes]:
    artifact = open_artifact(folder, kind="thing", remedy=REMEDY)
    return {entry.path: artifact.path(entry.path).read_bytes() for entry in artifact.manifest.files}


@settings(max_examples=25, deadline=None)
@given(
    content=st.dictionaries(
        st.from_regex(r"[a-z]{1,8}(/[a-z0-9_.]{1,8}x)?", fullmatch=True), st.binary(max_size=200), max_size=5
    )
)
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, content: dict[str, bytes]) -> None:
    folders = {name.split("/")[0] for name in content if "/" in name}
    content = {name: value for name, value in content.items() if name not in folders}
    assert open_thing(publish(tmp_path_factory.mktemp("store") / "thing", content)) == content


def test_a_missing_artifact_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match=REMEDY):
        open_thing(tmp_path / "thing")


@pytest.mark.parametrize("name", sorted(set(CONTENT) - {"empty"}))
@pytest.mark.parametrize("position", [0, -1])
def test_a_flipped_byte_is_refused(tmp_path: Path, name: str, position: int) -> None:
    folder = publish(tmp_path / "thing")
    raw = bytearray((folder / name).read_bytes())
    raw[position] ^= 1
    (folder / name).write_bytes(raw)
    with pytest.raises(CorruptArtifactError, match=rf"{name} differs.*{REMEDY}"):
        open_thing(folder)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "thing")
    (folder / "a.bin").write_bytes(b"some")
    with pytest.raises(CorruptArtifactError, match=r"a\.bin has 4 bytes, the manifest says 10"):
        open_thing(folder)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "thing")
    (folder / "a.bin").unlink()
    with pytest.raises(CorruptArtifactError, match=r"a\.bin is listed in the manifest but missing"):
        open_thing(folder)


def test_an_extra_file_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "thing")
    (folder / "sub" / "extra").write_bytes(b"")
    with pytest.raises(CorruptArtifactError, match="extra is not listed"):
        open_thing(folder)


@pytest.mark.parametrize("path", ["../outside", "/etc/hostname", "sub/../../outside"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    folder = publish(tmp_path / "thing")
    (tmp_path / "outside").write_bytes(b"some bytes")
    manifest_edit(folder, lambda plain: plain["files"][0].update(path=path))
    with pytest.raises(CorruptArtifactError, match="leaves the folder"):
        open_thing(folder)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "thing")
    (tmp_path / "outside").write_bytes(b"some bytes")
    (folder / "a.bin").unlink()
    (folder / "a.bin").symlink_to(tmp_path / "outside")
    with pytest.raises(CorruptArtifactError, match="leaves the folder"):
        open_thing(folder)


def test_a_newer_schema_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = publish(tmp_path / "thing")
    manifest_edit(folder, lambda plain: plain.update(schema_version=3, novelty=True))
    with pytest.raises(SchemaError, match=r"schema version 3; this PAME reads up to 2.*pip install -U pame"):
        open_thing(folder)


def test_another_kind_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "thing")
    with pytest.raises(SchemaError, match="holds a thing, not a bundle"):
        open_artifact(folder, kind="bundle", remedy=REMEDY)


@pytest.mark.parametrize("edit", [{"surprise": 1}, {"files": "none"}, {"kind": 3}])
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, edit: dict[str, object]) -> None:
    folder = publish(tmp_path / "thing")
    manifest_edit(folder, lambda plain: plain.update(edit))
    with pytest.raises(SchemaError):
        open_thing(folder)


def test_every_flipped_bit_of_a_manifest_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "thing", tolerance=0.01)
    path = folder / "manifest.json"
    written = path.read_bytes()
    for position in range(len(written)):
        for bit in range(8):
            raw = bytearray(written)
            raw[position] ^= 1 << bit
            path.write_bytes(raw)
            with pytest.raises((CorruptArtifactError, SchemaError)):
                open_thing(folder)
    path.write_bytes(written)
    assert open_thing(folder) == CONTENT


def test_an_edited_manifest_is_refused_with_the_command(tmp_path: Path) -> None:
    folder = publish(tmp_path / "thing", tolerance=0.01)
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("0.01", "0.05"))
    with pytest.raises(CorruptArtifactError, match=rf"manifest.json differs from its own SHA-256.*{REMEDY}"):
        open_thing(folder)


@pytest.mark.parametrize("name", ["manifest.json", "a.bin", "sub"])
def test_a_link_is_refused_wherever_it_leads(tmp_path: Path, name: str) -> None:
    folder = publish(tmp_path / "thing")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptArtifactError):
        open_thing(folder)
    (folder / name).unlink()
    (tmp_path / "elsewhere").rename(folder / name)
    assert open_thing(folder) == CONTENT


def test_a_link_within_the_folder_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "thing", {"a.bin": b"same", "b.bin": b"same"})
    (folder / "b.bin").unlink()
    (folder / "b.bin").symlink_to("a.bin")
    with pytest.raises(CorruptArtifactError, match="symbolic link"):
        open_thing(folder)


def test_a_folder_may_be_reached_through_a_link(tmp_path: Path) -> None:
    publish(tmp_path / "thing")
    (tmp_path / "current").symlink_to("thing")
    assert open_thing(tmp_path / "current") == CONTENT


def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "thing")
    (folder / "manifest.json").write_bytes(b"{")
    with pytest.raises(CorruptArtifactError, match="is not JSON"):
        open_thing(folder)


def test_an_error_while_writing_keeps_what_was_there(tmp_path: Path) -> None:
    folder = publish(tmp_path / "thing")
    with pytest.raises(ZeroDivisionError), new_artifact(folder, kind="thing") as staging:
        (staging / "half").write_bytes(b"half")
        raise ZeroDivisionError
    assert open_thing(folder) == CONTENT
    assert list(tmp_path.iterdir()) == [folder]


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    folder = publish(tmp_path / "thing")
    with (
        pytest.raises(ArtifactError, match="untouched: no space left on the disk; free some"),
        new_artifact(folder, kind="thing"),
    ):
        raise OSError(28, "No space left on device")
    assert open_thing(folder) == CONTENT
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = publish(tmp_path / "thing")
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if ".new-" in self.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(ArtifactError, match="untouched: no space"):
        publish(folder, {"a.bin": b"later"})
    assert list(tmp_path.iterdir()) == [folder]  # before any reader cleans up
    assert open_thing(folder) == CONTENT


def test_a_copied_folder_is_whole(tmp_path: Path) -> None:
    folder, other = publish(tmp_path / "thing"), publish(tmp_path / "other", {"a.bin": b"before"})
    copy_folder(folder, other)
    assert open_thing(other) == CONTENT
    assert sorted(tmp_path.iterdir()) == [other, folder]


@pytest.mark.parametrize("moment", ["while filling", "before the rename", "between the renames"])
def test_a_killed_writer_leaves_nothing_that_a_reader_takes(tmp_path: Path, moment: str) -> None:
    folder = publish(tmp_path / "thing")
    kill = {
        "while filling": "die()",
        "before the rename": "store._swap_in = lambda *a: die()",
        "between the renames": "store._sync = lambda p: None; Path.rename = rename_once",
    }[moment]
    script = f"""
        import os, signal
        from pathlib import Path
        from artifacts import store
        def die(): os.kill(os.getpid(), signal.SIGKILL)
        real = Path.rename
        def rename_once(self, target):
            real(self, target)
            die()
        with store.new_artifact(Path({str(folder)!r}), kind="thing") as staging:
            (staging / "new").write_bytes(b"new")
            {kill}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path for path in tmp_path.iterdir() if path != folder], "the writer left nothing to recover from"
    assert open_thing(folder) == CONTENT
    publish(folder, {"a.bin": b"later"})
    assert open_thing(folder) == {"a.bin": b"later"}
    assert list(tmp_path.iterdir()) == [folder]


def test_is_current_knows_inputs_parameters_and_damage(tmp_path: Path) -> None:
    folder = publish(tmp_path / "thing", threads=2)
    current = {"kind": "thing", "inputs": {"up": "1"}, "parameters": {"threads": 2}}
    assert is_current(folder, **current)
    assert not is_current(folder, **{**current, "parameters": {"threads": 3}})
    assert not is_current(folder, **{**current, "inputs": {"up": "2"}})
    assert not is_current(tmp_path / "other", **current)
    (folder / "a.bin").unlink()
    assert not is_current(folder, **current)


def test_the_digest_names_the_content_and_not_the_machine(tmp_path: Path) -> None:
    first = open_artifact(publish(tmp_path / "one"), kind="thing", remedy=REMEDY)
    manifest_edit(first.folder, lambda plain: plain["environment"].update(cpu="another"))
    again = open_artifact(first.folder, kind="thing", remedy=REMEDY)
    other = open_artifact(publish(tmp_path / "two", {"a.bin": b"x"}), kind="thing", remedy=REMEDY)
    assert again.digest == first.digest != other.digest


def test_arrays_come_back_and_pickles_are_refused(tmp_path: Path) -> None:
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "names": np.array(["a", "b"])}
    save_arrays(tmp_path / "x.npz", arrays)
    back = load_arrays(tmp_path / "x.npz")
    assert all(np.array_equal(back[name], value) for name, value in arrays.items())
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        save_arrays(tmp_path / "y.npz", {"x": np.array([object()])})
    np.savez(tmp_path / "z.npz", x=np.array([object()]))
    with pytest.raises(CorruptArtifactError, match="without pickle"):
        load_arrays(tmp_path / "z.npz")
    (tmp_path / "w.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(CorruptArtifactError):
        load_arrays(tmp_path / "w.npz")
