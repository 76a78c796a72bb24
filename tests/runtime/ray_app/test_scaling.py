"""Options of an application of Ray Serve, without Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from artifacts import MissingExtraError, UsageError
from runtime.ray_app import Scaling, build
from runtime.serve.options import Security


def test_fixed_replicas_or_as_many_as_the_load_demands() -> None:
    fixed = Scaling(replicas=3, gpus=0.5).options()
    assert fixed["num_replicas"] == 3
    assert fixed["ray_actor_options"] == {"num_cpus": 1.0, "num_gpus": 0.5}
    assert "autoscaling_config" not in fixed
    grows = Scaling(max_replicas=4, max_ongoing_requests=64, max_queued_requests=10).options()
    assert grows["autoscaling_config"] == {
        "min_replicas": 1, "initial_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 32,
    }  # fmt: skip
    assert "num_replicas" not in grows
    assert (grows["max_ongoing_requests"], grows["max_queued_requests"]) == (64, 10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": 0}, {"replicas": 3, "max_replicas": 2}, {"max_ongoing_requests": 0}, {"max_queued_requests": -1},
        {"target_ongoing_requests": 0.0}, {"target_ongoing_requests": 500.0}, {"cpus": -1.0}, {"gpus": float("nan")},
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=list(wrong)[-1]):
        Scaling(**wrong)


@pytest.mark.parametrize(
    ("security", "message"),
    [
        (Security(load_folder=Path()), "one replica of several"),
        (Security(shared_memory=True), "one replica of several"),
        (Security(certificate=Path("a"), key=Path("b")), "TLS of Ray Serve"),
    ],
)
def test_what_one_replica_of_several_cannot_do_is_refused(security: Security, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build("bundle", security=security)


def test_ray_is_imported_when_it_is_used_and_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, runtime.ray_app; sys.exit('ray' in sys.modules or 'tritonclient' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pame\[ray\]"):
        build({"digits": "bundle"})
