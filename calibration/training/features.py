"""Features: what exit heads are trained on, made by the frozen backbone once, or anew for every epoch.

The backbone runs on the deployed engines, in micro-batches that fit into memory, and the features at every cut are
pooled as far as the head there pools them without parameters. What is left is small. Where the images are not varied
and the disk has room, it is kept in a file without a name in the run's folder: read row by row, so that it costs no
memory but what the system has to spare, and gone with the process. Otherwise the backbone runs in every epoch.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from artifacts import InputError
from calibration.data.samples import Samples, in_chunks
from calibration.tracing.all_exits import SegmentRunner
from calibration.training.minibatches import Augmentation, Chunk, keep_pixels, load_chunks
from export import features_read, reduce_features

DISK_SHARE = 0.5
_ANSWERS, _TARGETS = "/answers", "/targets"  # beside the names of cuts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """What some samples become before the exit heads.

    Attributes:
        reduced: cut name -> (n, ...) float32, as ``reduce_features`` returns it.
        answers: (n, classes) float32 of the full network.
        targets: (n, ...); ``None`` without labels.
    """

    reduced: Mapping[str, Tensor]
    answers: Tensor
    targets: np.ndarray | None

    def rows(self, start: int, stop: int | None) -> Features:
        """Returns some of the samples."""
        return Features(
            reduced={name: value[start:stop] for name, value in self.reduced.items()},
            answers=self.answers[start:stop],
            targets=None if self.targets is None else self.targets[start:stop],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureMaker:
    """The frozen backbone, from samples to features.

    Attributes:
        heads: cut name -> exit head.
        runner: the deployed segments and the final head.
        rows: how many rows the runner was opened for.
        samples: what goes in.
        workers: processes that decode, as for ``load_chunks``.
        pixel_bytes: memory for decoded images, where they are needed in every epoch.
    """

    heads: Mapping[str, nn.Module]
    runner: SegmentRunner
    rows: int
    samples: Samples
    workers: int | None
    pixel_bytes: int = 0

    def keeping_pixels(self, indices: np.ndarray) -> FeatureMaker:
        """Returns the same, with images that are decoded once as far as there is memory for them."""
        return replace(self, samples=keep_pixels(self.samples, indices, self.pixel_bytes))

    def make(
        self, indices: np.ndarray, *, augmentation: Augmentation | None = None, first: int = 0
    ) -> Generator[Features, None, None]:
        """Yields the features of some samples in their order, ``rows`` at a time, from the ``first`` chunk on."""
        chunks = list(in_chunks(indices, self.rows))
        for chunk in load_chunks(
            self.samples, chunks, workers=self.workers, augmentation=augmentation, first=first
        ):  # fmt: skip
            yield self._run(chunk)

    def _run(self, chunk: Chunk) -> Features:
        count = self.runner.run(chunk.inputs)
        found = {name: torch.from_numpy(array) for name, array in self.runner.features(count, self.heads).items()}
        read = {name: features_read(head) for name, head in self.heads.items()}
        further = dict.fromkeys(other for others in read.values() for other in others)
        carried = {name: torch.from_numpy(self.runner.tensor(name, count)) for name in further}
        with torch.inference_mode():
            reduced = {
                name: reduce_features(head, found[name], *(carried[other] for other in read[name]))
                for name, head in self.heads.items()
            }
        final, _ = self.runner.answers(count)[-1]
        return Features(reduced=reduced, answers=torch.from_numpy(final[0].astype(np.float32)), targets=chunk.targets)


class FeatureCache:
    """The features of some samples in a file: one record of float32 per sample. Close it, or use it in a ``with``.

    Targets that are a number each stay in memory, larger ones (masks of classes, places of joints) are in the record.
    """

    def __init__(self, folder: Path, first: Features) -> None:
        """Makes an empty cache.

        Args:
            folder: where its nameless file is; it must exist.
            first: features of a few samples, whose shapes all others have.
        """
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  closed in ``close``
        self._shapes = {name: tuple(value.shape[1:]) for name, value in first.reduced.items()}
        self._shapes[_ANSWERS] = tuple(first.answers.shape[1:])
        large = first.targets is not None and first.targets.ndim > 1
        self._dtype = first.targets.dtype if large and first.targets is not None else None
        if first.targets is not None and large:
            self._shapes[_TARGETS] = first.targets.shape[1:]
        self._width = sum(map(math.prod, self._shapes.values()))
        self._targets: list[np.ndarray] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, features: Features) -> None:
        """Adds samples behind those that are there."""
        columns = [*features.reduced.values(), features.answers]
        if self._dtype is not None:
            columns.append(torch.from_numpy(np.asarray(features.targets, np.float32)))
        records = torch.cat([column.reshape(len(column), -1) for column in columns], dim=1).numpy()
        data = memoryview(records.astype(np.float32, copy=False).tobytes())
        while data:
            data = data[self._file.write(data) or 0 :]
        self._count += len(records)
        if features.targets is not None and self._dtype is None:
            self._targets.append(features.targets)

    def _small_targets(self) -> np.ndarray | None:
        """Returns the targets of all samples, where they are a number each; ``None`` without labels."""
        return np.concatenate(self._targets) if self._targets else None

    def read(self, positions: np.ndarray) -> Features:
        """Returns the features of some samples, by their positions in the order of appending."""
        records = np.empty((len(positions), self._width), np.float32)
        size = records[:1].nbytes
        for row, position in enumerate(positions.tolist()):
            view = memoryview(records[row].view(np.uint8))
            if os.preadv(self._file.fileno(), [view], position * size) != size:
                raise InputError(f"the features of sample {position} cannot be read back from the disk")
        pieces = torch.split(torch.from_numpy(records), [math.prod(shape) for shape in self._shapes.values()], dim=1)
        reduced = {
            name: piece.reshape(-1, *shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)
        }
        targets: np.ndarray | None
        if self._dtype is not None:
            targets = reduced.pop(_TARGETS).numpy().astype(self._dtype)
        else:
            small = self._small_targets()
            targets = None if small is None else small[positions]
        return Features(answers=reduced.pop(_ANSWERS), reduced=reduced, targets=targets)

    def close(self) -> None:
        """Gives the file back; may be called twice."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fits_on_disk(folder: Path, first: Features, count: int) -> bool:
    """Tells whether the features of so many samples take at most ``DISK_SHARE`` of what the folder's disk has left."""
    row = sum(value[0].numel() for value in (*first.reduced.values(), first.answers)) * 4
    return row * count <= DISK_SHARE * shutil.disk_usage(folder).free


def join_features(parts: Sequence[Features]) -> Features:
    """Returns the features of all parts, one behind the other."""
    targets = [part.targets for part in parts if part.targets is not None]
    return Features(
        reduced={name: torch.cat([part.reduced[name] for part in parts]) for name in parts[0].reduced},
        answers=torch.cat([part.answers for part in parts]),
        targets=np.concatenate(targets) if targets else None,
    )
