"""Separators against the enumeration of all paths, and what crosses against its definition."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import GraphError
from export.cuts.separators import find_data_input, find_places, find_separators
from export.graphs.flow_model import DataFlow, FlowNode, tensor_kinds


@st.composite
def flows(draw: st.DrawFn) -> DataFlow:
    """Random DAGs of up to 9 nodes with one or two inputs, some nodes with two outputs, some heavy, some ``Shape``."""
    inputs = [f"in{i}" for i in range(draw(st.integers(1, 2)))]
    tensors = [*inputs, "constant"]
    nodes = []
    for index in range(draw(st.integers(1, 9))):
        read = draw(st.lists(st.sampled_from(tensors[-4:]), min_size=1, max_size=3, unique=True))
        written = [f"t{index}{suffix}" for suffix in draw(st.sampled_from(["", "", "ab"])) or [""]]
        shape_only = draw(st.integers(0, 7)) == 0
        nodes.append(
            FlowNode(
                name=f"n{index}",
                inputs=tuple(read),
                outputs=tuple(written),
                heavy=draw(st.booleans()) and not shape_only,
                shape_only=shape_only,
            )
        )
        tensors.extend(written)
    made = [name for node in nodes for name in node.outputs]
    outputs = draw(st.lists(st.sampled_from(made[-3:]), min_size=1, max_size=2, unique=True))
    return DataFlow(inputs=tuple(inputs), outputs=tuple(outputs), nodes=tuple(nodes))


def all_paths(flow: DataFlow, source: str) -> list[tuple[str, ...]]:
    edges = [
        (a, b) for node in flow.nodes if not node.shape_only for a, b in itertools.product(node.inputs, node.outputs)
    ]
    found, stack = [], [(source,)]
    while stack:
        path = stack.pop()
        if path[-1] in flow.outputs:
            found.append(path)
        stack.extend((*path, b) for a, b in edges if a == path[-1])
    return found


@settings(max_examples=150, deadline=None)
@given(flows())
def test_separators_are_the_tensors_on_every_path(flow: DataFlow) -> None:
    for source in flow.inputs:
        paths = all_paths(flow, source)
        expected = set.intersection(*map(set, paths)) - {source} if paths else set()
        found = find_separators(flow, source)
        assert set(found) == expected
        if paths:
            positions = [paths[0].index(name) for name in found]
            assert positions == sorted(positions)


def ancestors(flow: DataFlow, tensor: str) -> set[str]:
    producer = {name: node for node in flow.nodes for name in node.outputs}
    seen, stack = set(), [tensor]
    while stack:
        node = producer.get(stack.pop())
        if node is not None and node.name not in seen:
            seen.add(node.name)
            stack.extend(node.inputs)
    return seen


def hoist_shapes(flow: DataFlow, before: set[str], live: set[str]) -> set[str]:
    kinds = tensor_kinds(flow)
    producer = {name: node.name for node in flow.nodes for name in node.outputs}
    grown = set(before)
    for node in flow.nodes:
        ready = all(producer[name] in grown for name in node.inputs if name in producer)
        if node.name in live and kinds[node.outputs[0]] == "shape" and ready:
            grown.add(node.name)
    return grown


@settings(max_examples=150, deadline=None)
@given(flows())
def test_what_crosses_is_made_before_and_read_behind(flow: DataFlow) -> None:
    try:
        _, places = find_places(flow)
    except GraphError:
        return
    kinds = tensor_kinds(flow)
    live = set().union(*(ancestors(flow, name) for name in flow.outputs))
    for place in places:
        before = hoist_shapes(flow, ancestors(flow, place.main), live)
        made = {*flow.inputs, *(name for node in flow.nodes if node.name in before for name in node.outputs)}
        behind = [node for node in flow.nodes if node.name in live - before]
        read = {name for node in behind for name in node.inputs} | set(flow.outputs)
        crossing = {name for name in made & read if kinds.get(name, "constant") != "constant"}
        assert {place.main, *place.carried, *place.recomputed} == crossing | {place.main}
        assert all(kinds[name] == "data" for name in place.carried)
        assert all(kinds[name] == "shape" for name in place.recomputed)


@settings(max_examples=150, deadline=None)
@given(flows())
def test_every_place_has_heavy_work_on_both_sides_and_in_between(flow: DataFlow) -> None:
    try:
        _, places = find_places(flow)
    except GraphError:
        return
    kinds = tensor_kinds(flow)
    live = set().union(*(ancestors(flow, name) for name in flow.outputs))
    heavy = {
        node.name
        for node in flow.nodes
        if node.heavy and node.name in live and any(kinds.get(name) == "data" for name in node.inputs)
    }
    before = [len(heavy & ancestors(flow, place.main)) for place in places]
    assert all(0 < count < len(heavy) for count in before)
    for (a, count), (b, other) in itertools.pairwise(zip(places, before, strict=True)):
        assert (a.place == b.place) == (count == other)


def node(name: str, inputs: str, output: str, *, heavy: bool = False, shape_only: bool = False) -> FlowNode:
    return FlowNode(name=name, inputs=tuple(inputs.split()), outputs=(output,), heavy=heavy, shape_only=shape_only)


def encoder(layers: int) -> DataFlow:
    nodes = [node("bias", "mask", "bias"), node("embed", "ids table", "h0", heavy=True)]
    for i in range(layers):
        nodes += [
            node(f"attend{i}", f"h{i} bias", f"a{i}", heavy=True),
            node(f"add{i}", f"h{i} a{i}", f"h{i + 1}"),
        ]
    nodes.append(node("classify", f"h{layers} w", "logits", heavy=True))
    return DataFlow(inputs=("mask", "ids"), outputs=("logits",), nodes=tuple(nodes))


def test_a_mask_is_carried_raw_before_and_prepared_behind_its_first_use() -> None:
    data_input, places = find_places(encoder(2))
    assert data_input == "ids"
    assert [(place.main, place.carried) for place in places] == [("h0", ("mask",)), ("h1", ("bias",)), ("h2", ())]


def test_a_shape_is_recomputed_not_carried() -> None:
    flow = DataFlow(
        inputs=("x",),
        outputs=("y",),
        nodes=(
            node("shape", "x", "s", shape_only=True),
            node("conv0", "x w s", "a", heavy=True),
            node("conv1", "a v", "b", heavy=True),
            node("view", "b s", "y"),
        ),
    )
    _, (place,) = find_places(flow)
    assert (place.main, place.carried, place.recomputed) == ("a", (), ("s",))


def test_the_longest_chain_names_the_data_input() -> None:
    assert find_data_input(encoder(3))[0] == "ids"


def test_without_separators_the_narrowest_place_is_named() -> None:
    flow = DataFlow(
        inputs=("x",),
        outputs=("y",),
        nodes=(
            node("left", "x a", "l", heavy=True),
            node("right", "x b", "r", heavy=True),
            node("join", "l r", "y", heavy=True),
        ),
    )
    with pytest.raises(GraphError, match=r"behind node 'right', 2 tensors cross: 'l', 'r'"):
        find_places(flow)


def test_a_single_heavy_node_cannot_be_cut() -> None:
    flow = DataFlow(inputs=("x",), outputs=("y",), nodes=(node("fc", "x w", "h", heavy=True), node("relu", "h", "y")))
    with pytest.raises(GraphError, match="only 1 of its nodes"):
        find_places(flow)


def test_thousands_of_nodes_are_instant() -> None:
    _, places = find_places(encoder(4000))
    assert len(places) == 4001
