"""Filling: bars inside a piece are rewritten; they continue the music before them and lead into the music after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from melodia.checks import whole_number
from melodia.decode.config import FILL_BRANCHES
from melodia.errors import ConfigError
from melodia.notes import program_of, programs_of
from melodia.sampler.continuation import Continuation
from melodia.sampler.following import TEXTURE_BARS
from melodia.sampler.request import check_programs, check_samples
from melodia.sampler.seed import open_music
from melodia.wording import counted

if TYPE_CHECKING:
    import pretty_midi
    from symusic.core import ScoreTick

    from melodia.midi import BarTable, Finding
    from melodia.sampler.sampler import Sampler
    from melodia.tokenizer import Tokenizer

GIVEN = (
    *("seconds", "tokens", "endless", "may_end", "state", "following"),
    *("metre", "metre_changes", "tempo", "tempo_changes"),
)
"""What a caller of `generate` may ask for and the piece says here."""

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
        following_nll: the NLL of a token of the two bars behind, after the new ones, in nats; None where nothing comes
            behind.
        following_nll_before: the same after the bars that stood there; None, too, where nothing was played up to there.
        findings: what reading did not carry or repaired, and what was cut.
    """

    bars: tuple[int, int]
    programs: tuple[int, ...] | None
    score: ScoreTick
    span: tuple[float, float]
    continuation: Continuation
    notes_before: int
    following_nll: float | None
    following_nll_before: float | None
    findings: list[Finding]

    @property
    def where(self) -> str:
        """The new bars in words."""
        first, last = self.bars
        return f"bar {first}" if first == last else f"bars {first} to {last}"

    @property
    def midi(self) -> pretty_midi.PrettyMIDI:
        """The whole piece."""
        from melodia.midi import to_pretty_midi

        return to_pretty_midi(self.score)

    def lines(self, *, timing: bool = True) -> list[str]:
        """The report as lines of text, with or without how long it took."""
        new, (begin, end) = self.continuation.report, self.span
        lines = [
            f"{self.where} rewritten ({begin:.1f} s to {end:.1f} s): {counted(new.notes, 'note')}, "
            f"{self.notes_before} before; {counted(new.tokens, 'token')}"
        ]
        if self.following_nll is not None:
            old = self.following_nll_before
            lines.append(
                f"what follows: {self.following_nll:.2f} nats per token"
                + ("" if old is None else f" ({old:.2f} after the original bars)")
            )
        return [*lines, *new.lines(timing=timing)[1:], *(str(finding) for finding in self.findings)]


class _Place(NamedTuple):
    """Bars of a piece that are to be filled, and what stands around them.

    Attributes:
        score: the whole piece.
        findings: what reading it did not carry or repaired.
        table: of its bars.
        bars: the first and the last bar to fill, counted from 1.
        span: where they begin and end, in ticks.
        early: a note that begins so many ticks before a bar line belongs behind it, as the grid rounds.
        before, here, after: the music before them, in them, and in the bars behind.
    """

    score: ScoreTick
    findings: list[Finding]
    table: BarTable
    bars: tuple[int, int]
    span: tuple[int, int]
    early: int
    before: ScoreTick
    here: ScoreTick
    after: ScoreTick


def fill(
    sampler: Sampler,
    music: Any,
    bars: tuple[int, int],
    num_samples: int,
    beside: bool,
    settings: dict[str, Any],
) -> list[Filling]:
    """See `Sampler.fill`."""
    from melodia.midi import seconds_of
    from melodia.midi.replace import replace

    num_samples = check_samples(num_samples)
    settings = {name: value for name, value in settings.items() if value is not None}
    for name in GIVEN:
        if name in settings:
            raise ConfigError(f"`{name}` comes from the piece when its bars are filled; leave it out")
    if "branches" in settings:
        whole_number("branches", settings["branches"], 2, 64)
    place = _find_place(music, bars, sampler.tokenizer)
    settings = {"branches": FILL_BRANCHES, "metre": _metre(place.table, place.bars[0] - 1), **settings}
    goes, heard = None, bool(programs_of(place.before) or programs_of(place.here))
    if beside:
        goes, stays, place = _parted(place, settings.get("programs"))
        settings["programs"] = goes
        if programs_of(stays):
            settings["beside"] = stays
    elif not settings.get("any_program"):
        settings.setdefault("programs", programs_of(place.here) or programs_of(place.score))
    twin = sampler.fork()
    leads, behind_old = bool(programs_of(place.after)), None
    seed, (first, last) = _with_whole_bar(place.score, place.table, place.bars[0] - 2), place.bars
    if leads:
        settings["following"] = place.after
        if heard:
            twin.prime(seed, last)
            behind_old = twin.nll(place.after)
    if programs_of(place.before):
        twin.prime(seed, first - 1)
    else:
        twin.prime(*_heard_instead(place))
        settings["tempo"] = _tempo(place.score, place.span[0])
    filled = []
    for made in twin.generate_many(num_samples, bars=last - first + 1, **settings):
        assert not made.report.completed
        whole, cut = replace(place.score, made.score, *place.span, goes, early=place.early)
        lines = np.array(place.span) * (whole.ticks_per_quarter // place.score.ticks_per_quarter)
        filled.append(
            Filling(
                bars=place.bars,
                programs=goes,
                score=whole,
                span=tuple(seconds_of(whole, lines).tolist()),
                continuation=made,
                notes_before=sum(len(track.notes) for track in place.here.tracks),
                following_nll=twin.nll(place.after, state=made.state) if leads else None,
                following_nll_before=behind_old,
                findings=[*place.findings, *cut],
            )
        )
    return filled


def _find_place(music: Any, bars: object, tokenizer: Tokenizer) -> _Place:
    """Read a piece and find the bars to fill in it.

    Raises:
        ConfigError: it has no notes, or no such bars.
        MidiError: it cannot be read.
    """
    from melodia.midi import bar_table, window

    score, _, found, _ = open_music(music, tokenizer)
    if not programs_of(score):
        raise ConfigError("the music has no notes, so there is nothing to fill; give music with notes")
    table, quarter = bar_table(score), score.ticks_per_quarter
    first, last = _check_bars(bars, table, quarter)
    start, stop = table.line(first - 1), table.line(last)
    early = quarter // (2 * tokenizer.config.positions_per_beat)
    before, here, behind = (
        _begun(score, begin - early, end - early)
        for begin, end in ((0, start), (start, stop), (stop, table.end + quarter))
    )
    after = window(behind, stop, table.end)[0]
    return _Place(score, found, table, (first, last), (start, stop), early, before, here, after)


def _heard_instead(place: _Place) -> tuple[ScoreTick | None, int | None]:
    """What is read, and how many bars of it, where nothing stands before: what comes behind, from its first note on.

    A model alone begins in any key, at any loudness. The last bar is whole: else it would be completed first.
    """
    from melodia.midi import window

    starts = [track.notes.numpy()["time"].min() for track in place.after.tracks if len(track.notes)]
    if not starts:
        return None, None
    table, (_, behind) = place.table, place.span
    first = table.index(behind + int(min(starts)))
    stop = min(table.index(place.score.end()), first + TEXTURE_BARS)
    while stop > first and not _is_whole(table, stop - 1, place.score.ticks_per_quarter):
        stop -= 1
    if stop == first:
        return None, None
    return window(place.after, table.line(first) - behind, table.end - behind)[0], stop - first


def _parted(place: _Place, programs: Any) -> tuple[tuple[int, ...], ScoreTick, _Place]:
    """The programs to rewrite, what the others play in the bars, and the place with only those that go in them.

    Raises:
        ConfigError: no programs are named, or there are no such programs.
    """
    from melodia.midi import window

    if programs is None:
        raise ConfigError("`beside` needs `programs`: those to rewrite")
    goes = check_programs(programs)
    stays = part_played_by(window(place.score, *place.span)[0], lambda program: program not in goes)
    return goes, stays, place._replace(here=part_played_by(place.here, lambda program: program in goes))


def _check_bars(bars: object, table: BarTable, ticks_per_quarter: int) -> tuple[int, int]:
    """The first and the last bar to fill, counted from 1.

    Raises:
        ConfigError: they are no such bars, or not of one metre and whole.
    """
    wanted = f"`bars` must be the first and the last bar to fill, between 1 and {len(table)}"
    try:
        first, last = (whole_number("bars", bar, 0) for bar in bars)  # type: ignore[attr-defined]
    except (ConfigError, TypeError, ValueError):
        raise ConfigError(f"{wanted} (received {bars!r})") from None
    if first > last:
        raise ConfigError(f"{wanted} (received {first} to {last}, the last one first); turn them round")
    if not 1 <= first <= last <= len(table):
        received = f"{first}" if first == last else f"{first} to {last}"
        raise ConfigError(f"{wanted} (received {received})")
    if last - first >= MOST_BARS:
        raise ConfigError(
            f"`bars` must span at most {MOST_BARS} bars (received {last - first + 1}); fill them in parts"
        )
    for bar in range(first - 1, last):
        if _metre(table, bar) != _metre(table, first - 1):
            raise ConfigError(
                f"the metre changes at bar {bar + 1}, but `bars` must have one metre; fill {first} to {bar} and "
                f"{bar + 1} to {last} separately"
            )
    for bar in range(first - 1, last):
        if not _is_whole(table, bar, ticks_per_quarter):
            raise ConfigError(
                f"bar {bar + 1} is cut short by a new metre, but only whole `bars` can be filled; leave it out"
            )
    return first, last


def _is_whole(table: BarTable, bar: int, ticks_per_quarter: int) -> bool:
    top, bottom = _metre(table, bar)
    return (table.line(bar + 1) - table.line(bar)) * bottom == 4 * ticks_per_quarter * top


def _with_whole_bar(score: ScoreTick, table: BarTable, bar: int) -> ScoreTick:
    """The score, or a copy in which a bar that a new metre cuts short, such as an upbeat, has a metre of its own.

    Else the seed's last bar would be completed first.
    """
    from symusic.core import TimeSignatureTick

    quarter = score.ticks_per_quarter
    if bar < 0 or _is_whole(table, bar, quarter):
        return score
    start, ticks = table.line(bar), table.line(bar + 1) - table.line(bar)
    for bottom in (4, 8, 16, 32):
        top, rest = divmod(ticks * bottom, 4 * quarter)
        if not rest and 1 <= top <= 64:
            copy = score.copy()
            others = [metre for metre in score.time_signatures if metre.time != start]
            own = TimeSignatureTick(start, top, bottom)
            copy.time_signatures = type(copy.time_signatures)(sorted([*others, own], key=lambda m: m.time))
            return copy
    raise ConfigError(
        f"bar {bar + 1} is cut short by a new metre between two 32nds, so no `bars` can follow it; start later"
    )


def _metre(table: BarTable, bar: int) -> tuple[int, int]:
    return int(table.numerators[bar]), int(table.denominators[bar])


def _begun(score: ScoreTick, first: int, last: int) -> ScoreTick:
    """A copy with the notes only that begin between two ticks."""
    from melodia.midi.join import set_notes

    part = score.copy()
    for track in part.tracks:
        columns = track.notes.numpy()
        inside = (columns["time"] >= first) & (columns["time"] < last)
        set_notes(track, {name: values[inside] for name, values in columns.items()})
    return part


def part_played_by(score: ScoreTick, plays: Callable[[int], bool]) -> ScoreTick:
    """A copy with the tracks of some programs only."""
    part = score.copy()
    tracks = [track for track in score.tracks if plays(program_of(track))]
    part.tracks.clear()
    for track in tracks:
        part.tracks.append(track)
    return part


def _tempo(score: ScoreTick, tick: int) -> float:
    """Quarter notes a minute in force at a tick."""
    from melodia.midi.convert import tempi_of

    return [60e6 / mspq for time, mspq in tempi_of(score) if time <= tick][-1]
