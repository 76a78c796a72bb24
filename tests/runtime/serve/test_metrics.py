"""Metrics of a server as Prometheus reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.serve.options import ServeOptions
from tests.runtime.serve.servers import ask, options_for, serving

parser = pytest.importorskip("prometheus_client.parser", reason="reads metrics: pip install 'pame[serve]'")


def scrape(server: Any) -> dict[tuple[str, ...], float]:
    """Returns every sample: name and label values, in the order of their names -> value."""
    text = ask(server, "GET", "/metrics", at="metrics").body.decode()
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_is_counted(toy_run: Any) -> None:
    rows = toy_run.inputs[:12]
    body = json.dumps({"inputs": [{"name": "image", "datatype": "FP32", "shape": rows.shape, "data": rows.tolist()}]})
    with serving(ServeOptions(**options_for(toy=toy_run.bundle), triton_metrics=True)) as server:
        empty = scrape(server)
        for _ in range(3):
            assert ask(server, "POST", "/v2/models/toy/infer", body.encode()).status == 200
        assert ask(server, "POST", "/v2/models/toy/infer", b"{}").status == 400
        for name in ("a", "b"):
            assert ask(server, "POST", f"/v2/models/{name}/infer", b"{}").status == 404
        found = scrape(server)
    early = int((toy_run.answer_by_numpy(rows, 0)[1] >= toy_run.threshold).sum())
    assert found["pame_requests_total", "200", "toy", "http"] == 3
    assert found["pame_requests_total", "400", "toy", "http"] == 1
    assert found["pame_requests_total", "404", "", "http"] == 2  # whatever clients call it, it is one series
    assert found["pame_failures_total", "toy", "invalid"] == 1
    assert found["pame_rows_total", "cut_0", "toy"] == 3 * early
    assert found["pame_rows_total", "final head", "toy"] == 3 * (12 - early)
    assert found["pame_request_duration_seconds_count", "toy", "http"] == 3
    assert found["pame_request_duration_seconds_bucket", "+Inf", "toy", "http"] == 3
    assert found["pame_row_latency_seconds_count", "cut_0", "toy"] == 3 * early
    assert found["pame_stage_run_rows_sum", "toy", "0"] == 36
    assert found["pame_stage_run_rows_sum", "toy", "1"] == 3 * (12 - early)
    assert found["pame_stage_run_seconds_sum", "toy", "0"] > 0
    assert found["pame_ready",] == found["pame_model_ready", "toy"] == 1
    assert found["pame_inflight_requests", "toy"] == found["pame_inflight_bytes",] == 0
    assert found["pame_drift_alarm", "toy"] == 0
    assert "process_resident_memory_bytes" in {name for name, *_ in found}
    assert found["nv_inference_count", "toy", "1"] == 36
    assert found["nv_inference_request_success", "toy", "1"] == 3
    assert found["nv_inference_request_failure", "toy", "OTHER", "1"] == 1
    assert empty["nv_inference_count", "toy", "1"] == 0


def test_tritons_names_are_there_where_they_are_asked_for(toy_run: Any) -> None:
    with serving(ServeOptions(**options_for(toy=toy_run.bundle))) as server:
        assert not any(name.startswith("nv_") for name, *_ in scrape(server))
        assert ask(server, "GET", "/metrics").status == 404  # not where clients are
