"""Piano rolls: a PrettyMIDI as a picture, laid out in systems like a page of music."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from melodia.checks import real_number
from melodia.errors import ConfigError, MidiError
from melodia.files import asked_file, check_target
from melodia.notes import beat_of, program_of
from melodia.render.clock import Bar, Clock
from melodia.wording import clock

if TYPE_CHECKING:
    import pretty_midi

# Colours by program, in the order in which programs appear: without a seed, of a seed, of its continuation.
PLAIN = ["#2a6f97", "#d1495b", "#3f8f5f", "#b8741a", "#6a4c93", "#4d5566", "#0f8b8d", "#a23b72"]
SEED = ["#2f5d8c", "#2a9d8f", "#6d7fb8", "#5c9bd1", "#52708a", "#3b8574", "#7a86a8", "#22577a"]
CONTINUATION = ["#e4572e", "#c2185b", "#f09d1a", "#a63d40", "#d9669a", "#b5651d", "#f2784b", "#8c2f5a"]
INK, FAINT, LANE, BLACK_KEY, OCTAVE, BEAT = "#2b2d3a", "#8a8d99", "#fafafc", "#eef0f5", "#c9cdd8", "#e6e8ef"
DRUM_PLAIN, DRUM_SEED, DRUM_CONTINUATION = "#3d4152", "#3f4f6b", "#a8321a"
FONT = "DejaVu Sans"  # comes with matplotlib

NAMED = len(SEED)  # programs that have colours of their own
QUARTERS_A_SYSTEM = 64.0  # sixteen bars of 4/4
MAX_SYSTEMS = 24
WIDTH = 14.0  # inches
LEFT, RIGHT, BOTTOM, GAP = 0.62, 0.2, 0.3, 0.42  # inches around and between systems
DRUM_LEFT = 1.25  # the left margin where drum names stand
DPI = 120
LETTER = 0.055  # inches that a letter of the numbers above the bars takes


@dataclass
class _Notes:
    """Notes as arrays [N]: start and end in quarter notes, pitch, velocity, colour group, after the join."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    pitch: NDArray[np.int64]
    velocity: NDArray[np.int64]
    group: NDArray[np.int64]
    new: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.start)


def plot_pianoroll(
    midi: pretty_midi.PrettyMIDI,
    path: str | os.PathLike[str],
    *,
    split_at: float | None = None,
    split_end: float | None = None,
    new_programs: Collection[int] | None = None,
    title: str | None = None,
    size: tuple[float, float] | None = None,
    force: bool = False,
) -> Path:
    """Draw a piano roll into a PNG file.

    Time runs in quarter notes, so that bars are equally wide whatever the tempo; long pieces are broken into
    systems at bar lines. Above stand bar numbers, below the time in minutes and seconds. Loud notes are
    opaque, soft ones pale. Drums have a lane of their own with the General MIDI names of those used.

    Args:
        midi: what to draw.
        path: where; the name ends in ``.png``.
        split_at: seconds; notes from there on are the continuation of a seed, in another colour.
        split_end: seconds, with `split_at`; only notes up to there are new, and the rest is the piece around them.
        new_programs: only notes of these, -1 for the drums, are new there; None: all.
        title: stands above; none without it.
        size: width and height in inches; by default as the piece needs.
        force: replace a file that is there.

    Returns:
        the path.

    Raises:
        MidiError: there are no notes.
        ConfigError: `split_at`, `split_end` or `size` makes no sense.
        MelodiaError: the file cannot be written, or is there already.
    """
    target = check_target(path, ".png", force)
    size = None if size is None else _inches(size)
    split_at = None if split_at is None else real_number("split_at", split_at)
    split_end = None if split_end is None else real_number("split_end", split_end)
    if split_end is not None and not (split_at is not None and split_at <= split_end):
        raise ConfigError(
            f"`split_end` must be a time in seconds after `split_at` (received {split_end}, {split_at})"
        )
    clock = Clock(midi)
    programs, melodic, drums = _collect(midi, clock, split_at, split_end, new_programs)
    if len(melodic) + len(drums) == 0:
        raise MidiError("there are no notes to draw; give a MIDI file with notes")
    end = max(float(np.max(part.end)) for part in (melodic, drums) if len(part))
    bars = clock.bars(end)
    places = [float(clock.quarters(max(at, 0.0))) for at in (split_at, split_end) if at is not None]
    figure = _Page(clock, bars, programs, melodic, drums, places, title, size).draw()
    with asked_file(target, force=force) as part:
        figure.savefig(part, format="png", dpi=DPI, metadata={"Software": "melodia"})
    return target


def _inches(size: tuple[float, float]) -> tuple[float, float]:
    """Width and height of a picture that can be drawn; raises ConfigError for anything else."""
    try:
        width, height = (real_number("size", side, 2, 200) for side in size)
        if width * height <= 4000:
            return width, height
    except (TypeError, ValueError):  # no sides, too many, or such as no picture has
        pass
    raise ConfigError(
        f"`size` must be width and height in inches, from 2 to 200 and at most 4000 square inches (received {size!r})"
    )


def _collect(
    midi: pretty_midi.PrettyMIDI,
    clock: Clock,
    split_at: float | None,
    split_end: float | None,
    new_programs: Collection[int] | None,
) -> tuple[list[int], _Notes, _Notes]:
    """The programs in order of appearance, the pitched notes and the drums."""
    programs: list[int] = []
    first, last = (math.inf if at is None else at - 5e-3 for at in (split_at, split_end))
    rows: tuple[list[tuple[float, ...]], list[tuple[float, ...]]] = ([], [])
    for instrument in midi.instruments:
        if not instrument.is_drum and instrument.notes and instrument.program not in programs:
            programs.append(instrument.program)
        joins = new_programs is None or program_of(instrument) in new_programs
        group = 0 if instrument.is_drum else programs.index(instrument.program) if instrument.notes else 0
        for note in instrument.notes:
            new = first <= note.start < last and joins
            rows[instrument.is_drum].append(
                (note.start, note.end, note.pitch, note.velocity, group, float(new))
            )
    found = []
    for part in rows:
        table = np.array(part, np.float64).reshape(-1, 6)
        table = table[np.argsort(table[:, 0], kind="stable")]
        start, end = clock.quarters(table[:, 0]), clock.quarters(table[:, 1])
        whole = table[:, 2:5].astype(np.int64)
        found.append(_Notes(start, end, whole[:, 0], whole[:, 1], whole[:, 2], table[:, 5] > 0))
    return programs, found[0], found[1]


def _opacity(velocity: NDArray[np.int64], all_velocities: NDArray[np.int64]) -> NDArray[np.float64]:
    """Velocities to opacities 0.4-1, along the range that the piece uses."""
    low, high = np.percentile(all_velocities, [2, 98])
    if high - low < 8:
        return np.full(len(velocity), 0.92)
    return 0.4 + 0.6 * np.clip((velocity - low) / (high - low), 0, 1)


def _text(text: str) -> str:
    """Text with the characters that the font has; others become question marks."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties(family=FONT))).get_charmap()
    return "".join(c if ord(c) in known else "?" for c in text if c.isprintable())


class _Page:
    """A figure with one system below the other."""

    def __init__(
        self,
        clock: Clock,
        bars: list[Bar],
        programs: list[int],
        melodic: _Notes,
        drums: _Notes,
        joins: list[float],
        title: str | None,
        size: tuple[float, float] | None,
    ) -> None:
        self.clock, self.bars, self.programs = clock, bars, programs
        self.melodic, self.drums, self.joins, self.title = melodic, drums, joins, title
        self.names = ("seed", "continuation") if len(joins) < 2 else ("the piece", "new")
        self.velocities = np.concatenate([melodic.velocity, drums.velocity])
        self.drum_pitches = sorted(set(drums.pitch.tolist()))
        if len(melodic):
            low, high = int(melodic.pitch.min()), int(melodic.pitch.max())
            middle = max(0, 13 - (high - low)) / 2
            self.low, self.high = (
                max(low - 2 - math.floor(middle), -1),
                min(high + 2 + math.ceil(middle), 128),
            )
        self.systems = _break(bars)
        self.span = max(system[-1].start + system[-1].length - system[0].start for system in self.systems)
        rows_of_roll = self.high - self.low + 1 if len(melodic) else 0
        pixels = min(max(360 // max(rows_of_roll, 1), 4), 9)  # a semitone is a whole number of pixels high
        roll = rows_of_roll * pixels / DPI
        lane = 0.17 * len(self.drum_pitches) + 0.06 if len(drums) else 0.0
        self.left = DRUM_LEFT if len(drums) else LEFT
        rows = len(self.systems)
        self.top = 0.36 + (0.2 if title else 0.0) + (0.22 if joins or len(programs) > 1 else 0.0)
        fixed = self.top + BOTTOM + GAP * (rows - 1)
        if size is None:
            self.width = WIDTH if self.span > 24 else max(8.0, WIDTH * self.span / 24)
            self.height = fixed + (roll + lane) * rows
        else:
            self.width, self.height = size
            scale = max(self.height - fixed, 0.4 * rows) / ((roll + lane) * rows)
            roll, lane = roll * scale, lane * scale
        self.roll, self.lane = roll, lane

    def draw(self) -> Any:
        """The figure."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(self.width, self.height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        inner = self.width - self.left - RIGHT
        top = self.height - self.top
        for system in self.systems:
            if len(self.melodic):
                box = (self.left, top - self.roll, inner, self.roll)
                self._roll(self._axes(figure, box, system), system)
            if len(self.drums):
                box = (self.left, top - self.roll - self.lane, inner, self.lane)
                self._drum_lane(self._axes(figure, box, system), system, not len(self.melodic))
            self._time(figure, system, top - self.roll - self.lane)
            top -= self.roll + self.lane + GAP
        self._heading(figure)
        return figure

    def _axes(self, figure: Any, box: tuple[float, float, float, float], system: list[Bar]) -> Any:
        """Bare axes over a box in inches; x in quarter notes of the system."""
        left, bottom, width, height = (round(side * DPI) / DPI for side in box)
        axes = figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )
        axes.set_xlim(system[0].start, system[0].start + self.span)
        axes.patch.set_visible(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0, labelsize=7.5, labelcolor=INK, pad=3, labelfontfamily=FONT)
        axes.set_xticks([])
        return axes

    def _grid(self, axes: Any, system: list[Bar], low: float, high: float, numbers: bool) -> None:
        """Bar lines, beats where there is room, bar numbers and new metres above."""
        inch = (self.width - self.left - RIGHT) / self.span  # inches a quarter note
        every = next((n for n in (1, 2, 4, 8, 16, 64, 256) if n * system[0].length * inch > 0.04), 1024)
        lines = [bar.start for bar in system[::every]]
        axes.vlines(lines, low, high, color=OCTAVE, linewidth=0.8, zorder=1.5)
        beats: list[float] = []
        for bar in system:
            beat = beat_of((bar.numerator, bar.denominator))
            if beat * inch > 0.14:
                beats += np.arange(bar.start + beat, bar.start + bar.length - 1e-6, beat).tolist()
        axes.vlines(beats, low, high, color=BEAT, linewidth=0.5, zorder=1.2)
        last = system[-1].start + system[-1].length
        thick = 1.8 if system[-1] is self.bars[-1] else 0.8
        axes.vlines([last], low, high, color=OCTAVE, linewidth=thick, zorder=1.5)
        if not numbers:
            return
        for start, label in self._numbers(system, inch):
            axes.annotate(
                label, (start, high), xytext=(1, 3), textcoords="offset points", fontsize=7.5,
                color=FAINT, family=FONT, annotation_clip=False, va="bottom",
            )  # fmt: skip

    def _numbers(self, system: list[Bar], inch: float) -> list[tuple[float, str]]:
        """What stands above the bar lines: numbers, and new metres, alone where the next label leaves no more room."""
        step = _number_step(min(bar.length for bar in system) * inch)
        metre = None if system[0] is self.bars[0] else self._metre(self.bars[system[0].number - 2])
        labels: list[tuple[float, str, str]] = []  # where, the number, the metre if it is a new one
        for bar in system:
            new = "" if self._metre(bar) == metre else f"{bar.numerator}/{bar.denominator}"
            metre = self._metre(bar)
            if new or (bar.number - 1) % step == 0:
                labels.append((bar.start, str(bar.number), new))
        ends = [start for start, _, _ in labels[1:]] + [math.inf]
        found = []
        for (start, number, new), end in zip(labels, ends, strict=True):
            whole = f"{number}  {new}" if new else number
            fits = len(whole) * LETTER <= (end - start) * inch
            found.append((start, whole if fits or not new else new))
        return found

    @staticmethod
    def _metre(bar: Bar) -> tuple[int, int]:
        return bar.numerator, bar.denominator

    def _roll(self, axes: Any, system: list[Bar]) -> None:
        """The pitched notes of a system."""
        from matplotlib.collections import PolyCollection

        begin, end = system[0].start, system[-1].start + system[-1].length
        low, high = self.low - 0.5, self.high + 0.5
        axes.set_ylim(low, high)
        axes.fill_between([begin, end], low, high, color=LANE, linewidth=0, zorder=0)
        black = [pitch for pitch in range(self.low, self.high + 1) if pitch % 12 in (1, 3, 6, 8, 10)]
        lanes = [[(begin, y - 0.5), (begin, y + 0.5), (end, y + 0.5), (end, y - 0.5)] for y in black]
        axes.add_collection(PolyCollection(lanes, facecolors=BLACK_KEY, linewidths=0, zorder=0.5))
        octaves = [pitch for pitch in range(self.low, self.high + 1) if pitch % 12 == 0]
        axes.hlines([pitch - 0.5 for pitch in octaves], begin, end, color=OCTAVE, linewidth=0.6, zorder=1)
        axes.set_yticks(octaves, [f"C{pitch // 12 - 1}" for pitch in octaves])
        self._grid(axes, system, low, high, numbers=True)
        notes = self.melodic
        inside = np.flatnonzero((notes.start < end - 1e-6) & (notes.end > begin + 1e-6))
        x0 = np.maximum(notes.start[inside], begin)
        x1 = np.maximum(np.minimum(notes.end[inside], end), x0 + 0.04)
        y0, y1 = notes.pitch[inside] - 0.5, notes.pitch[inside] + 0.5
        boxes = np.stack([x0, y0, x0, y1, x1, y1, x1, y0], axis=1).reshape(-1, 4, 2)
        opacity = _opacity(notes.velocity[inside], self.velocities)
        colours = self._colours(notes, inside, opacity)
        axes.add_collection(
            PolyCollection(list(boxes), facecolors=colours, edgecolors="white", linewidths=0.5, zorder=3)
        )
        self._join_lines(axes, system, low, high, labels=True)

    def _drum_lane(self, axes: Any, system: list[Bar], numbers: bool) -> None:
        """The drums of a system, one row for each kind."""
        from pretty_midi import note_number_to_drum_name

        begin, end = system[0].start, system[-1].start + system[-1].length
        count = len(self.drum_pitches)
        low, high = -0.65, count - 0.35
        axes.set_ylim(low, high)
        axes.fill_between([begin, end], low, high, color="#f4f4f0", linewidth=0, zorder=0)
        axes.hlines(range(count), begin, end, color="#e2e2da", linewidth=0.6, zorder=1)
        names = [note_number_to_drum_name(pitch) or f"drum {pitch}" for pitch in self.drum_pitches]
        axes.set_yticks(range(count), names)
        axes.tick_params(labelsize=6.5)
        self._grid(axes, system, low, high, numbers)
        drums = self.drums
        inside = np.flatnonzero((drums.start >= begin - 1e-6) & (drums.start < end - 1e-6))
        rows = np.searchsorted(self.drum_pitches, drums.pitch[inside])
        opacity = _opacity(drums.velocity[inside], self.velocities)
        axes.scatter(
            drums.start[inside], rows, marker="d", s=10 + 16 * opacity, linewidths=0,
            c=self._colours(drums, inside, opacity, drum=True), zorder=3, clip_on=False,
        )  # fmt: skip
        self._join_lines(axes, system, low, high, labels=numbers)

    def _colours(
        self, notes: _Notes, index: NDArray[np.int64], opacity: NDArray[np.float64], drum: bool = False
    ) -> NDArray[np.float64]:
        """RGBA of notes [n, 4]."""
        from matplotlib.colors import to_rgb

        if not self.joins:
            palettes = [[DRUM_PLAIN]] * 2 if drum else [PLAIN, PLAIN]
        else:
            palettes = [[DRUM_SEED], [DRUM_CONTINUATION]] if drum else [SEED, CONTINUATION]
        tables = [np.array([to_rgb(colour) for colour in palette]) for palette in palettes]
        group = notes.group[index]
        old, new = (table[group % len(table)] for table in tables)
        return np.column_stack([np.where(notes.new[index, None], new, old), opacity])

    def _join_lines(self, axes: Any, system: list[Bar], low: float, high: float, labels: bool) -> None:
        """The lines between what was there and what is new."""
        begin, end = system[0].start, system[-1].start + system[-1].length
        for k, join in enumerate(self.joins):
            x = min(join, self.bars[-1].start + self.bars[-1].length)
            if not begin - 1e-3 <= x <= end + 1e-3:
                continue
            axes.vlines(
                [x], low, high, color=INK, linewidth=1.4, linestyle=(0, (4, 2)), zorder=4, clip_on=False
            )
            sides = [(0, "right", -4)] if x > begin + 1e-3 and k == 0 else []
            sides += [(1 - k, "left", 4)] if x < end - 1e-3 else []
            for name, side, shift in sides if labels else []:
                axes.annotate(
                    self.names[name], (x, low), xytext=(shift, 3), textcoords="offset points", ha=side,
                    va="bottom", fontsize=8, color=(SEED, CONTINUATION)[name][0], family=FONT, zorder=5,
                    weight="bold",
                )  # fmt: skip

    def _time(self, figure: Any, system: list[Bar], bottom: float) -> None:
        """Minutes and seconds below the bar lines."""
        inch = (self.width - self.left - RIGHT) / self.span
        step = 2 * _number_step(min(bar.length for bar in system) * inch)
        for bar in system:
            if (bar.number - 1) % step == 0:
                figure.text(
                    (self.left + (bar.start - system[0].start) * inch) / self.width,
                    (bottom - 0.05) / self.height,
                    clock(float(self.clock.seconds(bar.start))),
                    fontsize=6.5, color=FAINT, family=FONT, va="top", ha="left",
                )  # fmt: skip

    def _heading(self, figure: Any) -> None:
        """Title at the left, what the colours mean at the right."""
        from matplotlib.legend_handler import HandlerTuple

        y = 1 - 0.12 / self.height
        if self.title:
            room = int((self.width - self.left) * 7)
            title = _text(self.title)
            title = title if len(title) <= room else title[: room - 1] + "…"
            figure.text(
                self.left / self.width, y, title, fontsize=12, weight="bold", color=INK, family=FONT, va="top",
                parse_math=False,
            )  # fmt: skip
        most = min(max(len(self.programs), 1), NAMED)
        for count in range(most, 0, -1):  # as many names as there is room for
            handles, labels = self._meanings(count)
            if not handles:
                return
            legend = figure.legend(
                handles, labels, loc="upper right", ncols=len(labels), frameon=False,
                bbox_to_anchor=(1 - RIGHT / self.width, 1 - (0.34 if self.title else 0.12) / self.height),
                borderaxespad=0,
                handlelength=1.6, handleheight=0.8, columnspacing=1.4, handletextpad=0.5,
                prop={"family": FONT, "size": 7.5}, labelcolor=INK,
                handler_map={tuple: HandlerTuple(ndivide=None, pad=0.1)},
            )  # fmt: skip
            legend.set_in_layout(False)
            if count == 1 or legend.get_window_extent().x0 >= 0:
                return
            legend.remove()

    def _meanings(self, count: int) -> tuple[list[Any], list[str]]:
        """What the colours mean: patches and words, with the names of so many programs; none where all are alike."""
        from matplotlib.patches import Patch
        from pretty_midi import program_to_instrument_name

        labels = [program_to_instrument_name(program) for program in self.programs[:count]]
        handles: list[Any] = []
        if len(self.programs) < 2:
            labels = list(self.names) if self.joins else []
            handles = [Patch(color=SEED[0]), Patch(color=CONTINUATION[0])] if self.joins else []
        elif not self.joins:
            handles = [Patch(color=PLAIN[i]) for i in range(count)]
        else:
            handles = [(Patch(color=SEED[i]), Patch(color=CONTINUATION[i])) for i in range(count)]
        if len(self.programs) > count:
            labels.append(f"and {len(self.programs) - count} more")
            handles.append(Patch(color="none"))
        return handles, labels


def _break(bars: list[Bar]) -> list[list[Bar]]:
    """Bars into systems of about equal length, in groups of four bars where that leaves no scrap at the end."""
    total = sum(bar.length for bar in bars)
    rows = 1 if total <= 1.25 * QUARTERS_A_SYSTEM else math.ceil(total / QUARTERS_A_SYSTEM)
    rows = min(rows, MAX_SYSTEMS, len(bars))
    count = math.ceil(len(bars) / rows)
    if rows > 1:
        fours = [n for n in range(4, 2 * count, 4) if 0.7 <= n / count <= 1.25]
        count = min([count, *fours], key=lambda n: (-len(bars) % n / n > 0.5, n % 4 > 0, abs(n - count)))
    longest = count * total / len(bars) + 1e-3
    systems: list[list[Bar]] = [[]]
    for bar in bars:
        if systems[-1] and sum(other.length for other in systems[-1]) + bar.length > longest:
            systems.append([])
        systems[-1].append(bar)
    return systems


def _number_step(inches: float) -> int:
    """Every how many bars a number is written, for bars so many inches wide."""
    return next((step for step in (1, 2, 4, 8, 16, 32, 64) if step * inches >= 0.36), 128)
