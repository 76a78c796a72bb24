"""Artifacts: the words of PAME as frozen types, the file formats and the store. Imports none of the other rooms."""

from artifacts.bundles import BUNDLE_JSON, BundleSpec, EngineKey, OneGraphSpec, StageSpec
from artifacts.codec import OPTIONAL, canonical_json, from_plain, read_json, to_plain, write_json
from artifacts.confidences import FEATURES, LEAST_PROBABILITY, MAX_SOFTMAX, LearnedConfidence, describe_choice
from artifacts.environment import (
    allowed_processors,
    cpu_features_digest,
    cpu_name,
    environment_fingerprint,
    free_memory,
    memory_limit,
    package_version,
)
from artifacts.errors import (
    ArtifactError,
    CorruptArtifactError,
    DeadlineError,
    EngineError,
    GraphError,
    InputError,
    MissingArtifactError,
    MissingExtraError,
    NoPlanError,
    PameError,
    RefusedError,
    SchemaError,
    StaleArtifactError,
    UnreachableError,
    UsageError,
    unknown_name,
)
from artifacts.files.disk_errors import describe_failure
from artifacts.files.fetching import PackageFile, cache_folder, fetch_package_file
from artifacts.files.locks import hold_lock
from artifacts.files.replacing import clear_interrupted, replace_file, try_replacing
from artifacts.files.targets import check_target, write_target
from artifacts.graphs import (
    FINAL_HEAD,
    FINAL_HEAD_GRAPH,
    FINAL_HEAD_LABEL,
    PRECISIONS,
    SAID_BY,
    Cut,
    GraphSpec,
    Model,
    ModelSpec,
    Quantisation,
    SequenceSpec,
    TensorSpec,
    check_lengths,
    check_precision,
    open_model,
    unknown_precision,
    write_model_spec,
)
from artifacts.images.conventions import (
    CONVENTIONS,
    Convention,
    find_convention,
    fit_fields,
    plain_preprocessing,
)
from artifacts.images.decoding import (
    IMAGE_SUFFIXES,
    Box,
    check_image,
    decode_image,
    decode_mask,
    image_size,
    locate_points,
    render_array,
    render_image,
)
from artifacts.images.preprocessing import CHANNEL_ORDERS, Preprocessing, name_channels
from artifacts.plans import (
    EXIT_PLAN_JSON,
    BatchForm,
    Certificate,
    ExitPlan,
    PlannedExit,
    PredictedLatency,
    StreamReference,
)
from artifacts.plots import EARLY_COLOUR, FAINT, FULL_COLOUR, INK, clean_axes, save_plot
from artifacts.runs import COMMAND, RunFolder, find_run, recorded_command, work_alone
from artifacts.store import (
    MANIFEST,
    Artifact,
    Manifest,
    array_digest,
    copy_folder,
    digest_of,
    file_digest,
    is_current,
    load_arrays,
    new_artifact,
    open_artifact,
    open_scratch,
    read_manifest,
    save_arrays,
)
from artifacts.tasks.classification import Classification
from artifacts.tasks.pose import Pose, find_keypoints
from artifacts.tasks.protocol import Answers, Task
from artifacts.tasks.regression import Regression
from artifacts.tasks.segmentation import VOID, Segmentation
from artifacts.tasks.table import NO_EXITS, NO_TASK, TASKS, find_task, load_task
from artifacts.text.encoding import EncodedTexts, TextEncoder, TextRow, open_tokenizer
from artifacts.text.preprocessing import TOKENIZER_JSON, TextPreprocessing, name_token_inputs
from artifacts.timings import InferenceTimeMatrix, LengthTimes
from artifacts.traces import TRACE_NPZ, Reference, Trace, find_first_true

__all__ = [
    # words
    "FEATURES", "LEAST_PROBABILITY", "MAX_SOFTMAX", "LearnedConfidence", "describe_choice",
    "FINAL_HEAD", "FINAL_HEAD_GRAPH", "FINAL_HEAD_LABEL", "PRECISIONS", "SAID_BY", "BatchForm", "BundleSpec",
    "Certificate", "Cut", "EngineKey", "ExitPlan", "GraphSpec", "InferenceTimeMatrix", "LengthTimes", "Model",
    "ModelSpec", "OneGraphSpec",
    "PlannedExit", "PredictedLatency", "Preprocessing", "Quantisation", "Reference", "SequenceSpec", "StageSpec",
    "StreamReference", "TensorSpec", "Trace",
    "check_lengths", "check_precision", "name_channels", "unknown_precision",
    "find_first_true",
    # images
    "CHANNEL_ORDERS", "CONVENTIONS", "IMAGE_SUFFIXES", "Box", "Convention", "check_image", "decode_image",
    "decode_mask", "find_convention", "fit_fields", "image_size", "locate_points", "plain_preprocessing",
    "render_array", "render_image",
    # texts
    "TOKENIZER_JSON", "EncodedTexts", "TextEncoder", "TextPreprocessing", "TextRow", "name_token_inputs",
    "open_tokenizer",
    # tasks
    "NO_EXITS", "NO_TASK", "TASKS", "VOID", "Answers", "Classification", "Pose",
    "Regression", "Segmentation", "Task", "find_keypoints",
    "find_task", "load_task",
    # folders and files
    "BUNDLE_JSON", "COMMAND", "EXIT_PLAN_JSON", "MANIFEST", "OPTIONAL", "TRACE_NPZ", "Artifact", "Manifest",
    "PackageFile", "RunFolder", "array_digest", "cache_folder", "canonical_json", "check_target", "clear_interrupted",
    "copy_folder", "describe_failure", "digest_of", "fetch_package_file", "file_digest", "find_run", "from_plain",
    "hold_lock", "is_current", "load_arrays", "new_artifact", "open_artifact", "open_model", "open_scratch",
    "read_json", "read_manifest", "recorded_command", "replace_file", "save_arrays", "to_plain", "try_replacing",
    "work_alone", "write_json", "write_model_spec", "write_target",
    # environment
    "allowed_processors", "cpu_features_digest", "cpu_name", "environment_fingerprint", "free_memory",
    "memory_limit", "package_version",
    # pictures
    "EARLY_COLOUR", "FAINT", "FULL_COLOUR", "INK", "clean_axes", "save_plot",
    # errors
    "ArtifactError", "CorruptArtifactError", "DeadlineError", "EngineError", "GraphError", "InputError",
    "MissingArtifactError", "MissingExtraError", "NoPlanError", "PameError", "RefusedError", "SchemaError",
    "StaleArtifactError", "UnreachableError", "UsageError", "unknown_name",
]  # fmt: skip
