"""Style of plots: light, readable at a small size, safe for colour blindness; PNG files with a description.

``saving_as`` writes a PDF or SVG beside each.

The figures are made without pyplot, so there is no global state, no window, and no backend to choose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from textenv.utils.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PlotFormat = Literal["png", "pdf", "svg"]
"""Formats of pictures."""
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#4D4D4D")
"""Colours that stay apart under the common colour-vision deficiencies (Okabe and Ito 2008, no yellow)."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
"""Line styles in turn, so that lines differ by more than their colour."""
STYLE: Any = {
    "figure.facecolor": "white",
    "figure.dpi": 140,
    "axes.facecolor": "white",
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": "#5b6773",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlecolor": "#1c2733",
    "axes.labelsize": 10,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
    "grid.color": "#e6eaee",
    "xtick.color": "#5b6773",
    "ytick.color": "#5b6773",
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "font.family": "DejaVu Sans",
    "pdf.fonttype": 42,  # TrueType: many journals refuse matplotlib's own Type 3
    "svg.hashsalt": "textenv",  # the same picture gives the same file
    "text.parse_math": False,  # names of metrics are texts; a $ in them is a dollar sign
}
"""Settings of matplotlib under which plots are drawn."""
MARGINS = {"left": 0.125, "right": 0.975, "top": 0.9, "bottom": 0.155}
"""Position of the axes, as fractions of the picture."""


_vector_format: ContextVar[PlotFormat] = ContextVar("format beside the PNG", default="png")


def check_plot_format(plot_format: str) -> None:
    """Refuse an unknown format.

    Raises:
        ValueError: naming the known ones.
    """
    if plot_format not in get_args(PlotFormat):
        raise ValueError(f"plot_format must be one of {', '.join(get_args(PlotFormat))}, got {plot_format!r}")


@contextmanager
def saving_as(plot_format: PlotFormat) -> Iterator[None]:
    """Within the block every picture is saved in this format, too, beside the PNG that pages show.

    Raises:
        ValueError: if the format is unknown.
    """
    check_plot_format(plot_format)
    token = _vector_format.set(plot_format)
    try:
        yield
    finally:
        _vector_format.reset(token)


@dataclass
class Plot:
    """A picture of a report."""

    path: Path
    """The PNG file."""
    alt: str
    """Alternative text: a description of the picture."""
    caption: str = ""
    """Note on how to read it."""
    width: int = 0
    """Pixels."""
    height: int = 0
    """Pixels."""

    @property
    def name(self) -> str:
        """File name without extension."""
        return self.path.stem


@contextmanager
def drawing(
    path: Path,
    *,
    title: str,
    x: str,
    y: str,
    alt: str,
    caption: str = "",
    size: tuple[float, float] = (5.2, 3.1),
) -> Iterator[tuple[Axes, Plot]]:
    """Give axes to draw on; at the end of the block the picture is saved at ``path``, whole.

    A legend appears if anything on the axes has a label.

    Args:
        path: the PNG file; missing folders are made.
        title: heading of the plot.
        x: label of the horizontal axis, with its unit.
        y: label of the vertical axis, with its unit.
        alt: alternative text; the block may also set ``plot.alt``.
        caption: note on how to read it.
        size: inches.

    Yields:
        (axes, the plot's record).

    Example:
        >>> import tempfile
        >>> with drawing(
        ...     Path(tempfile.mkdtemp()) / "kl.png", title="KL", x="iteration", y="nats", alt="KL rises"
        ... ) as (axes, plot):
        ...     line(axes, [1, 2, 3], [0.0, 0.1, 0.4], label="KL")
        >>> plot.path.read_bytes()[1:4], plot.width > 600
        (b'PNG', True)
    """
    import matplotlib
    from matplotlib.figure import Figure

    plot = Plot(path=path, alt=alt, caption=caption)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        # Fixed margins: to find the best ones takes as long as to draw.
        axes = figure.subplots(gridspec_kw=MARGINS)
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.locator_params(axis="x", nbins=7)
        axes.locator_params(axis="y", nbins=6)
        yield axes, plot
        if axes.get_legend_handles_labels()[1] and axes.get_legend() is None:
            axes.legend()
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Title": title, "Description": plot.alt})
        also = _vector_format.get()
        if also != "png":
            # No date: the same numbers give the same file.
            facts = {"Title": title, "CreationDate" if also == "pdf" else "Date": None}
            with atomic_file(path.with_suffix(f".{also}")) as temporary:
                figure.savefig(temporary, format=also, metadata=facts)
        plot.width, plot.height = (round(float(side) * figure.dpi) for side in size)


def line(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    *,
    label: str | None = None,
    index: int = 0,
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    marks: bool | None = None,
) -> None:
    """Draw a line with the colour and dashes of its index, and optionally a band.

    Args:
        axes: where to draw.
        x: n numbers.
        y: n numbers; NaN leaves a gap.
        label: in the legend.
        index: which colour and dashes, counted from 0.
        low: n numbers, lower edge of the band.
        high: n numbers, its upper edge.
        marks: whether the points are marked; None marks up to 12.
    """
    colour = PALETTE[index % len(PALETTE)]
    marker = "o" if (len(x) <= 12 if marks is None else marks) else None
    # Labels with an underscore in front are hidden by matplotlib; a metric's name may begin with one.
    shown = None if label is None else label if not label.startswith("_") else f" {label}"
    axes.plot(
        x, y, color=colour, linestyle=DASHES[index % len(DASHES)], marker=marker, markersize=3.5, label=shown
    )
    if low is not None and high is not None:
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
