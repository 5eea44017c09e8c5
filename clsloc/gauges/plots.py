"""The pictures of a comparison, as PNG files; None where there is nothing to draw.

Matplotlib is imported when it is used.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from clsloc.errors import UserError
from clsloc.gauges.histories import History, mean_history

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The first method, to which the others are compared, then colours that colour-blind people can
# tell apart; after these the same ones in other lines.
FIRST = "#222222"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8b5a2b", "#8f7ee7")
LINES = ("-", "--", ":", "-.")
MARKERS = "osD^"
WIDTH, HEIGHT, LEGEND_LINE = 7.2, 4.0, 0.17  # inches

Row = Mapping[str, Any]


def check_matplotlib() -> None:
    """
    Raises:
        UserError: the pictures could not be drawn.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"The pictures need matplotlib, which cannot be imported ({error}); "
            "'pip install matplotlib' brings it."
        ) from error


def ap_by_iou(rows: Sequence[Row]) -> bytes | None:
    """AP against the IoU threshold, a line for the mean and a band for the spread of each method.

    Args:
        rows: of :func:`clsloc.gauges.comparison.summarise`.
    """
    if not any(row["ap_by_iou"] for row in rows):
        return None
    figure, (axes,) = _figure(1, len(rows))
    for row, style in zip(rows, _styles(len(rows))):
        points = [
            (float(iou), point["mean"], point["std"] or 0.0)
            for iou, point in row["ap_by_iou"].items()
        ]
        ious, means, spreads = map(list, zip(*points)) if points else ([], [], [])
        axes.plot(ious, means, label=row["method"], marker="o", markersize=2.5, **style)
        low = [value - spread for value, spread in zip(means, spreads)]
        high = [value + spread for value, spread in zip(means, spreads)]
        axes.fill_between(ious, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="IoU threshold", ylabel="AP (%)")
    axes.set_ylim(bottom=0)
    return _png(figure, axes)


def training_curves(histories: Mapping[str, Sequence[History]]) -> bytes | None:
    """The total loss against the iteration, and AP where it was measured more than once, the mean
    over the runs of each method."""
    losses = {name: mean_history(runs, "total_loss") for name, runs in histories.items()}
    aps = {name: mean_history(runs, "bbox/AP") for name, runs in histories.items()}
    panels = {"total loss": losses} if any(losses.values()) else {}
    if any(len(curve) > 1 for curve in aps.values()):
        panels["AP (%)"] = aps
    if not panels:
        return None
    figure, all_axes = _figure(len(panels), len(histories))
    for axes, (title, curves) in zip(all_axes, panels.items()):
        for (name, curve), style in zip(curves.items(), _styles(len(curves))):
            axes.plot(curve.keys(), curve.values(), label=name, **style)
        axes.set_ylabel(title)
    if losses in panels.values():
        _cut_first_steps(all_axes[0], losses)
    all_axes[-1].set_xlabel("iteration")
    return _png(figure, all_axes[0])


def ap_by_latency(rows: Sequence[Row]) -> bytes | None:
    """AP against the time for an image; methods that were not timed are left out."""
    timed = [row for row in rows if row["mean"]["s/image"] and row["mean"]["AP"] is not None]
    if not timed:
        return None
    figure, (axes,) = _figure(1, len(timed))
    styles = dict(zip([row["method"] for row in rows], _styles(len(rows))))
    for row in timed:
        style = styles[row["method"]]
        axes.errorbar(
            1000 * row["mean"]["s/image"],
            row["mean"]["AP"],
            yerr=row["std"]["AP"],
            label=row["method"],
            color=style["color"],
            marker=MARKERS[LINES.index(style["linestyle"])],
            linestyle="",
            capsize=3,
        )
    axes.set(xlabel="milliseconds for an image", ylabel="AP (%)")
    axes.set_xlim(0, 1050 * max(row["mean"]["s/image"] for row in timed))
    return _png(figure, axes)


def _figure(panels: int, methods: int) -> tuple["Figure", list["Axes"]]:
    """A figure with room for the legend below, and the axes of its panels from top to bottom."""
    from matplotlib.figure import Figure

    height = HEIGHT * (1 if panels == 1 else 0.8 * panels)
    figure = Figure((WIDTH, height + LEGEND_LINE * (methods + 3) / 2), layout="constrained")
    all_axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    for axes in all_axes:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(all_axes)


def _styles(count: int) -> list[dict[str, Any]]:
    others = [
        {"color": colour, "linestyle": line, "linewidth": 1.4}
        for line in LINES
        for colour in COLOURS
    ]
    repeats = 1 + count // len(others)
    return [{"color": FIRST, "linestyle": "-", "linewidth": 2.2}, *others * repeats][:count]


def _cut_first_steps(axes: "Axes", curves: Mapping[str, dict[int, float]]) -> None:
    """The losses of the first steps would flatten all that follows."""
    later = [
        value for curve in curves.values() for value in list(curve.values())[len(curve) // 20 :]
    ]
    axes.set_ylim(0, 1.05 * max(later))


def _png(figure: "Figure", axes: "Axes") -> bytes:
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8,
        frameon=False,
    )  # fmt: skip
    file = BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()
