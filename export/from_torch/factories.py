"""Factories: ``torch:package.module:factory`` is imported, called, given its weights, and exported like any module.

The user has typed the name, so that its code may run; what a file names is never imported.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from artifacts import InputError, RunFolder, UsageError, unknown_name
from export.folder.pipeline import ExportResult
from export.from_torch.modules import TorchNetwork, publish_network
from export.nets.weights import read_weights
from export.options import PRETRAINED, TORCH_PREFIX, ExportOptions

_PARALLEL = "module."  # what DataParallel writes before every key
_SHOWN = 4
_ROWS = 2


def export_factory(run: RunFolder, options: ExportOptions, *, report: Callable[[str], None]) -> ExportResult:
    """Exports what ``torch:package.module:factory`` makes, or reuses what is there if its graph is the same.

    Raises:
        UsageError: module, factory, weights or shape do not exist or do not fit.
        InputError: the weights are not those of the module, or its answers are no tensors.
        GraphError: torch cannot export it, or it has no cuts.
    """
    module = make_module(options.source)
    if options.weights == PRETRAINED:
        report(f"no --weights: {options.source} keeps the weights that its factory gives it")
    else:
        load_state(module, Path(options.weights), report)
    module = _settle(module, options.source, report)
    names, examples = _draw_examples(options)
    answers = _check_forward(module, examples, options.source)
    network = TorchNetwork(
        module=module,
        examples=examples,
        input_names=names,
        output_names=["output"] if answers == 1 else None,
        command=options.command(run),
    )
    return publish_network(run, network, options, report=report)


def make_module(source: str) -> nn.Module:
    """Returns the module that ``torch:package.module:factory`` names.

    The attribute is a module of torch, a class of modules, or what returns one, without arguments.

    Raises:
        UsageError: it cannot be imported or called, or makes something else.
    """
    name, _, attribute = source.removeprefix(TORCH_PREFIX).partition(":")
    if not all(part.isidentifier() for part in (*name.split("."), *attribute.split("."))):
        raise UsageError(f"{source}: expected torch:package.module:factory, e.g. torch:torchvision.models:resnet18")
    found: Any = _import_module(source, name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [key for key in vars(found) if not key.startswith("_")]
            raise UsageError(f"{source}: {unknown_name(f'attribute of {name}', part, known)}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise UsageError(f"{source} is {type(found).__name__}; expected what makes a torch module, or such a module")
    if missing := _required_arguments(found):
        raise UsageError(
            f"{source} needs the arguments {', '.join(missing)}. Write a factory without any and name that: "
            f"def mine(): return {attribute}({', '.join(f'{name}=...' for name in missing)})"
        )
    with _users_code(f"{source} failed when it was called"):
        made = found()
    if not isinstance(made, nn.Module):
        raise UsageError(f"{source} made {type(made).__name__}; expected a torch.nn.Module")
    return made


def _import_module(source: str, name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        with _users_code(f"{source}: {name} failed when it was imported"):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise UsageError(
                f"{source}: there is no module '{missing}', neither in {here} nor among what is installed. Change to "
                "its folder, or put that on PYTHONPATH"
            ) from error
        raise UsageError(f"{source}: {name} needs '{missing}', which is not installed") from error


@contextlib.contextmanager
def _users_code(what: str) -> Iterator[None]:
    """Turns any error of the user's own code into a message that says where it came from."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:  # any error of the user's own code
        raise UsageError(f"{what}: {type(error).__name__}: {error}") from error


def _required_arguments(made: Callable[..., object]) -> list[str]:
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):  # builtins have none to look at
        return []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [item.name for item in parameters if item.default is inspect.Parameter.empty and item.kind not in several]


def load_state(module: nn.Module, path: Path, report: Callable[[str], None]) -> None:
    """Loads a file of weights into a module; every key and every shape must fit.

    Raises:
        UsageError: there is no such file, or of another kind.
        InputError: the file is damaged, or is of another network.
    """
    state = read_weights(path)
    if state and all(key.startswith(_PARALLEL) for key in state) and not set(state) & set(module.state_dict()):
        report(f"{path}: '{_PARALLEL}' is left out before every key, as DataParallel writes it")
        state = {key.removeprefix(_PARALLEL): value for key, value in state.items()}
    other = _describe_shapes(module.state_dict(), state)
    missing: list[str] = []
    unexpected: list[str] = []
    if not other:
        missing, unexpected = module.load_state_dict(state, strict=False)
    wrong = [
        f"{len(names)} {what}, such as {', '.join(names[:_SHOWN])}"
        for what, names in (
            ("keys of the module are not in it", missing),
            ("of its keys are not in the module", unexpected),
            ("tensors have another shape", other),
        )
        if names
    ]
    if wrong:
        raise InputError(
            f"--weights {path} does not fit {type(module).__name__} ({len(module.state_dict())} tensors): "
            f"{'; '.join(wrong)}. Make the factory build the network that they were trained with"
        )


def _describe_shapes(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{key} {tuple(value.shape)} for {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]


def _settle(module: nn.Module, source: str, report: Callable[[str], None]) -> nn.Module:
    """Returns the module on the processor, in evaluation mode, in float32."""
    module = module.cpu().eval()
    kinds = {value.dtype for value in module.parameters() if value.is_floating_point()} - {torch.float32}
    if kinds:
        report(f"{source} is in {', '.join(map(str, kinds))}: exported in float32 (--precision fp16 makes it half)")
        module = module.float()
    return module


def _draw_examples(options: ExportOptions) -> tuple[list[str], tuple[Tensor, ...]]:
    """Returns the names of the inputs and two random rows of each."""
    if not options.input_shapes:
        raise UsageError(
            f"{options.source}: torch does not say how large its input is. Say it with --input-shape 3,224,224 "
            "(channels, height, width of one image); of several inputs, one --input-shape NAME:SHAPE each, in order"
        )
    if "" in options.input_shapes and len(options.input_shapes) > 1:
        raise UsageError("--input-shape: of several inputs, every one needs a name: --input-shape NAME:SHAPE")
    random = torch.Generator().manual_seed(0)
    names = [name or "input" for name in options.input_shapes]
    examples = [torch.randn(_ROWS, *shape, generator=random) for shape in options.input_shapes.values()]
    return names, tuple(examples)


def _check_forward(module: nn.Module, examples: tuple[Tensor, ...], source: str) -> int:
    """Runs the module twice on the same rows and returns how many answers it gives.

    Raises:
        UsageError: it does not run on rows of that shape.
        InputError: its answers are no tensors, or differ from run to run.
    """
    shapes = ", ".join(str(tuple(example.shape)) for example in examples)
    with _users_code(f"{source} does not run on {shapes}; look at --input-shape"), torch.no_grad():
        answers = [module(*examples) for _ in range(2)]
    runs = [[answer] if isinstance(answer, Tensor) else answer for answer in answers]
    if not all(isinstance(run, list | tuple) and all(isinstance(item, Tensor) for item in run) for run in runs):
        keys = f" with {', '.join(map(str, runs[0]))}" if isinstance(runs[0], dict) else ""
        raise InputError(
            f"{source} answers {type(runs[0]).__name__}{keys}; expected a tensor, or several in a tuple. Wrap the "
            "module in one whose forward returns the tensor of the answer"
        )
    if any(not torch.equal(first, second) for first, second in zip(*runs, strict=True)):
        raise InputError(
            f"{source} answers the same rows in another way every time, even in evaluation mode: something in it is "
            "random, or still trains, dropout with training=True for instance"
        )
    return len(runs[0])
