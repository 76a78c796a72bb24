"""The table of tasks.

The model and the bundle store the name of their task. The name is looked up in ``TASKS`` and never imports a module. A
custom task is passed as an object: ``Runtime.load(..., task=mine)``, or as ``--task module:object`` on the command
line, where the user has typed the module's name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from artifacts.errors import UsageError, unknown_name
from artifacts.tasks.classification import Classification
from artifacts.tasks.pose import Pose
from artifacts.tasks.protocol import Task
from artifacts.tasks.regression import Regression
from artifacts.tasks.segmentation import Segmentation
from artifacts.tasks.set_metrics import F1, Matthews

TASKS: Mapping[str, Task] = {
    task.name: task for task in (Classification(), Matthews(), F1(), Regression(), Segmentation(), Pose())
}

NO_TASK = "none"
"""What a model says whose answers have no confidence, so that no row can leave early."""
NO_EXITS = "no_exits"
"""The setting of a model that says why."""


def find_task(name: str, settings: Mapping[str, object] | None = None) -> Task:
    """Returns the task that a model or a bundle names.

    Args:
        name: of the task.
        settings: of the model, which say how many classes it tells apart: answers that are classes do not.

    Raises:
        UsageError: ``TASKS`` has no such task, or the network's rows cannot leave early.
    """
    if name == NO_TASK:
        reason = (settings or {}).get(NO_EXITS, "nothing tells how sure its answers are")
        raise UsageError(f"this network cannot have exits: {reason}")
    if name not in TASKS:
        raise UsageError(
            f"{unknown_name('task', name, TASKS)} Pass a task of your own as an object: Runtime.load(..., "
            "task=mine), or --task module:object"
        )
    task = TASKS[name]
    count = (settings or {}).get("classes")
    return task.of_classes(count) if isinstance(task, Segmentation) and isinstance(count, int) else task


def load_task(reference: str) -> Task:
    """Returns the task that a command line names: one of ``TASKS``, or ``module:object`` that can be imported.

    Raises:
        UsageError: there is no such task, module or object, or the object is not a task.
    """
    module, colon, attribute = reference.partition(":")
    if not colon:
        return find_task(reference)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"--task {reference}: {error}; expected module:object, with the module on PYTHONPATH"
        ) from error
    task = found() if isinstance(found, type) else found
    if not isinstance(task, Task):
        raise UsageError(f"--task {reference}: {type(task).__name__} is not a task; see artifacts.Task for its methods")
    return task
