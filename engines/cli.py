"""``python -m engines build|list|verify|inspect|compare``: the engines of a run or of a bundle, on this machine."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts import (
    BUNDLE_JSON,
    PRECISIONS,
    GraphSpec,
    ModelSpec,
    UsageError,
    check_precision,
    find_run,
    open_model,
    to_plain,
)
from artifacts.console import add_common_arguments, print_table, run_command, say, show_progress
from engines.backends.building import builder
from engines.backends.table import DEFAULT_BACKEND, choose_backend
from engines.build_progress import BuildWatch
from engines.cache.bundled import find_bundle_engines, rebuild_bundle
from engines.cache.cache import CachedEngine, ensure_engine, inspect_engine, is_built, list_engines
from engines.cache.inspecting import describe_engine, find_engine
from engines.comparing.command import add_compare_arguments, compare_engines
from engines.identity.keys import key_digest
from engines.options import BuildOptions
from engines.trt.profiles import PROFILE_WAYS

DEFAULT_MAX_BATCH_SIZE = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; ``verify`` returns 1 when an engine is bad."""
    arguments = _make_parser().parse_args(argv)
    bad: list[CachedEngine] = []

    def command(arguments: argparse.Namespace) -> Any:
        if arguments.command == "build":
            return _build_bundle(arguments) if arguments.bundle is not None else _build_run(arguments)
        if arguments.command == "inspect":
            return _inspect_engine(arguments)
        if arguments.command == "compare":
            return compare_engines(arguments)
        found = _inspect_all(arguments, check_bytes=arguments.command == "verify")
        bad.extend(engine for engine in found if engine.problem is not None)
        return _report_engines(found, to_stderr=arguments.json == "-")

    code = run_command(command, arguments)
    for engine in bad:
        say(f"{engine.folder.name}: {engine.problem}")
    return code or (1 if bad and arguments.command == "verify" else 0)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engines",
        description="Build, list and verify engines.",
        epilog="Every command takes --run DIR, all but compare --bundle DIR; --json FILE (- for stdout) and --verbose.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("build", "compile every graph of the run's model, or rebuild a bundle's engines for this machine"),
        ("list", "show every engine: key, size, when it was built, whether it is valid here"),
        ("verify", "check every byte of every engine and its key; exit code 1 if any is bad"),
        ("inspect", "show one engine: inputs, outputs, profiles, activation memory, and layers where it has them"),
        ("compare", "walk through the tensors of two engines of one network: where they part, and whether it matters"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        add_common_arguments(command)
        if name == "compare":
            add_compare_arguments(command)
            continue
        command.add_argument("--bundle", type=Path, metavar="DIR", help="work on the engines inside this bundle")
        if name == "build":
            _add_build_arguments(command)
        if name == "inspect":
            command.add_argument("engine", metavar="ENGINE", help="its name in the list, or the first characters")
    return parser


def _add_build_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--engine", metavar="BACKEND", help=f"the backend (default: {DEFAULT_BACKEND})")
    command.add_argument(
        "--max-batch-size", type=int, metavar="B", help=f"the largest batch (default: {DEFAULT_MAX_BATCH_SIZE})"
    )
    command.add_argument(
        "--batch-size", type=int, action="append", metavar="B", help="build for this batch size only; may be repeated"
    )
    add_engine_arguments(command)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that every command that builds engines shares; ``--engine`` is each command's own."""
    parser.add_argument(
        "--profiles", choices=PROFILE_WAYS, help="how TensorRT's shape profiles are laid out (default: the backend's)"
    )
    parser.add_argument(
        "--precision", metavar="|".join(PRECISIONS),
        help="refuse a network of another precision, which python -m export --precision chooses; bf16: have OpenVINO "
        "compute in it",
    )  # fmt: skip


def _model_graphs(spec: ModelSpec) -> list[GraphSpec]:
    final = [] if spec.final_head is None else [spec.final_head]
    return [spec.full, *spec.segments, *spec.heads.values(), *final]


def _build_run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    run = find_run(arguments.run)
    sizes = tuple(arguments.batch_size or ())
    largest = arguments.max_batch_size or max(sizes, default=DEFAULT_MAX_BATCH_SIZE)
    backend, precision = choose_backend(arguments.engine or DEFAULT_BACKEND, arguments.precision)
    options = BuildOptions(max_batch_size=largest, batch_sizes=sizes, profiles=arguments.profiles)
    builder(backend, options)  # refuses options that the backend does not have, before the model is read
    model = open_model(run.model, remedy=run.remedy("export"))
    check_precision(model.spec, precision, run=run.root)
    results, graphs = [], _model_graphs(model.spec)
    with show_progress("building engines") as report:
        for index, graph in enumerate(graphs):
            path, started = model.path(graph), time.monotonic()
            key = builder(backend, replace(options, lengths=graph.lengths)).key(path)
            reused = is_built(run.engines / key_digest(key), key)
            report(graph.name, index / len(graphs))
            folder = ensure_engine(
                path, graph, run.engines, backend=backend,
                options=replace(options, watch=BuildWatch(report=report).part(index, len(graphs))),
            )  # fmt: skip
            results.append(
                {
                    "graph": graph.name,
                    "engine": folder.as_posix(),
                    "reused": reused,
                    "seconds": round(time.monotonic() - started, 3),
                    "size_bytes": inspect_engine(folder, check_bytes=False).size_bytes,
                }
            )
    _print_builds(f"engines of {run.name} ({backend}, up to batch {largest})", results, arguments)
    return results


def _build_bundle(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    chosen = ("engine", "max_batch_size", "batch_size", "profiles", "precision")
    if any(getattr(arguments, name) for name in chosen):
        raise UsageError(
            "--bundle keeps the backend, batch sizes, profiles and precision that the bundle was planned with; omit "
            f"{', '.join('--' + name.replace('_', '-') for name in chosen)}, or plan again with: python -m planner"
        )
    started = time.monotonic()
    rebuilt = rebuild_bundle(arguments.bundle)
    seconds = round(time.monotonic() - started, 3)
    results = [
        {
            "graph": engine.onnx.name,
            "engine": engine.folder.as_posix(),
            "reused": False,
            "size_bytes": inspect_engine(engine.folder, check_bytes=False).size_bytes,
        }
        for engine in rebuilt
    ]
    _print_builds(f"rebuilt the engines of {arguments.bundle} in {seconds} s", results, arguments)
    say("the plan's times are those of the machine that planned it; to plan for this machine: python -m planner")
    return results


def _print_builds(title: str, results: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    rows = [
        (
            item["graph"], "reused" if item["reused"] else "built", _show_seconds(item.get("seconds")),
            f"{item['size_bytes'] / 1e6:.2f}", item["engine"],
        )
        for item in results
    ]  # fmt: skip
    print_table(title, ("graph", "", "s", "MB", "engine"), rows, to_stderr=arguments.json == "-")


def _show_seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"


def _inspect_all(arguments: argparse.Namespace, *, check_bytes: bool) -> tuple[CachedEngine, ...]:
    if arguments.bundle is None:
        return list_engines(find_run(arguments.run).engines, check_bytes=check_bytes)
    if not (arguments.bundle / BUNDLE_JSON).is_file():
        raise UsageError(f"--bundle {arguments.bundle}: there is no bundle. Make one with: python -m planner")
    return tuple(inspect_engine(folder, check_bytes=check_bytes) for folder in find_bundle_engines(arguments.bundle))


def _inspect_engine(arguments: argparse.Namespace) -> dict[str, Any]:
    cache = find_run(arguments.run).engines if arguments.bundle is None else arguments.bundle / "engines"
    found = describe_engine(find_engine(cache, arguments.engine))
    key, to_stderr = found.key, arguments.json == "-"
    memory = ", ".join(f"{size / 1e6:.2f} MB" for size in found.activation_bytes)
    options = ", ".join(f"{name}={value}" for name, value in sorted(key.options.items()))
    rows = [
        ("backend", f"{key.backend} {key.backend_version}"), ("device", key.device), ("precision", key.precision),
        ("options", options), *(("input", text) for text in found.inputs),
        *(("output", text) for text in found.outputs), *(("profile", text) for text in found.profiles),
        ("activations", memory or "not reported"), *(("layer", text) for text in found.layers),
    ]  # fmt: skip
    print("\n".join(f"{name:<12}{text}" for name, text in rows), file=sys.stderr if to_stderr else sys.stdout)
    if found.unverified is not None:
        say(found.unverified)
    plain = to_plain(found)
    return {"untold" if name == "unverified" else name: value for name, value in plain.items()}


def _report_engines(engines: Sequence[CachedEngine], *, to_stderr: bool) -> list[dict[str, Any]]:
    rows = []
    for engine in engines:
        key = engine.key
        what = "?" if key is None else f"{key.backend} {key.backend_version} {key.precision}"
        state = "bad" if engine.problem else "sound" if engine.unverified else "valid"
        sizes = "?" if key is None else ",".join(map(str, key.batch_sizes)) or f"1-{key.max_batch_size}"
        size, seconds = f"{engine.size_bytes / 1e6:.2f}", _show_seconds(engine.build_s)
        rows.append((engine.folder.name, what, sizes, size, engine.built, seconds, state))
    print_table("", ("engine", "backend", "batch", "MB", "built", "build s", "state"), rows, to_stderr=to_stderr)
    for unverified in sorted({engine.unverified for engine in engines if engine.problem is None and engine.unverified}):
        say(f"sound: {unverified}")
    return [
        {
            "engine": engine.folder.as_posix(),
            "key": engine.key,
            "size_bytes": engine.size_bytes,
            "built": engine.built,
            "build_s": engine.build_s,
            "valid": engine.problem is None,
            "problem": engine.problem,
            "untold": engine.unverified,
        }
        for engine in engines
    ]
