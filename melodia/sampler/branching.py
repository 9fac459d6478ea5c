"""Playing a stretch several times from one state, and keeping what fits best.

One draw after another from a model drifts: the outer voices draw together, drums displace the tune, a piece stops
instead of closing. A recurrent state can be branched at any token for the price of a copy. So a continuation is played
in stretches of two bars, counted from its end: from each bar line where a stretch begins several branches go on, each
with random numbers of its own, and the one that `fitness` puts first is the one that is kept and branched again. The
last stretch has more of them, since few of those that a model draws close. The first branch has the random numbers of
the stream itself: a single one is what comes without branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from melodia.grammar import NoteEvent
from melodia.harmony import Chord
from melodia.key_finding import find_key
from melodia.notes import Notes, notes_of_events, notes_of_score
from melodia.sampler.following import Following
from melodia.sampler.lane import Lane
from melodia.sampler.stretches import STRETCH_BARS, WIDER
from melodia.sampler.texture import Texture, texture_of
from melodia.sampler.together import fit

if TYPE_CHECKING:
    from symusic.core import ScoreTick

_APART = 0x9E3779B97F4A7C15
"""Between the random seeds of branches: no seeds that somebody would give one after the other."""

SILENT = 10.0
"""The distance of silence from any texture."""

CLOSURE = 6.0
"""The weight of a close beside a distance of textures."""

CLOSING = 8
"""So many times the branches at the end: of 36 held-out pieces, 54 % ended on the tonic with as many as elsewhere, 80 %
with three or four times as many, 89 % with eight times; 95 % since half of those lean towards the tonic's triad."""

FAR = 5.2
"""No distance of textures below this one is far: the mean between 16 bars and those that really come behind them (47
held-out pieces). A short seed has few stretches of its own."""

LOOKED_AT = 32
"""So many stretches of music, its last ones, say what is far from it."""

FOLLOWING = 8.0
"""The weight of a nat per token of what follows beside a distance of textures.

Four times as much, or sixteen times, lowers what follows by 0.02 and 0.03 nats a token (41 held-out pieces, four bars
filled twice), at the price of textures, and of pitch classes that are less alike on both sides of the join."""

CHORDS = 2.0
"""The weight of the share of the time that belongs to the chords that were asked for beside a distance of textures."""

TOGETHER = 4.0
"""The weight of how well new parts fit what the others play (`together.fit`) beside a distance of textures."""

CHORD_BASSES = 2.0
"""The same of the share of the chords that begin over their bass."""

_TRIADS = ((0, 4, 7), (0, 3, 7))  # above the tonic: major, minor


class Judge:
    """Chooses between branches of one continuation.

    Args:
        seed: the music before; None for none.
        programs: those that may play, -1 for the drums; None for all.
        following: the music that comes behind; None: the new music closes.
        beside: whether other music stays, so that what is new is a part only.

    Attributes:
        around: the textures of the seed and of what follows, of those programs, as far as they play in it.
        anyone: whether none of them does, so that only what does not hang on who plays is compared.
        far: the distance from those of the stretch that is farthest among their own.
        known: the programs in them.
        key: the seed's key, of the same notes; None where the new music must say.
    """

    def __init__(
        self,
        seed: ScoreTick | None,
        programs: Sequence[int] | None,
        following: Following | None = None,
        *,
        beside: bool = False,
    ) -> None:
        self.following = following
        self.around: list[Texture] = []
        self.known: set[int] = set()
        self.key: int | None = None
        musics = [seed, None if following is None else following.score]
        found = [(music, notes_of_score(music)) for music in musics if music is not None]
        heard = {program for _, notes in found for program in notes.program.tolist()}
        pitched = {program for program in programs or () if program >= 0}
        self.anyone = bool(pitched) and heard.isdisjoint(pitched) and not beside
        own: list[Texture] = []
        for music, notes in found:
            if self.anyone:
                notes = notes.select(notes.program >= 0)
            elif programs is not None:
                notes = notes.select(np.isin(notes.program, programs))
            if len(notes.onset):
                self.known.update(notes.program.tolist())
                end = max(int(notes.end.max()), int(notes.onset.max()) + 1)  # a note may have no length
                texture = texture_of(notes, music.ticks_per_quarter, 0, end)
                assert texture is not None
                self.around.append(self._compared(texture))
                own += map(self._compared, last_stretches(notes, music))
                if music is seed:
                    self.key = key_of(notes)
        self.far = max([FAR, *map(self._distance, own)])

    def branches_of(self, lane: Lane) -> list[Lane]:
        """As many lanes as the request wants, going on from where this one stands; one where nothing could choose.

        One, too, where bars come again.
        """
        if replay := lane.recalls():
            return [lane.branch(lane.request.random_seed, replay)]
        plan = lane.plan
        chooses = self.around or plan.closes or plan.progression is not None or plan.kept is not None
        count = lane.request.branches if chooses else 1
        if count == 1 or not plan.closes or plan.kept is not None:
            return _branches(lane, 0, count)
        branches = _branches(lane, 0, CLOSING * count)
        key = self.key if lane.request.scale is None else lane.request.scale.key
        if self.following is None and plan.progression is None and key is not None and key >= 0:
            triad, bias = tonic_triad(key), lane.chord_bias()
            for branch in branches[1::2]:
                branch.close_on(triad, bias)
        return branches

    def more_of(self, lane: Lane, branches: Sequence[Lane]) -> list[Lane]:
        """More lanes that go on from there, where all branches are far from the music around; none where they end."""
        count = len(branches)
        if count == 1 or not self.around or any(branch.ended for branch in branches):
            return []
        if any(self.distance(branch) <= self.far for branch in branches):
            return []
        return _branches(lane, count, WIDER * count)

    def best(self, branches: Sequence[Lane]) -> Lane:
        """The branch that fits best, the first among equals; all stand at the same bar line, or have ended."""
        if len(branches) == 1:
            return branches[0]
        nlls: dict[Lane, float] = {}
        if self.following is not None:
            ended = [branch for branch in branches if branch.ended]
            sessions, joins = [branch.session for branch in ended], [branch.end for branch in ended]
            found = self.following.nlls(sessions, joins)
            nlls = dict(zip(ended, found, strict=True))
        best = max(branches, key=lambda branch: self.fitness(branch, nlls.get(branch)))
        best.chosen += 1
        best.chosen_from = len(branches)
        return best

    def distance(self, branch: Lane) -> float:
        """How far the last stretch of a branch is from the music around, of which there must be some."""
        notes = notes_of_events(branch.notes[branch.before :])
        strangers = branch.plan.strangers
        if strangers is not None and not self.anyone:
            # who joins in has no part in the music before, perhaps one behind
            apart = set(strangers.programs) - self.known
            notes = notes.select(~np.isin(notes.program, list(apart)))
        texture = texture_of(notes, branch.classes.tables.ticks_per_quarter, *branch.stretch)
        return SILENT if texture is None else self._distance(self._compared(texture))

    def _compared(self, texture: Texture) -> Texture:
        return texture.of_anyone() if self.anyone else texture

    def _distance(self, texture: Texture) -> float:
        return sum(texture.distance(other) for other in self.around) / len(self.around)

    def fitness(self, branch: Lane, nll: float | None = None) -> float:
        """How well the last stretch of a branch fits; only the order of such numbers means anything.

        The distance of its texture from those around is taken off; how well it keeps to the requested chords, and new
        parts fit what the others play, is added.
        Where the piece ends its `closure` is added, in the key of the last requested chord, or of the requested scale;
        where other music follows, its NLL is taken off.

        Args:
            branch: it stands at a bar line, or has ended.
            nll: of a token of what follows, in nats; None: nothing does.
        """
        fitness = -self.distance(branch) if self.around else 0.0
        quarter = branch.classes.tables.ticks_per_quarter
        notes = notes_of_events(branch.notes[branch.before :])
        if (kept := branch.plan.keeps_chords(branch.session.grammar, notes)) is not None:
            fitness += CHORDS * kept[0] + CHORD_BASSES * kept[1]
        if branch.plan.kept is not None:
            fitness += TOGETHER * fit(notes, branch.plan.kept.notes, *branch.stretch)
        elif branch.plan.strangers is not None:
            joins = np.isin(notes.program, branch.plan.strangers.programs)
            fitness += TOGETHER * fit(notes.select(joins), notes.select(~joins), *branch.stretch)
        if nll is not None:
            fitness -= FOLLOWING * nll
        elif branch.ended:
            key = branch.plan.asked_key(branch.session.grammar, branch.end)
            if key is None:
                key = key_of(notes_of_events(branch.notes)) if self.key is None else self.key
            fitness += CLOSURE * closure(branch.result()[0], quarter, key)
        return fitness


def run_branches(
    lanes: Sequence[Lane], run: Callable[[list[Lane]], None], following: Following | None = None
) -> tuple[list[Lane], int]:
    """Let lanes that go on from one session run stretch by stretch in branches.

    Args:
        lanes: at least one.
        run: lets lanes run until each has ended or is to branch.
        following: the music that comes behind; None where the piece ends.

    Returns:
        what was kept of each, ended; and how many tokens were drawn.
    """
    kept, drawn = list(lanes), 0
    lane = kept[0]
    judge = Judge(lane.session.seed, lane.programs, following, beside=lane.plan.kept is not None)
    while going := [k for k, lane in enumerate(kept) if not lane.ended]:
        groups = [judge.branches_of(kept[k]) for k in going]
        run([branch for group in groups for branch in group])
        more = [judge.more_of(kept[k], group) for k, group in zip(going, groups, strict=True)]
        if any(more):
            run([branch for group in more for branch in group])
        for k, few, others in zip(going, groups, more, strict=True):
            group = [*few, *others]
            drawn += sum(branch.count - kept[k].count for branch in group)
            kept[k] = judge.best(group)
            kept[k].widened += bool(others)
    return kept, drawn


def _branches(lane: Lane, first: int, end: int) -> list[Lane]:
    """Lanes that go on from where one stands, with the random numbers of branches `first` to `end` - 1."""
    return [lane.branch((lane.request.random_seed + k * _APART) % 2**64) for k in range(first, end)]


def last_stretches(notes: Notes, music: ScoreTick) -> list[Texture]:
    """The textures of the last stretches of music in which some of the notes begin.

    Args:
        notes: of the music, in its ticks.
        music: has the bars.
    """
    from melodia.midi.bars import bar_table

    bars = bar_table(music)
    lines = [bars.line(bar) for bar in range(0, len(bars) + 1, STRETCH_BARS)]
    last = pairwise(lines[-LOOKED_AT - 1 :])
    found = (texture_of(notes, music.ticks_per_quarter, *pair) for pair in last)
    return [texture for texture in found if texture is not None]


def key_of(notes: Notes) -> int:
    """The key of notes, weighted by their lengths, as in `melodia.key_finding`."""
    pitched = notes.select(notes.program >= 0)
    return find_key(np.bincount(pitched.pitch % 12, pitched.end - pitched.onset, 12).astype(int).tolist())


def tonic_triad(key: int) -> Chord:
    """The triad on the tonic of a key, which is as in `melodia.key_finding`, 0 or more.

    >>> a_minor = tonic_triad(21)
    >>> a_minor.bass, sorted(a_minor.classes)
    (9, [0, 4, 9])
    """
    tonic = key % 12
    classes = frozenset((tonic + above) % 12 for above in _TRIADS[key >= 12])
    return Chord("tonic", tonic, tonic, classes)


def closure(notes: Sequence[NoteEvent], ticks_per_quarter: int, key: int) -> float:
    """How well music closes; only the order of such numbers means anything.

    Judged is what sounds last, drums apart: a point for the tonic in the bass, half of it where that is no bass, but
    lies above the mean pitch; a point for the share of its pitch classes that belong to the tonic's triad; half a point
    for the tonic or its third on top; a point where nothing begins any more for twice the mean length of a note before
    the end, and none below a quarter note.

    Args:
        notes: of the whole continuation, in ticks.
        ticks_per_quarter: of the grid.
        key: as in `melodia.key_finding`; -1: none, only length counts.

    >>> def played(pitches, length):
    ...     before = [NoteEvent(12 * k, 12, 0, 60, 80) for k in range(8)]
    ...     return [*before, *(NoteEvent(96, length, 0, pitch, 80) for pitch in pitches)]
    >>> c_major = 0
    >>> closure(played((48, 64, 72), 48), 12, c_major) > closure(played((43, 65, 71), 48), 12, c_major)
    True
    """
    pitched = [note for note in notes if note.program >= 0]
    if not pitched:
        return 0.0
    end = max(note.onset + note.duration for note in pitched)
    last = [note for note in pitched if note.onset + note.duration == end]
    held = end - max(note.onset for note in pitched)
    mean = sum(note.duration for note in pitched) / len(pitched)
    score = min(1.0, held / (2 * mean)) if held >= ticks_per_quarter else 0.0
    if key < 0:
        return score
    tonic, triad = key % 12, _TRIADS[key >= 12]
    pitches = sorted(note.pitch for note in last)
    above = {(pitch - tonic) % 12 for pitch in pitches}
    low = pitches[0] <= sum(note.pitch for note in pitched) / len(pitched)
    score += ((pitches[0] - tonic) % 12 == 0) * (1.0 if low else 0.5)
    score += len(above & set(triad)) / len(above)
    score += 0.5 * ((pitches[-1] - tonic) % 12 in triad[:2])
    return score
