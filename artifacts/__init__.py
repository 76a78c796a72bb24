"""The words of PAME as frozen types, the file formats, and the store. Imports none of the other rooms."""

from artifacts.codec import canonical_json, from_plain, read_json, to_plain, write_json
from artifacts.environment import cpu_features_digest, cpu_name, environment_fingerprint, package_version
from artifacts.errors import (
    ArtifactError,
    CorruptArtifactError,
    EngineError,
    GraphError,
    InputError,
    MissingArtifactError,
    MissingExtraError,
    NoPlanError,
    PameError,
    SchemaError,
    StaleArtifactError,
    UsageError,
    unknown_name,
)
from artifacts.graphs import (
    PRECISIONS,
    Cut,
    GraphSpec,
    Model,
    ModelSpec,
    TensorSpec,
    check_precision,
    open_model,
    write_model_spec,
)
from artifacts.plans import (
    BUNDLE_JSON,
    EXIT_PLAN_JSON,
    BundleSpec,
    Certificate,
    EngineKey,
    ExitPlan,
    PlannedExit,
    PredictedLatency,
    StageSpec,
    StreamReference,
)
from artifacts.runs import RunFolder, find_run
from artifacts.store import (
    MANIFEST,
    Artifact,
    Manifest,
    array_digest,
    digest_of,
    file_digest,
    is_current,
    load_arrays,
    new_artifact,
    open_artifact,
    read_manifest,
    save_arrays,
)
from artifacts.timings import InferenceTimeMatrix
from artifacts.traces import Trace

__all__ = [
    # words
    "BundleSpec", "Certificate", "Cut", "EngineKey", "ExitPlan", "GraphSpec", "InferenceTimeMatrix", "Model",
    "ModelSpec", "PRECISIONS", "PlannedExit", "PredictedLatency", "StageSpec", "StreamReference", "TensorSpec",
    "Trace", "check_precision",
    # folders and files
    "BUNDLE_JSON", "EXIT_PLAN_JSON", "MANIFEST", "Artifact", "Manifest", "RunFolder", "array_digest", "canonical_json",
    "digest_of", "file_digest", "find_run", "from_plain", "is_current", "load_arrays", "new_artifact", "open_artifact",
    "open_model", "read_json", "read_manifest", "save_arrays", "to_plain", "write_json", "write_model_spec",
    # environment
    "cpu_features_digest", "cpu_name", "environment_fingerprint", "package_version",
    # errors
    "ArtifactError", "CorruptArtifactError", "EngineError", "GraphError", "InputError", "MissingArtifactError",
    "MissingExtraError", "NoPlanError", "PameError", "SchemaError", "StaleArtifactError", "UsageError", "unknown_name",
]  # fmt: skip
