"""``InferenceService``: all models of a server, apart from the transports that both call it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

from artifacts import MissingArtifactError, PameError, RefusedError, UsageError, package_version
from runtime.oip.calls import InferAnswer, InferCall
from runtime.oip.failures import Failure, describe_failure
from runtime.oip.interface import VERSION
from runtime.serve.models import READY, Arrival, ServedModel
from runtime.serve.options import ServeOptions, check_name
from runtime.serve.shared_memory import SharedMemory
from runtime.serve.statistics import ModelStatistics
from runtime.serve.tracing import open_tracing

SERVER = "pame"
EXTENSIONS = (
    "classification", "model_repository", "schedule_policy", "model_configuration", "binary_tensor_data", "parameters",
    "statistics",
)  # fmt: skip
_log = logging.getLogger("pame.serve")


class ByteBudget:
    """The bytes of all bodies that are being received or answered."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.taken = 0

    def take(self, count: int) -> None:
        """Takes some.

        Raises:
            RefusedError: there are not as many.
        """
        if self.taken + count > self._limit:
            raise RefusedError(
                f"the requests under way hold {self.taken} bytes of at most {self._limit}; try again later",
                reason="queue_full",
                retry_after_s=1.0,
            )
        self.taken += count

    def give_back(self, count: int) -> None:
        """Gives some back."""
        self.taken -= count


class InferenceService:
    """The models of a server.

    Attributes:
        options: of the server.
        models: name -> model.
        draining: whether it is on its way out.
        budget: of the bodies under way.
        shared_memory: what clients have registered.
        unknown: counters of requests that named no model of ours.
        tracing: of requests; ``None``: they are not traced.
    """

    def __init__(self, options: ServeOptions) -> None:
        """Opens nothing yet; raises ``MissingExtraError`` where traces are asked for, and OpenTelemetry is missing."""
        self.tracing = None if options.otlp is None else open_tracing(options.otlp)
        self.options = options
        self.models = {source.name: ServedModel(source.name, source.folder, options) for source in options.bundles}
        self.draining = False
        self.budget = ByteBudget(options.limits.inflight)
        self.unknown = ModelStatistics()
        self.shared_memory = SharedMemory(allowed=options.security.shared_memory, limit=options.limits.body)
        self._changing = asyncio.Lock()

    async def open(self) -> None:
        """Opens all models, one after the other.

        Raises:
            As ``Runtime.load``, with the first that cannot be opened.
        """
        for model in list(self.models.values()):
            await model.open()
            _log.info("model %s is ready", model.name)

    async def drain(self, timeout_s: float) -> int:
        """Takes no more requests and waits for those that were admitted; returns how many were not finished in time."""
        open_ = [model for model in self.models.values() if model.state == READY]
        return sum(await asyncio.gather(*(model.host.drain(timeout_s) for model in open_)))

    async def close(self) -> None:
        """Finishes what was admitted and closes all models."""
        await asyncio.gather(*(model.close() for model in self.models.values()))
        self.shared_memory.unregister()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    @property
    def ready(self) -> bool:
        """Whether all models answer, and it is not on its way out."""
        return not self.draining and all(model.ready for model in self.models.values())

    @property
    def ended_requests(self) -> int:
        """How many requests for inference have ended, in any way."""
        counted = [self.unknown, *(model.statistics for model in self.models.values())]
        return sum(statistics.requests.total() for statistics in counted)

    def model_ready(self, name: str, version: str = "") -> bool:
        """Returns whether a model answers; false for one that is not served."""
        model = self.models.get(name)
        return model is not None and version in ("", VERSION) and model.ready and not self.draining

    def find(self, name: str, version: str = "") -> ServedModel:
        """Returns a model.

        Raises:
            RefusedError: there is none of that name and version.
        """
        model = self.models.get(name)
        if model is None:
            raise RefusedError(f"Request for unknown model: '{name[:200]}' is not found", reason="not_found")
        if version not in ("", VERSION):
            message = f"Request for unknown model: '{name}' version {version[:50]} is not found; it has {VERSION}"
            raise RefusedError(message, reason="not_found")
        return model

    def server_metadata(self) -> dict[str, Any]:
        """Returns the metadata of the server."""
        more = ["system_shared_memory"] if self.options.security.shared_memory else []
        return {"name": SERVER, "version": package_version(SERVER) or "0", "extensions": [*EXTENSIONS, *more]}

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Returns the statistics of a model, or of all; errors as ``find``."""
        chosen = [self.find(name, version)] if name else list(self.models.values())
        found = [model.statistics.plain(model.name, VERSION, model.runs) for model in chosen if model.state == READY]
        return {"model_stats": found}

    def index(self, *, ready_only: bool = False) -> list[dict[str, str]]:
        """Returns all models with their states; those of the folder that may be loaded too."""
        found = [
            {"name": model.name, "version": VERSION, "state": model.state, "reason": model.reason}
            for model in self.models.values()
            if model.ready or not ready_only
        ]
        folder = self.options.security.load_folder
        if folder is not None and not ready_only and folder.is_dir():
            others = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in self.models)
            found += [{"name": name, "version": "", "state": "UNAVAILABLE", "reason": "not loaded"} for name in others]
        return [{key: value for key, value in entry.items() if value} for entry in found]

    async def infer(self, name: str, version: str, call: InferCall, arrival: Arrival) -> InferAnswer:
        """Answers a call; arguments and errors as ``ServedModel.infer`` and ``find``."""
        with self.trace(name, arrival) as traced:
            answer = await self.find(name, version).infer(call, traced)
            for output in answer.outputs:
                if output.region is not None:
                    self.shared_memory.write(output)
            return answer

    def trace(self, name: str, arrival: Arrival) -> AbstractContextManager[Arrival]:
        """Traces a call while the block runs, where calls are traced."""
        return nullcontext(arrival) if self.tracing is None else self.tracing.request(name, arrival)

    def fail(self, name: str, protocol: str, error: PameError, started: float) -> Failure:
        """Counts a request that failed, and returns how its client is told."""
        failure = describe_failure(error, overload_status=self.options.overload_status)
        self.count_failure(name, protocol, failure, started)
        return failure

    def count_failure(self, name: str, protocol: str, failure: Failure, started: float) -> None:
        """Counts a request that failed."""
        model = self.models.get(name)
        statistics = self.unknown if model is None else model.statistics
        statistics.add_failure(protocol, failure, perf_counter() - started)

    async def load(self, name: str) -> None:
        """Opens a model of the folder that may be loaded from, or opens it again; requests go on meanwhile.

        Raises:
            RefusedError: loading is not allowed.
            UsageError: that is no name.
            As ``Runtime.load``. A model that was there serves on.
        """
        folder = self._loadable(name)
        async with self._changing:
            model = self.models.get(name)
            if model is not None and model.state == READY and model.folder == folder:
                await model.reload()
                return
            if model is not None and model.folder != folder:
                message = f"model '{name}' was given with --bundle; it is not to be replaced from {folder}"
                raise RefusedError(message, reason="forbidden")
            model = ServedModel(name, folder, self.options)
            await model.open()
            self.models[name] = model

    async def unload(self, name: str) -> None:
        """Finishes a model's requests and closes it; errors as ``load``."""
        self._loadable(name)
        async with self._changing:
            model = self.find(name)
            await model.close()
            del self.models[name]

    async def reload_changed(self) -> None:
        """Reloads the models in whose folder another bundle lies; one that cannot be opened is said and left out."""
        for model in list(self.models.values()):
            if model.state != READY or not await asyncio.to_thread(lambda model=model: model.changed):  # type: ignore[misc]
                continue
            async with self._changing:
                try:
                    await model.reload()
                except PameError as error:
                    _log.error("model %s: the old bundle serves on, the new one cannot: %s", model.name, error)
                    model.ignore_change()

    def _loadable(self, name: str) -> Path:
        folder = self.options.security.load_folder
        if folder is None:
            message = "loading and unloading of models is not allowed; start the server with --allow-load DIR"
            raise RefusedError(message, reason="forbidden")
        try:
            found = (folder / check_name(name)).resolve()
        except UsageError as error:
            raise RefusedError(f"'{name[:200]}' is no name of a model", reason="not_found") from error
        if found.parent != folder.resolve():
            raise RefusedError(f"model '{name}' lies outside of the folder to load from", reason="forbidden")
        if not found.is_dir():
            raise MissingArtifactError(f"there is no model '{name}' to load")
        return found
