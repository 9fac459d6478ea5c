"""The channels of a file: which tracks share one, and what they say again there before their notes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from symusic.core import ScoreTick, TrackTick

from melodia.midi.assemble import PARAMETERS

MELODIC = [channel for channel in range(16) if channel != 9]
DRUMS = 9
BANK_SELECT = (0, 32)
"""Controllers that are heard with the next program change only."""

BEND, PROGRAM = 128, 129
"""Beside the numbers of the controllers."""

PEDALS = (64, 66, 67)
"""Sustain, sostenuto, soft."""

_KEPT = {
    *PARAMETERS,
    *PEDALS,
}  # of the whole channel: a pedal that goes up ends what sounds, whoever plays it
_DEFAULTS = {
    7: 100,
    8: 64,
    10: 64,
    11: 127,
    **dict.fromkeys(range(70, 80), 64),
    91: 40,
}  # General MIDI's; else 0
_MOST_CELLS = 4096  # stretches of time, in each of which a track plays or does not


class Said(NamedTuple):
    """What a track says again before a note: a controller's number, BEND or PROGRAM, and the value."""

    tick: int
    number: int
    value: int


def assign_channels(score: ScoreTick) -> list[int]:
    """The MIDI channel, 0 to 15, on which each track is written.

    The drums have one, melodic tracks one each while they last. Of more tracks those that play least share: with such
    as play at other times, else with those of their program.
    """
    melodic = [index for index, track in enumerate(score.tracks) if not track.is_drum]
    place = dict(zip(melodic, range(len(MELODIC)), strict=False))
    if len(melodic) > len(MELODIC):
        place = _places(score, melodic)
    order = list(dict.fromkeys(place[index] for index in melodic))
    return [
        DRUMS if track.is_drum else MELODIC[order.index(place[index])]
        for index, track in enumerate(score.tracks)
    ]


def _places(score: ScoreTick, melodic: list[int]) -> dict[int, int]:
    """For each of more tracks than there are channels, which it takes, counted from 0."""
    cell = max(score.ticks_per_quarter, score.end() // _MOST_CELLS + 1)
    plays = {index: _plays(score.tracks[index], cell, score.end() // cell + 1) for index in melodic}
    place: dict[int, int] = {}
    count = len(MELODIC)
    playing = np.zeros((count, score.end() // cell + 1), np.int64)  # how many tracks do, on each channel
    own: dict[tuple[int, int], NDArray[np.int64]] = {}  # those of one program
    for rank, index in enumerate(sorted(melodic, key=lambda index: -int(plays[index].sum()))):
        program, active = score.tracks[index].program, plays[index]
        costs = []
        for channel in range(count):
            mine = own.get((channel, program), np.zeros_like(playing[0]))
            foreign = (playing[channel] - mine)[active] > 0
            costs.append((int(foreign.sum()), int((mine[active] > 0).sum()), not mine.any(), channel))
        place[index] = rank if rank < count else min(costs)[-1]
        playing[place[index]] += active
        own[place[index], program] = own.get((place[index], program), 0) + active
    return place


def _plays(track: TrackTick, cell: int, count: int) -> NDArray[np.bool_]:
    """Whether a track sounds in each of so many stretches of `cell` ticks [count]."""
    notes = track.notes.numpy()
    begin = notes["time"].astype(np.int64)
    last = np.maximum(begin, begin + notes["duration"] - 1)
    change = np.bincount(begin // cell, minlength=count + 1)
    change -= np.bincount(last // cell + 1, minlength=count + 1)[: count + 1]
    sounding: NDArray[np.bool_] = np.cumsum(change[:count]) > 0
    return sounding


def said_again(score: ScoreTick, channels: list[int]) -> list[list[Said]]:
    """What each track has to say before its notes, since another track of its channel has said something else.

    That is its program, and for tracks that are no drums its bank, controllers and bend.

    Args:
        score: in ticks.
        channels: of its tracks.
    """
    said: list[list[Said]] = [[] for _ in score.tracks]
    for channel in sorted(set(channels)):
        sharers = [index for index, other in enumerate(channels) if other == channel]
        kits = {score.tracks[index].program for index in sharers}
        if len(sharers) > 1 and (channel != DRUMS or len(kits) > 1):
            _say(score, sharers, channel == DRUMS, said)
    return said


def _say(score: ScoreTick, sharers: list[int], drums: bool, said: list[list[Said]]) -> None:
    """See `said_again`; of the tracks of one channel."""
    moves: list[tuple[int, int, bool, int, int]] = []  # tick, track, whether a note, number, value
    for index in sharers:
        track = score.tracks[index]
        moves += [(tick, index, False, PROGRAM, track.program) for tick in program_ticks(track)]
        moves += [(tick, index, True, 0, 0) for tick in np.unique(track.notes.numpy()["time"]).tolist()]
        if not drums:
            changes = [(c.time, c.number, c.value) for c in track.controls if c.number not in _KEPT]
            changes += [(bend.time, BEND, bend.value) for bend in track.pitch_bends]
            moves += [(tick, index, False, number, value) for tick, number, value in changes]
    own: dict[int, dict[int, int]] = {index: {} for index in sharers}
    heard: dict[int, int] = {}
    speaker = -1  # the track by which all that is heard was said
    for tick, index, is_note, number, value in sorted(moves, key=lambda move: move[:3]):
        if not is_note:
            own[index][number] = heard[number] = value
            speaker = index if speaker == index else -1
        elif speaker != index:
            speaker = index
            for number in sorted(own[index].keys() | heard.keys()):
                wanted, found = (
                    values.get(number, _DEFAULTS.get(number, 0)) for values in (own[index], heard)
                )
                if wanted != found:
                    said[index].append(Said(tick, number, wanted))
                    if number in BANK_SELECT:
                        heard[PROGRAM] = -1  # is said again behind it
                    heard[number] = wanted


def program_ticks(track: TrackTick) -> list[int]:
    """Where a track says its program: at the beginning, and with each bank."""
    columns = track.controls.numpy()
    return sorted({0, *columns["time"][np.isin(columns["number"], BANK_SELECT)].tolist()})
