"""Filling: bars inside a piece are made anew, from what stands before them and towards what comes behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from melodia.checks import whole_number
from melodia.errors import ConfigError
from melodia.midi import Finding, bar_table, seconds_of, window
from melodia.midi.convert import tempi_of
from melodia.midi.replace import program_of, replace
from melodia.sampler.continuation import Continuation
from melodia.sampler.report import counted
from melodia.sampler.request import check_programs
from melodia.sampler.seed import open_music

if TYPE_CHECKING:
    import pretty_midi
    from symusic.core import ScoreTick

    from melodia.midi import BarTable
    from melodia.sampler.sampler import Sampler

BRANCHES = 8
"""So many times every two bars are played unless told otherwise, and the last two eight times as often."""

MOST_BARS = 64
"""So many bars are filled at once: of more than a few, what stands before and behind says nothing."""


@dataclass(frozen=True)
class Filling:
    """A piece of which some bars are new.

    Attributes:
        bars: the first and the last new one, counted from 1.
        programs: those that were made anew, -1 for the drums; None: all that play there.
        score: the whole piece.
        span: where the new bars begin and end in it, in seconds.
        continuation: the new bars by themselves, as what continues the music before them.
        notes_before: how many notes stood there.
        surprise: -log probability of a token of the two bars behind, after the new ones, in nats; None where nothing
            comes behind.
        surprise_before: the same after the bars that stood there; None, too, where nothing was played up to there.
        findings: what was cut.
    """

    bars: tuple[int, int]
    programs: tuple[int, ...] | None
    score: ScoreTick
    span: tuple[float, float]
    continuation: Continuation
    notes_before: int
    surprise: float | None
    surprise_before: float | None
    findings: list[Finding]

    @property
    def midi(self) -> pretty_midi.PrettyMIDI:
        """The whole piece."""
        from melodia.midi import to_pretty_midi

        return to_pretty_midi(self.score)

    def lines(self) -> list[str]:
        """The report as lines of text."""
        first, last = self.bars
        bars = f"bar {first}" if first == last else f"bars {first} to {last}"
        new = self.continuation.report
        lines = [f"{bars} made anew: {counted(new.notes, 'note')} in place of {self.notes_before}"]
        if self.surprise is not None:
            old = self.surprise_before
            lines.append(
                f"what comes behind surprises the model by {self.surprise:.2f} nats a token"
                + ("" if old is None else f"; behind what stood there by {old:.2f}")
            )
        return [*lines, *new.lines(), *(str(finding) for finding in self.findings)]


def fill(
    sampler: Sampler,
    music: Any,
    bars: tuple[int, int],
    num_samples: int,
    beside: bool,
    settings: dict[str, Any],
) -> list[Filling]:
    """See `Sampler.fill`."""
    score, *_ = open_music(music, sampler.tokenizer)
    table = bar_table(score)
    first, last = _check_bars(bars, table, score.ticks_per_quarter)
    start, stop = table.line(first - 1), table.line(last)
    before, here, after = (
        window(score, begin, end)[0] for begin, end in ((0, start), (start, stop), (stop, table.end))
    )
    given = {name: value for name, value in settings.items() if value is not None}
    settings = {"branches": BRANCHES, "metre": _metre(table, first - 1), **given}
    goes = None
    if beside:
        if "programs" not in settings:
            raise ConfigError("`beside` needs `programs`: those that are made anew beside the others")
        goes = settings["programs"] = check_programs(settings["programs"])
        stays = _part(here, lambda program: program not in goes)
        here = _part(here, lambda program: program in goes)
        if _programs(stays):
            settings["beside"] = stays
    elif not settings.get("any_program"):
        settings.setdefault("programs", _programs(here) or _programs(score))
    twin, leads = sampler.fork(), bool(_programs(after))
    behind_old = None
    if leads:
        settings["following"] = after
        if _programs(window(score, 0, stop)[0]):
            twin.prime(score, last)
            behind_old = twin.surprise(after)
    if _programs(before):
        twin.prime(score, first - 1)
    else:
        twin.prime(None)
        settings.setdefault("tempo", _tempo(score, start))
    filled = []
    for made in twin.generate_many(num_samples, bars=last - first + 1, **settings):
        whole, findings = replace(score, made.score, start, stop, goes)
        lines = np.array([start, stop]) * (whole.ticks_per_quarter // score.ticks_per_quarter)
        filled.append(
            Filling(
                bars=(first, last),
                programs=goes,
                score=whole,
                span=tuple(seconds_of(whole, lines).tolist()),
                continuation=made,
                notes_before=sum(len(track.notes) for track in here.tracks),
                surprise=twin.surprise(after, state=made.state) if leads else None,
                surprise_before=behind_old,
                findings=findings,
            )
        )
    return filled


def _check_bars(bars: object, table: BarTable, ticks_per_quarter: int) -> tuple[int, int]:
    """The first and the last bar to fill, counted from 1.

    Raises:
        ConfigError: they are no such bars, or not of one metre and whole.
    """
    try:
        first, last = (whole_number("bars", bar, 1) for bar in bars)  # type: ignore[attr-defined]
    except (ConfigError, TypeError, ValueError):
        first, last = 1, 0
    if not first <= last <= len(table):
        raise ConfigError(
            f"`bars` must be the first and the last bar to fill, within 1 and {len(table)}, such as (1, {len(table)}) "
            f"(received {bars!r})"
        )
    if last - first >= MOST_BARS:
        raise ConfigError(
            f"`bars` must be at most {MOST_BARS} at once (received {last - first + 1}); fill them part by part"
        )
    for bar in range(first - 1, last):
        if _metre(table, bar) != _metre(table, first - 1):
            raise ConfigError(
                f"the metre changes at bar {bar + 1}, and `bars` are filled in one metre; fill {first} to {bar} and "
                f"{bar + 1} to {last} one after the other"
            )
    top, bottom = _metre(table, first - 1)
    ticks = table.line(last) - table.line(last - 1)
    if ticks * bottom != 4 * ticks_per_quarter * top:
        raise ConfigError(
            f"bar {last} is cut short by a new metre, and only whole `bars` are filled; leave it"
        )
    return first, last


def _metre(table: BarTable, bar: int) -> tuple[int, int]:
    return int(table.numerators[bar]), int(table.denominators[bar])


def _programs(score: ScoreTick) -> tuple[int, ...]:
    """Those that play, -1 for the drums."""
    return tuple(sorted({program_of(track) for track in score.tracks if len(track.notes)}))


def _part(score: ScoreTick, plays: Callable[[int], bool]) -> ScoreTick:
    """A copy with the tracks of some programs only."""
    part = score.copy()
    tracks = [track for track in score.tracks if plays(program_of(track))]
    part.tracks.clear()
    for track in tracks:
        part.tracks.append(track)
    return part


def _tempo(score: ScoreTick, tick: int) -> float:
    """Quarter notes a minute in force at a tick."""
    return [60e6 / mspq for time, mspq in tempi_of(score) if time <= tick][-1]
