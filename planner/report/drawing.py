"""Drawing of figures: sizes, colours and plain axes that all figures of a report share.

Two colours carry the meaning everywhere: blue for what leaves early or was chosen, orange for what it is compared with;
grey is the full network. They can be told apart with every kind of colour vision (Okabe and Ito 2008), and heat maps
grow darker in one hue.
"""

from __future__ import annotations

import io
from typing import Any

from artifacts import FULL_COLOUR, INK, MissingExtraError, clean_axes

GREY, ORANGE = FULL_COLOUR, "#d55e00"
DPI = 160
WIDTH_IN = 9.0
SMALL, TEXT = 8.5, 9.5  # font sizes
DASHED, DOTTED = (0, (4, 2)), (0, (1, 2))


def check_matplotlib() -> None:
    """Raises ``MissingExtraError`` when matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error


def encode_png(figure: Any) -> bytes:
    """Returns a figure as the bytes of a PNG; equal figures give equal bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()


def literal(text: str) -> str:
    """Returns text escaped so that matplotlib draws it as it is written: a dollar sign starts no formula."""
    return text.replace("$", r"\$")


def new_figure(height_in: float) -> Any:
    """Returns an empty figure of the report's width."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def label_axes(axes: Any, *, x: str = "", y: str = "") -> None:
    """Names the axes."""
    axes.set_xlabel(x, fontsize=TEXT, color=INK)
    axes.set_ylabel(y, fontsize=TEXT, color=INK)


def show_percent(axis: Any) -> None:
    """Shows shares as per cent."""
    axis.set_major_formatter(lambda share, _: f"{round(100 * share, 6):g}%")


def plain_axes(axes: Any) -> None:
    """Keeps the left and the lower spine, with small labels and the grid behind the data."""
    clean_axes(axes)
    axes.tick_params(labelsize=SMALL)
    axes.set_axisbelow(True)


def show_integers(axes: Any) -> None:
    """Places the ticks of the x axis at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
