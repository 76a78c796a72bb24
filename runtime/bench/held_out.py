"""Held-out data: whether a bundle has been made without the test part that it is measured on, by digests."""

from __future__ import annotations

from collections.abc import Mapping

from artifacts import MANIFEST, Artifact, RunFolder, StaleArtifactError, read_manifest


def calibration_digests(bundle: Artifact, run: RunFolder) -> dict[str, str]:
    """Returns the digests of the data that a bundle was made with: its own record, or that of the trace it names."""
    manifest = bundle.manifest
    recorded = manifest.parameters.get("data")
    if isinstance(recorded, dict):
        return {str(name): str(digest) for name, digest in recorded.items()}
    if (run.trace / MANIFEST).is_file():
        trace = read_manifest(run.trace)
        if trace.digest == manifest.inputs.get("trace"):
            return dict(trace.inputs)
    return {}


def check_held_out(calibrated_on: Mapping[str, str], test_data: Mapping[str, str], *, where: str, remedy: str) -> str:
    """Makes sure that no test sample was used for calibration, as far as digests can tell.

    Args:
        calibrated_on: digests of the images and of the index set of each part that the bundle was made with.
        test_data: the same of the data to test on, whose parts are disjoint.
        where: the bundle, for the message.
        remedy: the command that plans it again, for the message.

    Returns:
        ``held out`` when the same images were split in the same way, so that the test part is disjoint from what was
        calibrated on; ``other images`` when the images are others.

    Raises:
        StaleArtifactError: the bundle does not say what it was calibrated on, or saw the same images in other parts.
    """
    fix = f"Plan it again for this data with: {remedy} --data DIR"
    if not calibrated_on.get("images"):
        raise StaleArtifactError(
            f"{where} does not say which data it was calibrated on, so nothing can be held out. {fix}"
        )
    if calibrated_on["images"] != test_data["images"]:
        return "other images"
    seen = {part: calibrated_on.get(f"indices.{part}") for part in ("train", "calibrate")}
    for part, digest in seen.items():
        if digest == test_data["indices.test"]:
            raise StaleArtifactError(f"the test part of this data is what {where} used to {part}. {fix}")
    if seen != {part: test_data[f"indices.{part}"] for part in seen}:
        raise StaleArtifactError(
            f"{where} was made with another split of these images: its test part may not be held out. {fix}"
        )
    return "held out"
