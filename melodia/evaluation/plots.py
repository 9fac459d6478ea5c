"""The pictures of the evaluation page, as SVG, each with a description for those who do not see it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.evaluation.collapse import WINDOW_BARS
from melodia.evaluation.comparison import densities
from melodia.evaluation.report import Generated, mean, mean_histograms
from melodia.evaluation.statistics import LARGEST_INTERVAL, NOTE_NAMES, STATISTICS, piece_statistics
from melodia.measure import Likelihood, number

REAL, GENERATED = "#2f5d8c", "#c8431d"  # also told apart by dashes and hatching
INK, FAINT = "#2b2d3a", "#6b6e7a"
DURATIONS = ("32nd", "16tr", "16", "8tr", "8", "8.", "4", "4.", "2", "2.", "1", "long")
COLUMNS = 4
POINTS = 160  # of a drawn curve


@dataclass(frozen=True)
class Plot:
    """A picture.

    Attributes:
        title: stands above.
        image: the file's bytes.
        mime: its type.
        alt: what is to be seen, in words.
    """

    title: str
    image: bytes
    mime: str
    alt: str


def likelihood_plot(likelihood: Likelihood, names: Sequence[str]) -> Plot:
    """Nats per note of every piece, sorted, with the mean's interval."""
    notes = np.maximum(likelihood.notes, 1)
    each = likelihood.nats / notes
    order = np.argsort(each)
    interval = likelihood.interval("note")
    figure, (axes,) = _figure(9, 3.2, 1)
    axes.axhspan(
        interval.low, interval.high, color=REAL, alpha=0.18, linewidth=0, label="all pieces, 95 % interval"
    )
    axes.axhline(interval.value, color=REAL, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.plot(np.arange(1, len(each) + 1), each[order], "o", color=INK, markersize=3, label="a piece")
    axes.set_xlabel("pieces, the least surprising first")
    axes.set_ylabel("nats per note")
    axes.set_ylim(0, 1.08 * float(each.max()))
    axes.legend(frameon=False, fontsize=8)
    alt = (
        f"{len(each)} pieces from {number(float(each.min()), 2)} nats per note ({names[int(order[0])]}) to "
        f"{number(float(each.max()), 2)} ({names[int(order[-1])]}); overall {number(interval.value, 2)}, "
        f"95 % interval {number(interval.low, 2)} to {number(interval.high, 2)}."
    )
    return Plot("Nats per note of every piece", _svg(figure), "image/svg+xml", alt)


def statistics_plot(made: Generated) -> Plot:
    """The density of every statistic over real and generated pieces."""
    sides = [[piece_statistics(getattr(pair, side)) for pair in made.pairs] for side in ("real", "generated")]
    rows = -(-len(STATISTICS) // COLUMNS)
    figure, axes = _figure(11, 1.75 * rows, len(STATISTICS), COLUMNS)
    far = []
    for ax, name in zip(axes, STATISTICS, strict=True):
        real, generated = (
            np.array([value for piece in side if (value := piece[name]) == value]) for side in sides
        )
        ax.set_title(name.replace("_", " "), fontsize=9, color=INK)
        ax.set_yticks([])
        row = made.comparison[name]
        if row.overlap == row.overlap and row.overlap < 0.7:
            far.append(name.replace("_", " "))
        if not len(real) or not len(generated):
            ax.text(0.5, 0.5, "not defined", ha="center", transform=ax.transAxes, color=FAINT, fontsize=8)
            continue
        if max(len(np.unique(real)), len(np.unique(generated))) == 1:
            ax.axvline(real[0], color=REAL, label="real")
            ax.axvline(generated[0], color=GENERATED, linestyle="--", label="generated")
            continue
        grid, p, q = densities(real, generated)
        seen = np.flatnonzero((p > 0.002 * p.max()) | (q > 0.002 * q.max()))
        at = np.linspace(grid[seen[0]], grid[seen[-1]], POINTS)
        p, q = np.interp(at, grid, p), np.interp(at, grid, q)
        # A sample of one value is a needle that would hide the other: cut where the wider one needs it.
        low, high = sorted((float(p.max()), float(q.max())))
        ax.fill_between(at, p, color=REAL, alpha=0.25, linewidth=0)
        ax.plot(at, p, color=REAL, linewidth=1.3, label="real")
        ax.plot(at, q, color=GENERATED, linewidth=1.3, linestyle="--", label="generated")
        ax.set_ylim(0, 1.3 * low if high > 20 * low > 0 else None)
        ax.set_xlim(float(at[0]), float(at[-1]))
    _legend(axes, 7)
    alt = f"Densities of {len(STATISTICS)} statistics over {len(made.pairs)} real and generated pieces. "
    alt += f"They overlap least in {', '.join(far)}." if far else "All overlap by 70 % or more."
    return Plot("Statistics of real and generated pieces", _svg(figure), "image/svg+xml", alt)


def histograms_plot(made: Generated) -> Plot:
    """Mean histograms of pitch classes, durations, onset intervals and melodic intervals."""
    real, generated = (
        mean_histograms([getattr(pair, side) for pair in made.pairs]) for side in ("real", "generated")
    )
    figure, axes = _figure(11, 5.6, 4, 2)
    semitones = [str(i) if i % 6 == 0 else "" for i in range(-LARGEST_INTERVAL, LARGEST_INTERVAL + 1)]
    shown = {
        "pitch_class_histogram": ("pitch classes", NOTE_NAMES),
        "duration_histogram": ("note lengths", DURATIONS),
        "onset_interval_histogram": ("time between onsets", DURATIONS),
        "interval_histogram": ("melodic intervals, semitones", semitones),
    }
    words = []
    for ax, (name, (title, labels)) in zip(axes, shown.items(), strict=True):
        ax.set_title(title, fontsize=9, color=INK)
        at = np.arange(len(labels))
        for side, shift, colour, hatch, label in (
            (real, -0.2, REAL, "", "real"),
            (generated, 0.2, GENERATED, "////", "generated"),
        ):
            if name in side:
                ax.bar(
                    at + shift, side[name], 0.4, color="white" if hatch else colour, edgecolor=colour, hatch=hatch,
                    linewidth=0.5, label=label,
                )  # fmt: skip
        ax.set_xticks(at, labels, fontsize=7)
        row = made.comparison[name]
        words.append(f"{title} {number(row.distance, 2)}")
    _legend(axes, 8)
    alt = (
        "Mean histograms, real next to generated. Total variation distances (0: identical, 1: disjoint): "
        f"{'; '.join(words)}."
    )
    return Plot("Histograms of real and generated pieces", _svg(figure), "image/svg+xml", alt)


def drift_plot(made: Generated) -> Plot:
    """Pitch entropy, notes in the piece's key, density along the pieces."""
    figure, axes = _figure(11, 2.6, 3, 3)
    curves = {
        "pitch_entropy": "pitch entropy, bits",
        "in_key": "share of notes in the piece's key",
        "density": "notes per bar",
    }
    words = []
    for ax, (name, title) in zip(axes, curves.items(), strict=True):
        ax.set_title(title, fontsize=9, color=INK)
        ends = []
        for side, colour, dash, label in zip(
            made.collapse, (REAL, GENERATED), ("-", "--"), ("real", "generated"), strict=True
        ):
            curve = _mean_curve([getattr(report, name) for report in side])
            bars = (np.arange(len(curve)) + 0.5) * WINDOW_BARS
            ax.plot(bars, curve, color=colour, linestyle=dash, marker="o", markersize=3, label=label)
            ends.append(
                f"{label} {number(float(curve[0]), 2)} to {number(float(curve[-1]), 2)}"
                if len(curve)
                else label
            )
        ax.set_xlabel("bar", fontsize=8)
        ax.set_ylim(0, 1.1 * ax.get_ylim()[1])
        words.append(f"{title}: {', '.join(ends)}")
    _legend(axes, 8)
    alt = f"Means over pieces in windows of {WINDOW_BARS} bars, first to last. {'; '.join(words)}."
    return Plot("Along the piece", _svg(figure), "image/svg+xml", alt)


def originality_plot(made: Generated) -> Plot | None:
    """How long the longest shared passages are; None without an index."""
    real, generated = ([found.notes for found in side] for side in made.originalities())
    if not generated:
        return None
    figure, (axes,) = _figure(9, 2.6, 1)
    edges = np.arange(0, max([*real, *generated, 20]) + 3, 2)
    for side, colour, shift, hatch, label in (
        (real, REAL, -0.45, "", "real"),
        (generated, GENERATED, 0.45, "////", "generated"),
    ):
        count = np.histogram(side, edges)[0]
        axes.bar(
            edges[:-1] + shift, count, 0.9, color="white" if hatch else colour, edgecolor=colour, hatch=hatch,
            linewidth=0.5, label=label,
        )  # fmt: skip
    axes.set_xlabel("notes of the longest passage shared with the training music (0: none)")
    axes.set_ylabel("pieces")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=8)
    alt = (
        f"Longest shared passage of each piece: generated up to {max(generated)} notes, mean "
        f"{number(mean(generated), 1)}; real bars up to {max(real)}, mean {number(mean(real), 1)}."
    )
    return Plot("Passages shared with the training music", _svg(figure), "image/svg+xml", alt)


def _mean_curve(curves: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """The mean of curves of unlike lengths at each place, undefined values left out."""
    length = max((len(curve) for curve in curves), default=0)
    return np.array([mean(curve[i] for curve in curves if i < len(curve)) for i in range(length)])


def _figure(width: float, height: float, count: int, columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure with `count` axes in rows of `columns`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    rows = -(-count // columns)
    axes = []
    for place in range(count):
        ax = figure.add_subplot(rows, columns, place + 1)
        ax.tick_params(labelsize=7.5, colors=INK)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        axes.append(ax)
    return figure, axes


def _legend(axes: Sequence[Any], size: int) -> None:
    """A legend in the first of some axes that show anything: of drums, the pitches are not defined."""
    for ax in axes:
        if ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False, fontsize=size)
            return


def _svg(figure: Any) -> bytes:
    """The figure as SVG: text as shapes (no fonts are fetched), the same bytes for the same figure."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "melodia", "hatch.linewidth": 0.6}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
