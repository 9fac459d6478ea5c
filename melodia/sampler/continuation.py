"""What comes out: events, and the continuation as MIDI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from melodia.grammar import NoteEvent
from melodia.notes import program_of
from melodia.sampler.report import GenerationReport
from melodia.sampler.session import Session
from melodia.sampler.timeline import Tempi
from melodia.tokenizer.scores import build_score, columns_of

if TYPE_CHECKING:
    import pretty_midi
    from symusic.core import ScoreTick

    from melodia.originality import Index, Originality


@dataclass(frozen=True)
class Event:
    """A new note. Time 0 is the time 0 of `Continuation.midi`: the bar line at or before the join.

    Attributes:
        onset, duration: seconds.
        onset_beats, duration_beats: quarter notes.
        pitch: 0 to 127.
        velocity: 1 to 127.
        program: General MIDI program, -1 for the drums.
    """

    onset: float
    duration: float
    onset_beats: float
    duration_beats: float
    pitch: int
    velocity: int
    program: int


@dataclass(frozen=True, eq=False)
class Continuation:
    """New music.

    Attributes:
        tokens: int32 [N], the new tokens.
        nll: float32 [N], -log probability of each under the model, before any filter, in nats.
        entropy: float32 [N], of what each was drawn from, after all filters, in nats.
        events: the new notes, by onset; cut at the final bar line.
        report: numbers and remarks.
        seed: the music before, as a score; None for none.
    """

    tokens: NDArray[np.int32]
    nll: NDArray[np.float32]
    entropy: NDArray[np.float32]
    events: tuple[Event, ...]
    report: GenerationReport
    seed: ScoreTick | None = field(repr=False)
    _notes: tuple[NoteEvent, ...] = field(repr=False)  # ticks from the origin
    _map: TimeMap = field(repr=False)
    _session: Session = field(repr=False)
    _index: Index | None = field(default=None, repr=False)
    _recalled: tuple[tuple[int, int], ...] = field(default=(), repr=False)  # ticks from the origin

    @cached_property
    def originality(self) -> Originality | None:
        """What the new music, without its seed, shares with the music that the model was trained on.

        None where the checkpoint has no index of it. A passage of the training piece that the seed is a part of is
        named as such. Bars that were played again from memory are left out: they are not what the model has learned.
        """
        if self._index is None:
            return None
        from melodia.notes import bar_lines
        from melodia.originality import notes_of_events, notes_of_score, shared_passages

        starts = bar_lines(list(self._map.metres), self._map.end, self._map.ticks_per_quarter)
        seed = None if self._session.seed is None else notes_of_score(self._session.seed)
        new = [note for note in self._notes if not any(a <= note.onset < b for a, b in self._recalled)]
        return shared_passages(self._index, notes_of_events(new), starts, seed=seed)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: what the index says of the music, but not the index, which is of megabytes."""
        return {**self.__dict__, "originality": self.originality, "_index": None}

    @cached_property
    def score(self) -> ScoreTick:
        """The new music alone, in grid ticks; time 0 is the bar line at or before the join.

        Its tracks have the names that the seed's of the same program have, where these agree.
        """
        score = _score_of(self._notes, self._map)
        names: dict[int, set[str]] = {}
        for track in self.seed.tracks if self.seed is not None else ():
            names.setdefault(program_of(track), set()).add(track.name)
        for track in score.tracks:
            found = names.get(program_of(track), set()) - {""}
            if len(found) == 1:
                track.name = found.pop()
        return score

    @cached_property
    def midi(self) -> pretty_midi.PrettyMIDI:
        """The new music alone; time 0 is the bar line at or before the join.

        Where the seed's last bar is completed first, the file begins with as much rest as the seed has filled of it.
        """
        from melodia.midi import to_pretty_midi

        return to_pretty_midi(self.score)

    @cached_property
    def joined_score(self) -> ScoreTick:
        """Seed and new music in one score; the new music alone if there is no seed."""
        return self._joined.copy()

    @property
    def joined(self) -> pretty_midi.PrettyMIDI:
        """Seed and new music in one; the new music alone if there is no seed."""
        from melodia.midi import to_pretty_midi

        return to_pretty_midi(self.joined_score)

    @property
    def joined_at(self) -> float:
        """Where the new music begins in `joined`, in seconds."""
        from melodia.midi import seconds_of

        if self.seed is None:
            return 0.0
        tick = round(self._map.seed_join * self.joined_score.ticks_per_quarter)
        return float(seconds_of(self.joined_score, np.array(tick)))

    @cached_property
    def state(self) -> Session:
        """The session behind the new music: continue from here with `Sampler.generate(state=...)`."""
        session = self._session.fork()
        session.seed = self._joined.copy()
        return session

    @cached_property
    def _joined(self) -> ScoreTick:
        """As `joined_score`, which a caller may edit."""
        seed = self._session.seed
        if seed is None:
            return _score_of(self._notes, self._map)
        return join_scores(seed, self._notes, self._map)


@dataclass(frozen=True)
class TimeMap:
    """Where new music lies in time. Ticks count from the origin, the bar line at or before the join.

    Attributes:
        ticks_per_quarter: of the grid.
        join: where new music begins.
        end: the final bar line.
        tempi: (tick, quarter notes a minute), the first at 0.
        metres: (tick, numerator, denominator), the first at 0.
        seed_join: the join in the seed, in quarter notes.
    """

    ticks_per_quarter: int
    join: int
    end: int
    tempi: tuple[tuple[int, float], ...]
    metres: tuple[tuple[int, int, int], ...]
    seed_join: float

    @cached_property
    def _tempi(self) -> Tempi:
        tempi = Tempi(self.ticks_per_quarter)
        for tick, tempo in self.tempi:
            tempi.add(tick, tempo)
        return tempi

    def seconds(self, tick: float) -> float:
        """Seconds from the origin to a tick."""
        return self._tempi.at(tick)

    def event(self, note: NoteEvent) -> Event:
        """A note in seconds and quarter notes."""
        return event_of(note, self.ticks_per_quarter, self.seconds)


def event_of(note: NoteEvent, ticks_per_quarter: int, seconds: Callable[[int], float]) -> Event:
    """A note, whose ticks count from the origin, in seconds and quarter notes."""
    onset = seconds(note.onset)
    return Event(
        onset=onset,
        duration=seconds(note.onset + note.duration) - onset,
        onset_beats=note.onset / ticks_per_quarter,
        duration_beats=note.duration / ticks_per_quarter,
        pitch=note.pitch,
        velocity=note.velocity,
        program=note.program,
    )


def _score_of(notes: Sequence[NoteEvent], times: TimeMap) -> ScoreTick:
    """A symusic score of notes in grid ticks."""
    return build_score(times.ticks_per_quarter, columns_of(notes), times.tempi, times.metres)


def join_scores(seed: ScoreTick, notes: tuple[NoteEvent, ...], times: TimeMap) -> ScoreTick:
    """Put new notes behind a seed. The seed's own notes stay as they are, off the grid if they were.

    Args:
        seed: what stands before.
        notes: ticks from the origin.
        times: where they lie.

    Returns:
        a score at the seed's resolution, or a multiple of it that the grid fits.
    """
    from symusic.core import TempoTick, TimeSignatureTick

    from melodia.midi.join import common_resolution, join

    resolution = common_resolution(seed.ticks_per_quarter, times.ticks_per_quarter)
    whole = seed if resolution == seed.ticks_per_quarter else seed.resample(resolution, 1)
    scale = resolution / times.ticks_per_quarter
    moved = [
        note._replace(
            onset=round((note.onset - times.join) * scale),
            duration=max(
                1,
                round((note.onset + note.duration - times.join) * scale)
                - round((note.onset - times.join) * scale),
            ),
        )
        for note in notes
    ]
    later = TimeMap(resolution, 0, 0, ((0, times.tempi[0][1]),), ((0, *times.metres[0][1:]),), 0.0)
    at = round(times.seed_join * resolution)
    result, _ = join(whole, _score_of(moved, later), at, keep_changes=False)
    origin = at - round(times.join * scale)

    def place(tick: int) -> int:
        return max(at, origin + round(tick * scale))

    before = [tempo.mspq for tempo in result.tempos if tempo.time <= at]
    for tick, tempo in times.tempi:
        new = TempoTick(place(tick), qpm=tempo)
        if place(tick) > at or not before or before[-1] != new.mspq:
            result.tempos.append(new)
    metres = [(metre.numerator, metre.denominator) for metre in result.time_signatures if metre.time <= at]
    for tick, top, bottom in times.metres:
        if place(tick) > at or not metres or metres[-1] != (top, bottom):
            result.time_signatures.append(TimeSignatureTick(place(tick), top, bottom))
    return result
