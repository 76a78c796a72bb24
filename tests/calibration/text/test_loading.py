"""Texts as samples: forms of tables, their columns, parts and labels, and what is refused."""

from __future__ import annotations

import gzip
import lzma

import numpy as np
import pytest

from artifacts import InputError, TensorSpec, TextEncoder, TextPreprocessing, UsageError
from calibration import Samples
from calibration.data.splits import PartShare, Splitting
from calibration.text.loading import load_texts
from calibration.text.store import TextStore
from tests.text_worlds import make_sentences, write_sentences, write_tokenizer

SPECS = tuple(TensorSpec(name=name, dtype="int64", row_shape=(8,)) for name in ("input_ids", "attention_mask"))
LINES = [f"{text}\t{label}" for text, label in make_sentences(30, 0)]


@pytest.fixture
def encoder(tmp_path_factory):
    wanted = TextPreprocessing(length=8, ids="input_ids", mask="attention_mask")
    return TextEncoder(write_tokenizer(tmp_path_factory.mktemp("tokenizer")), wanted, SPECS)


@pytest.fixture
def load(encoder):
    def load(source, *, numbers=False, share=None, notes=None):
        splitting = Splitting(share=None if share is None else PartShare.parse(share))
        report = (lambda _: None) if notes is None else notes.append
        return load_texts(source, encoder, numbers=numbers, splitting=splitting, report=report)

    return load


def count(samples):
    return {part: len(samples.indices_of(part)) for part in ("train", "calibrate", "test")}


def test_a_folder_with_a_table_for_each_part(tmp_path, load):
    samples = load(write_sentences(tmp_path, train=40, dev=20, test=10))
    assert isinstance(samples, Samples)
    assert count(samples) == {"train": 40, "calibrate": 20, "test": 10}
    some = samples.indices_of("test")[:3]
    sentences = make_sentences(10, 2)
    assert samples.rows(some) == [text for text, _ in sentences[:3]]
    assert samples.targets(some).tolist() == [label for _, label in sentences[:3]]
    assert {name: array.shape for name, array in samples.inputs(some).items()} == {
        "input_ids": (3, 8), "attention_mask": (3, 8)
    }  # fmt: skip


@pytest.mark.parametrize("name", ["all.tsv", "all.tsv.gz", "all.tsv.xz", "all.csv", "all.parquet"])
def test_forms_of_a_table_hold_the_same(tmp_path, load, name):
    plain = "\n".join(["sentence\tlabel", *LINES]) + "\n"
    path = tmp_path / name
    if name.endswith("gz"):
        path.write_bytes(gzip.compress(plain.encode()))
    elif name.endswith("xz"):
        path.write_bytes(lzma.compress(plain.encode()))
    elif name.endswith("csv"):
        path.write_text(plain.replace("\t", ","))
    elif name.endswith("parquet"):
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        texts, labels = zip(*(line.split("\t") for line in LINES), strict=True)
        parquet.write_table(arrow.table({"sentence": texts, "label": list(map(int, labels))}), path)
    else:
        path.write_text(plain)
    reference = tmp_path / "reference.tsv"
    reference.write_text(plain)
    found, expected = load(path), load(reference)
    assert found.digests() == expected.digests()
    assert sum(count(found).values()) == 30


def test_quotes_belong_to_csv_and_not_to_tsv(tmp_path, load):
    (tmp_path / "a.csv").write_text('text,label\n"one, ""two""",0\nthree,1\n' * 1 + "four,0\nfive,1\nsix,0\n")
    (tmp_path / "b.tsv").write_text('text\tlabel\n"one\t0\nthree\t1\nfour\t0\nfive\t1\nsix\t0\n')
    assert load(tmp_path / "a.csv").rows(np.arange(1)) == ['one, "two"']
    assert load(tmp_path / "b.tsv").rows(np.arange(1)) == ['"one']


def test_pairs_labels_in_words_and_a_column_of_parts(tmp_path, load):
    rows = [f"a film\tit ends\t{'entailment' if i % 2 else 'contradiction'}\t{part}"
            for i, part in enumerate(["train"] * 6 + ["dev"] * 4 + ["test"] * 2)]  # fmt: skip
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join(["sentence1\tsentence2\tgold_label\tsplit", *rows]) + "\n")
    samples = load(path)
    assert samples.classes == ("contradiction", "entailment")
    assert samples.rows(np.array([0])) == [("a film", "it ends")]
    assert count(samples) == {"train": 6, "calibrate": 4, "test": 2}


def test_a_share_of_the_train_part_calibrates(tmp_path, load):
    folder = write_sentences(tmp_path, train=40, dev=20, test=10)
    (folder / "dev.tsv").unlink()
    assert count(load(folder, share="calibrate=train:0.25")) == {"train": 30, "calibrate": 10, "test": 10}


def test_files_beside_those_that_are_called_as_a_part_are_left_out(tmp_path, load):
    folder = write_sentences(tmp_path, train=40, dev=20, test=10)
    (folder / "train_phrases.tsv").write_text((folder / "train.tsv").read_text())
    notes = []
    assert count(load(folder, notes=notes))["train"] == 40
    assert any("left out train_phrases.tsv" in note for note in notes)


def test_numbers_of_a_regression(tmp_path, load):
    path = tmp_path / "scores.tsv"
    path.write_text("\n".join(["sentence1\tsentence2\tscore", *(f"a\tfilm\t{i / 10}" for i in range(50))]) + "\n")
    samples = load(path, numbers=True)
    assert samples.targets(np.array([7])).dtype == np.float32
    assert samples.classes == ()
    assert count(samples) == {"train": 20, "calibrate": 20, "test": 10}
    with pytest.raises(InputError, match="--task regression"):
        load(path)


def test_without_labels(tmp_path, load):
    path = tmp_path / "queries.tsv"
    path.write_text("\n".join(["text", *(line.split("\t")[0] for line in LINES)]) + "\n")
    samples = load(path)
    assert not samples.labelled
    assert count(samples)["train"] == 0
    with pytest.raises(UsageError, match="no labels"):
        samples.targets(np.array([0]))


def test_rows_without_a_label_are_left_out(tmp_path, load):
    path = tmp_path / "some.tsv"
    path.write_text("\n".join(["text\tlabel", *LINES, "hidden\t-1", "\t1"]) + "\n")
    notes = []
    assert sum(count(load(path, notes=notes)).values()) == 30
    assert any("1 texts without a label" in note for note in notes)
    assert any("1 rows without a text" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "words\tlabel\nx\t0\n", "is called as texts are"),
        ("a.tsv", "text\tlabel\nx\t0\ny\n", "line 3: 1 cells, and the first line names 2"),
        ("a.tsv", "text\tlabel\n", "hold no texts"),
        ("a.tsv", b"text\tlabel\n\xff\xfe\t0\n", "is not UTF-8"),
        ("a.tsv.xz", b"no archive", "cannot be read as a table"),
        ("a.txt", "text", "expected texts as a .tsv"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(tmp_path, load, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        load(path)


def test_a_store_gives_back_what_it_was_given():
    store = TextStore(2)
    rows = [("a", ""), ("zwölf\n", "x" * 2_000_000), ("", "\U0001f600")]
    for row in rows:
        store.append(*row)
    store.flush()
    assert [store.read(place) for place in (2, 0, 1)] == [rows[2], rows[0], rows[1]]
    assert len(store) == 3
