"""``EngineFiles``: the files of a TensorRT engine, and the profile that serves each batch size.

A folder holds one serialised engine per file (one file, or one per batch size with ``separate``) and ``profiles.json``,
an ``EngineFiles``: the interface as the parser saw it, and every profile. All of them are listed in the artifact's
manifest, so no file is read before its digest was checked.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from artifacts import OPTIONAL, EngineError, EngineKey, GraphSpec, TensorSpec
from engines.trt.profiles import SEPARATE

PROFILES_JSON = "profiles.json"


def engine_file(size: int | None) -> str:
    """Returns the file of a serialised engine: for one batch size, or for all of them (``None``)."""
    return "engine.trt" if size is None else f"engine_b{size}.trt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One optimisation profile of one serialised engine.

    Attributes:
        file: the serialised engine.
        index: the profile's number in it.
        least, best, most: the fewest rows that it takes, the rows that it is tuned for, and the most that it takes.
        length: of these rows; 0 where all rows have one shape.
    """

    file: str
    index: int
    least: int
    best: int
    most: int
    length: int = field(default=0, metadata=OPTIONAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFiles:
    """The content of a TensorRT engine's folder.

    Attributes:
        inputs, outputs: the interface; the batch is every tensor's leading axis.
        profiles: ascending by the rows that they take, for each length one after the other.
        activation_bytes: scratch memory of a run as the builder reported it, per file; 0 where it did not report it.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    activation_bytes: tuple[int, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """The serialised engines, each once."""
        return tuple(dict.fromkeys(profile.file for profile in self.profiles))

    def profile_of(self, batch_size: int, length: int = 0) -> Profile:
        """Returns the profile that runs a batch of this size: preferably the profile for exactly this size.

        Args:
            batch_size: rows.
            length: of the rows; 0 where all rows have one shape, or the graph has no tensor with a length.

        Raises:
            EngineError: no profile takes it.
        """
        long = [profile for profile in self.profiles if profile.length == length]
        for profile in long:
            if profile.least == profile.best == profile.most == batch_size:
                return profile
        for profile in long:
            if profile.least <= batch_size <= profile.most:
                return profile
        taken = ", ".join(_show_rows(profile) for profile in self.profiles)
        asked = f"{batch_size} rows of length {length}" if length else str(batch_size)
        raise EngineError(
            f"this engine has no profile for a batch of {asked}, only for {taken}; pad or split the batch"
        )


def plan_profiles(key: EngineKey, *, separate: bool) -> tuple[Profile, ...]:
    """Returns the profiles of the engine with this key, for each length those of all batch sizes.

    Args:
        key: without batch sizes it gets a range profile, tuned for the largest batch, which is what enters a network.
        separate: one file per batch size instead of one for all.
    """
    whole, profiles = [(1, key.max_batch_size)], []
    used: dict[str, int] = {}
    for length in key.lengths or (0,):
        for least, most in [(size, size) for size in key.batch_sizes] or whole:
            file = engine_file(most if separate and key.batch_sizes else None)
            index = used[file] = used.get(file, -1) + 1
            profiles.append(Profile(file=file, index=index, least=least, best=most, most=most, length=length))
    return tuple(profiles)


def file_differences(found: EngineFiles, key: EngineKey, graph: GraphSpec | None) -> tuple[str, ...]:
    """Returns every difference between an engine's files and its key or graph, with both values."""
    pairs = [("profiles are", _show_profiles(found.profiles), _show_profiles(_expected_profiles(key)))]
    if graph is not None:
        pairs.append(("inputs are", _show_tensors(found.inputs), _show_tensors(graph.inputs)))
        pairs.append(("outputs are", _show_tensors(found.outputs), _show_tensors(graph.outputs)))
    return tuple(f"{what} {was}, here {now}" for what, was, now in pairs if was != now)


def _expected_profiles(key: EngineKey) -> tuple[Profile, ...]:
    return plan_profiles(key, separate=key.options.get("profiles") == SEPARATE)


def _show_profiles(profiles: tuple[Profile, ...]) -> str:
    return ", ".join(f"{_show_rows(profile)} rows ({profile.file} #{profile.index})" for profile in profiles)


def _show_rows(profile: Profile) -> str:
    rows = str(profile.least) if profile.least == profile.most else f"{profile.least} to {profile.most}"
    return f"{rows} x {profile.length}" if profile.length else rows


def _show_tensors(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(sorted(f"{spec.name} {spec.dtype} {list(spec.row_shape)} a row" for spec in specs))
