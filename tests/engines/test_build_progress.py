"""The progress of a build: nested phases, in any order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engines import BuildWatch
from engines.build_progress import PhaseTree


def test_a_child_fills_its_parents_step() -> None:
    tree = PhaseTree()
    assert tree.start("build", None, 4) == 0
    assert tree.start("optimise", "build", 2) == 0
    assert tree.complete("optimise", 0) == 0.125
    assert tree.complete("optimise", 1) == 0.25
    assert tree.finish("optimise") == 0.25
    assert tree.complete("build", 0) == 0.25
    assert tree.complete("build", 2) == 0.75
    assert tree.finish("build") == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["start", "complete", "finish"]), st.integers(0, 4), st.integers(0, 4), st.integers(0, 6)
        ),
        max_size=60,
    )
)
def test_the_fraction_never_falls_and_stays_within_0_and_1(events: list[tuple[str, int, int, int]]) -> None:
    tree, fractions = PhaseTree(), [0.0]
    for kind, phase, parent, number in events:
        if kind == "start":
            fractions.append(tree.start(f"p{phase}", None if phase == parent else f"p{parent}", number))
        elif kind == "complete":
            fractions.append(tree.complete(f"p{phase}", number))
        else:
            fractions.append(tree.finish(f"p{phase}"))
    assert fractions == sorted(fractions)
    assert 0 <= fractions[-1] <= 1


def test_the_parts_of_a_watch_fill_it() -> None:
    reported: list[tuple[str, float]] = []
    watch = BuildWatch(report=lambda phase, fraction: reported.append((phase, fraction)), cancelled=lambda: True)
    watch.part(0, 4).report("a", 0.5)
    watch.part(3, 4).part(1, 2).report("b", 1.0)
    assert reported == [("a", 0.125), ("b", 1.0)]
    assert watch.part(2, 4).cancelled()
