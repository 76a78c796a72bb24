"""Separators of a dataflow graph: the tensors where a network can be cut. Pure: no onnx, no I/O.

The graph is a DAG of *tensors*: an edge leads from each tensor that a node reads to each tensor that it writes. A cut
needs one *main* tensor that every path from the data input to the outputs passes. With a virtual sink behind all
outputs these are the dominators of the sink, and in a DAG one pass in topological order finds the dominator tree:
the immediate dominator of a tensor is the nearest common ancestor, in the tree so far, of its predecessors (Cooper,
Harvey, Kennedy, "A Simple, Fast Dominance Algorithm", 2001).

Edges through ``Shape`` and ``Size`` are left out, which makes three kinds of tensors: *data*, *shape* and *constant*
(``export.graphs.flow_model``).

The data input is the graph input with the longest chain of separators. Other inputs, an attention mask for instance,
may skip past: with t_1, t_2 ... the separators in order and p_i the producer of t_i, let S_i be p_i and its ancestors.
The S_i are nested, so one backward walk per separator over nodes not seen yet gives every node the *step* at which it
joins; a node that makes shape tensors joins as early as it can, so that nothing crosses for its shape alone. A tensor
made at step s and read at steps up to r crosses exactly the cuts s, s+1 .. r-1. All of it is linear in
the size of the graph and of the answer. What crosses besides the main tensor is *carried* (data) or *recomputed* behind
the cut from the batch size (shape); constants are simply repeated.

*Wanted cuts.* Of a network with skip connections (a decoder that reads early features) hardly a tensor is a separator.
Where its maker names tensors, each made of the one before, they serve as main tensors all the same: nothing above needs
more than that the S_i are nested. What skips past them is carried, and so goes on with the survivors.

Separators with no heavy node (convolution, matrix product ...) between them are one *place*: cutting there twice would
only add the cost of a launch. Nothing is gained before the first and behind the last heavy node either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from artifacts import GraphError
from export.graphs.flow_model import DataFlow, FlowNode, tensor_kinds

_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CutPlace:
    """A separator and what crosses with it.

    Attributes:
        main: the tensor that every path from the data input to the outputs passes.
        carried: other data tensors that cross, in topological order.
        recomputed: shape tensors that cross.
        place: separators with the same number have no heavy node between them.
    """

    main: str
    carried: tuple[str, ...] = ()
    recomputed: tuple[str, ...] = ()
    place: int


def find_separators(flow: DataFlow, source: str) -> tuple[str, ...]:
    """Returns the tensors that every path from ``source`` to any output passes, in order, without ``source`` itself.

    Empty when no path leads from ``source`` to an output.
    """
    order: dict[str, int] = {source: 0}
    parent: dict[str, str] = {source: source}

    def meet(names: Iterable[str]) -> str | None:
        found: str | None = None
        for name in names:
            if name not in order:
                continue
            found = name if found is None else _common_ancestor(found, name, order, parent)
        return found

    for node in flow.nodes:
        if node.shape_only:
            continue
        dominator = meet(node.inputs)
        if dominator is None:
            continue
        for output in node.outputs:
            order[output] = len(order)
            parent[output] = dominator
    last = meet(flow.outputs)
    chain: list[str] = []
    while last is not None and last != source:
        chain.append(last)
        last = parent[last]
    return tuple(reversed(chain))


def _common_ancestor(a: str, b: str, order: Mapping[str, int], parent: Mapping[str, str]) -> str:
    while a != b:
        if order[a] > order[b]:
            a = parent[a]
        else:
            b = parent[b]
    return a


def find_data_input(flow: DataFlow) -> tuple[str, tuple[str, ...]]:
    """Returns the graph input with the longest chain of separators (ties: the first), and that chain."""
    chains = {name: find_separators(flow, name) for name in flow.inputs}
    if not chains:
        raise GraphError("the graph has no inputs, so there is nothing to batch")
    best = max(chains, key=lambda name: len(chains[name]))
    return best, chains[best]


def find_places(flow: DataFlow, wanted: Sequence[str] | None = None) -> tuple[str, tuple[CutPlace, ...]]:
    """Finds every separator that has heavy work on both sides.

    Args:
        flow: the network.
        wanted: tensors that shall be the main ones, in order, each made of the one before; ``None``: all separators.

    Returns:
        The data input, and the separators in order with what crosses at each.

    Raises:
        GraphError: there is none; the message says what crosses where.
    """
    live = tuple(_live_nodes(flow))
    source, chain = find_data_input(flow)
    kinds = tensor_kinds(flow)
    if wanted is not None:
        _check_nested(live, wanted)
        chain = tuple(wanted)
    step = _steps(live, chain, kinds)
    crossing = _crossings(flow, live, step, len(chain), kinds)
    heavy = sorted(step[index] for index, node in enumerate(live) if node.heavy and _reads_data(node, kinds))
    places: list[CutPlace] = []
    done = 0
    for index, main in enumerate(chain):
        while done < len(heavy) and heavy[done] <= index:
            done += 1
        if not 0 < done < len(heavy) or main in flow.outputs:
            continue
        others = [name for name in crossing[index] if name != main]
        places.append(
            CutPlace(
                main=main,
                carried=tuple(name for name in others if kinds[name] == "data"),
                recomputed=tuple(name for name in others if kinds[name] == "shape"),
                place=done,
            )
        )
    if not places:
        raise GraphError(_explain_none(flow, live, kinds, source, len(heavy)))
    return source, tuple(places)


def _check_nested(live: tuple[FlowNode, ...], wanted: Sequence[str]) -> None:
    """Refuses tensors that are not each made of the one before."""
    producer = {name: node for node in live for name in node.outputs}
    made: set[str] = set()  # of which tensors the one before is made, itself included
    for name in wanted:
        if name not in producer:
            raise GraphError(
                f"'{name}' is not a cut: no tensor of that name leads to the answers. Tensors that do: "
                f"{', '.join(list(producer)[-_SHOWN:])} ..."
            )
        behind, stack = {name}, [name]
        while stack:
            node = producer.get(stack.pop())
            for read in () if node is None else node.inputs:
                if read not in behind:
                    behind.add(read)
                    stack.append(read)
        if not made <= behind:
            raise GraphError(
                f"'{name}' is not a cut: it is not made of the cut before it, so that no segment leads from one to "
                "the other"
            )
        made = {name}


def _reads_data(node: FlowNode, kinds: Mapping[str, str]) -> bool:
    return any(kinds.get(name) == "data" for name in node.inputs)


def _live_nodes(flow: DataFlow) -> Iterator[FlowNode]:
    needed = set(flow.outputs)
    live = []
    for node in reversed(flow.nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            live.append(node)
    return reversed(live)


def _steps(live: tuple[FlowNode, ...], chain: tuple[str, ...], kinds: Mapping[str, str]) -> list[int]:
    """Returns per node the first separator before which it runs; ``len(chain)`` behind the last one."""
    producer = {name: index for index, node in enumerate(live) for name in node.outputs}
    step = [len(chain)] * len(live)
    for position, main in enumerate(chain):
        stack = [producer[main]]
        while stack:
            index = stack.pop()
            if step[index] <= position:
                continue
            step[index] = position
            stack.extend(producer[name] for name in live[index].inputs if name in producer)
    for index, node in enumerate(live):
        if kinds[node.outputs[0]] == "shape":
            step[index] = max((step[producer[name]] for name in node.inputs if name in producer), default=0)
    return step


def _crossings(
    flow: DataFlow, live: tuple[FlowNode, ...], step: list[int], cuts: int, kinds: Mapping[str, str]
) -> list[list[str]]:
    """Returns per separator the tensors that are made before it and read behind it; constants are left out."""
    last_read: dict[str, int] = dict.fromkeys(flow.outputs, cuts)
    for index, node in enumerate(live):
        for name in node.inputs:
            last_read[name] = max(last_read.get(name, -1), step[index])
    made = dict.fromkeys(flow.inputs, 0)
    made.update({name: step[index] for index, node in enumerate(live) for name in node.outputs})
    crossing: list[list[str]] = [[] for _ in range(cuts)]
    for name, start in made.items():
        if kinds.get(name, "constant") == "constant":
            continue
        for position in range(start, last_read.get(name, -1)):
            crossing[position].append(name)
    return crossing


def _explain_none(flow: DataFlow, live: tuple[FlowNode, ...], kinds: Mapping[str, str], source: str, heavy: int) -> str:
    if heavy < 2:
        return (
            f"the graph has no cuts: only {heavy} of its nodes reading '{source}' or another input does heavy work "
            "(convolution, matrix product, attention ...), and a cut needs one on either side"
        )
    width, after, names = _narrowest(flow, live, kinds)
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN]) + (" ..." if width > _SHOWN else "")
    return (
        f"the graph has no cuts: no tensor between its heavy nodes is passed by every path from the data input "
        f"'{source}' to the outputs. Where it is narrowest, behind node '{after}', {width} tensors cross: {shown}"
    )


def _narrowest(flow: DataFlow, live: tuple[FlowNode, ...], kinds: Mapping[str, str]) -> tuple[int, str, list[str]]:
    """Returns the fewest data tensors alive at once between two heavy nodes, in topological order, and where."""
    last_read = {name: index for index, node in enumerate(live) for name in node.inputs}
    last_read.update(dict.fromkeys(flow.outputs, len(live)))
    heavy = [index for index, node in enumerate(live) if node.heavy and _reads_data(node, kinds)]
    alive = set(flow.inputs)
    best: tuple[int, str, list[str]] | None = None
    for index, node in enumerate(live):
        alive.update(name for name in node.outputs if kinds.get(name) == "data")
        alive = {name for name in alive if last_read.get(name, -1) > index}
        if heavy[0] <= index < heavy[-1] and (best is None or len(alive) <= best[0]):
            best = len(alive), node.name or node.outputs[0], sorted(alive)
    return best if best is not None else (0, "", [])
