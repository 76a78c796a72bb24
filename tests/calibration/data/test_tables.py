"""Image data sets as Parquet and Arrow files: columns, class names and parts are found, or what is unclear is named."""

from __future__ import annotations

import io
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import InputError, MissingExtraError
from calibration import FileImages, image_input, load_samples
from calibration.data import table_rows

pa = pytest.importorskip("pyarrow", reason="reads Parquet: pip install 'pame[tables]'")
pytest.importorskip("PIL")
parquet = pytest.importorskip("pyarrow.parquet")

WANTED = replace(image_input((1, 6, 5)), stated=True)
NAMES = ["cat", "dog", "ape"]


def png(value: int) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.full((6, 5), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def table(values: Sequence[int], labels: Sequence[Any] | None = None, *, features: bool = True, **more: Any) -> Any:
    """A table as the datasets library writes it; every picture is of one value, its label that value modulo 3."""
    labels = [value % 3 for value in values] if labels is None else labels
    columns = {"image": [{"bytes": png(value), "path": f"{value}.png"} for value in values], "label": labels, **more}
    made = pa.table(columns)
    kinds = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    info = json.dumps({"info": {"features": kinds}})
    return made.replace_schema_metadata({"huggingface": info}) if features else made


def write_arrow(path: Path, made: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made, max_chunksize=4)


def load(source: Path, **options: Any) -> tuple[FileImages, str]:
    notes: list[str] = []
    found = load_samples(source, WANTED, report=notes.append, **options)
    assert isinstance(found, FileImages)
    return found, "\n".join(notes)


def values_of(samples: FileImages, part: str) -> list[int]:
    return samples.pixels(samples.indices_of(part))[:, 0, 0, 0].tolist()


def test_shards_of_the_hub_with_their_parts_and_class_names(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    for name, values in {
        "train-00000-of-00002": range(10), "train-00001-of-00002": range(10, 20), "validation-00000-of-00001": (20, 21),
        "test-00000-of-00001": (30, 31, 32),
    }.items():  # fmt: skip
        parquet.write_table(table(values), folder / f"{name}.parquet", row_group_size=3)
    samples, notes = load(tmp_path / "set")
    assert samples.classes == ("cat", "dog", "ape")
    assert values_of(samples, "train") == list(range(20))
    assert values_of(samples, "calibrate") == [20, 21]
    assert values_of(samples, "test") == [30, 31, 32]
    for part in ("train", "calibrate", "test"):
        np.testing.assert_array_equal(samples.targets(samples.indices_of(part)), np.array(values_of(samples, part)) % 3)
    assert samples.split_seed is None
    assert "25 images" in notes
    assert "dog (8)" in notes
    assert samples.pixels(np.array([24, 0, 13]))[:, 0, 0, 0].tolist() == [21, 30, 10]


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    for part, values in {"train": range(9), "test": range(9, 15)}.items():
        write_arrow(tmp_path / "set" / part / "data-00000-of-00001.arrow", table(values, features=False))
        kinds = {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}
        (tmp_path / "set" / part / "dataset_info.json").write_text(json.dumps(kinds))
    samples, notes = load(tmp_path / "set")
    assert samples.classes == tuple(NAMES)
    assert values_of(samples, "train") == list(range(9))
    assert sorted(values_of(samples, "calibrate") + values_of(samples, "test")) == list(range(9, 15))
    assert "has no calibrate part" in notes


def test_one_file_with_one_part_is_split(tmp_path: Path) -> None:
    parquet.write_table(table(range(30)), tmp_path / "train.parquet")
    samples, notes = load(tmp_path / "train.parquet")
    assert "has a train part only" in notes
    assert [len(samples.indices_of(part)) for part in ("train", "calibrate", "test")] == [12, 12, 6]


def test_rows_without_a_label_are_left_out_and_said(tmp_path: Path) -> None:
    parquet.write_table(table(range(6), [0, 1, -1, None, 2, 0]), tmp_path / "a.parquet")
    samples, notes = load(tmp_path / "a.parquet")
    assert len(samples) == 4
    assert samples.pixels(np.arange(4))[:, 0, 0, 0].tolist() == [0, 1, 4, 5]
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2, 0]
    assert "left out 2 rows" in notes


def test_words_and_classes_txt_and_no_labels(tmp_path: Path) -> None:
    words = ["c10", "c2", "c2", "c10"]
    parquet.write_table(table(range(4), words, features=False), tmp_path / "a.parquet")
    samples, _ = load(tmp_path)
    assert samples.classes == ("c2", "c10")
    (tmp_path / "classes.txt").write_text("c10\nc1\nc2\n")
    again, _ = load(tmp_path)
    assert again.labels is not None
    assert (again.classes, again.labels.tolist()) == (("c10", "c1", "c2"), [0, 2, 2, 0])
    parquet.write_table(pa.table({"img": [png(value) for value in range(5)]}), tmp_path / "a.parquet")
    queries, _ = load(tmp_path)
    assert not queries.labelled
    assert sorted(values_of(queries, "calibrate") + values_of(queries, "test")) == list(range(5))


def test_the_order_of_classes_txt_is_the_networks(tmp_path: Path) -> None:
    parquet.write_table(table(range(6)), tmp_path / "a.parquet")
    (tmp_path / "classes.txt").write_text("ape\ncat\ndog\n")
    samples, _ = load(tmp_path)
    assert samples.labels is not None
    assert [samples.classes[label] for label in samples.labels] == [NAMES[value % 3] for value in range(6)]
    assert samples.classes == ("ape", "cat", "dog")


def test_of_fine_and_coarse_labels_the_networks_own_count_decides(tmp_path: Path) -> None:
    made = table(range(6), coarse=[value % 2 for value in range(6)])
    kinds = {
        "image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"},
        "coarse": {"names": ["a", "b"], "_type": "ClassLabel"},
    }  # fmt: skip
    made = made.rename_columns(["image", "fine", "coarse"])
    kinds["fine"] = kinds.pop("label")
    made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
    parquet.write_table(made, tmp_path / "a.parquet")
    assert load(tmp_path, class_count=2)[0].classes == ("a", "b")
    with pytest.raises(InputError, match=r"coarse, fine could all be the labels; keep one of them, or call it 'label'"):
        load(tmp_path, class_count=9)


def test_what_is_unclear_or_damaged_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet.write_table(table(range(6)), tmp_path / "train-0.parquet")
    parquet.write_table(table(range(6)), tmp_path / "more.parquet")
    with pytest.raises(InputError, match=r"more\.parquet does not say which part"):
        load(tmp_path)
    (tmp_path / "more.parquet").write_bytes((tmp_path / "train-0.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"more\.parquet cannot be read as parquet.*fetch it again"):
        load(tmp_path)
    parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "more.parquet")
    with pytest.raises(InputError, match=r"has the columns image, label|has the columns text"):
        load(tmp_path)
    (tmp_path / "train-0.parquet").unlink()
    with pytest.raises(InputError, match="none of the columns text holds images"):
        load(tmp_path)
    parquet.write_table(table(range(3), [0, 1, 7]), tmp_path / "more.parquet")
    with pytest.raises(InputError, match="label 7 in column 'label', but 3 classes are named"):
        load(tmp_path)
    rows = [{"bytes": png(1), "path": None}, {"bytes": png(2)[:45], "path": None}, {"bytes": None, "path": "gone.png"}]
    parquet.write_table(pa.table({"image": rows, "label": [0, 1, 0]}), tmp_path / "more.parquet", row_group_size=2)
    samples, _ = load(tmp_path)
    with pytest.raises(InputError, match=r"more\.parquet, row 1 cannot be read as an image"):
        samples.digests()
    with pytest.raises(InputError, match=r"more\.parquet, row 2 holds no image, nor is there .*gone\.png"):
        samples.pixels(np.array([2]))

    def missing() -> Any:
        raise MissingExtraError("pyarrow", "tables")

    monkeypatch.setattr(table_rows, "load_pyarrow", missing)
    monkeypatch.setattr("calibration.data.tables.load_pyarrow", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'pame\[tables\]'"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_few_blocks_stay_in_memory_and_forked_workers_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".arrow":
        write_arrow(path, table(range(40)))
    else:
        parquet.write_table(table(range(40)), path, row_group_size=4)
    monkeypatch.setattr(table_rows, "_KEPT_BYTES", 1000)
    samples, _ = load(path)
    order = np.random.default_rng(0).permutation(40)
    assert samples.pixels(order)[:, 0, 0, 0].tolist() == order.tolist()
    files = samples.files
    assert isinstance(files, table_rows.TableRows)
    assert len(files._open._kept) <= 3
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    worker = context.Process(target=lambda: queue.put(samples.pixels(order)[:, 0, 0, 0].tolist()))
    worker.start()
    assert queue.get() == order.tolist()
    worker.join(20)
    assert worker.exitcode == 0
    assert samples.pixels(order[:5])[:, 0, 0, 0].tolist() == order[:5].tolist()


def test_labels_as_other_writers_keep_them(tmp_path: Path) -> None:
    parquet.write_table(
        pa.table({"image": [png(v) for v in range(3)], "label": ["0", "3", "1"]}), tmp_path / "a.parquet"
    )
    assert load(tmp_path / "a.parquet")[0].labels.tolist() == [0, 3, 1], "numbers in words are numbers"
    given = pa.table(
        {"image": [png(v) for v in range(3)], "label": [2.0, None, 0.0], "split": ["train", "val", "test"]}
    )
    parquet.write_table(given, tmp_path / "b.parquet")
    samples, said = load(tmp_path / "b.parquet")
    assert samples.labels.tolist() == [2, 0]
    assert "left out 1 rows without a label" in said
    assert {part: len(samples.indices_of(part)) for part in ("train", "calibrate", "test")} == {
        "train": 1,
        "calibrate": 0,
        "test": 1,
    }
    parquet.write_table(pa.table({"image": [png(1)], "label": [[1]]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match="column 'label' holds list<.*>, which is no class"):
        load(tmp_path / "c.parquet")
