"""Music for an ensemble with drums, made of notated pieces and grooves: what the bundled model learns bands from.

    python benchmarks/arrangements.py CORPORA --out ARRANGED/train/arrangements --count 400

Of the sets of music that may be learned from, only one has drums under a tune, a thirtieth of the whole. So pieces of
the others, from CORPORA/train/SET, are given to other instruments, with a bass, and a groove is laid under them: the
drums go on while the tune does, and no program is unknown. Notes, metre, tempo and form stay as they were.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
from symusic.core import NoteTick, ScoreTick, TrackTick

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python looks only beside it

from melodia.corpus.discover import Found, find_midi_files
from melodia.errors import MelodiaError
from melodia.midi import read_score, write_midi
from melodia.midi.bars import BarTable, bar_table, metres_of

GROOVES, BANDS = "groove-drums", "freedoom-multitrack"
SHORTEST, LONGEST = 12, 120  # bars of a piece
GROOVE_BARS = 4  # at least, of a groove
VELOCITIES = 4  # at least; fewer: nobody set the dynamics
LEADS = (0, 4, 11, 22, 26, 27, 29, 30, 40, 48, 52, 56, 61, 65, 66, 68, 71, 73, 75, 80, 81, 82, 85, 87)
CHORDS = (
    0, 1, 2, 4, 5, 6, 7, 16, 17, 18, 21, 24, 25, 26, 27, 28, 29, 30, 46, 48,
    49, 50, 51, 88, 89, 90, 91, 94,
)  # fmt: skip
BASSES = (32, 33, 33, 34, 34, 35, 36, 37, 38, 38, 39, 43)


def arrange(score: ScoreTick, groove: ScoreTick, rng: np.random.Generator) -> ScoreTick | None:
    """A piece for a lead, chords, a bass and drums.

    The highest part becomes the lead, the others chords. The bass is the lowest part where it has one note at a time,
    otherwise the lowest note of each beat is taken out of it, an octave down where it lies high. The groove begins with
    the piece, or four or eight bars later, and is repeated to the end.

    Args:
        score: the piece; one metre, no drums.
        groove: of a metre whose beats fit, see `fits`.
        rng: chooses programs and when the drums begin.

    Returns:
        the arrangement, or None for a piece that is no material: of other metres, with drums, too short, too long,
        without dynamics.
    """
    bars = bar_table(score)
    parts = [track for track in score.tracks if len(track.notes)]
    velocities = {note.velocity for track in parts for note in track.notes}
    if not parts or any(track.is_drum for track in parts) or len(velocities) < VELOCITIES:
        return None
    if not SHORTEST <= len(bars) <= LONGEST or not fits(score, groove):
        return None
    parts.sort(key=lambda track: -np.mean([note.pitch for note in track.notes]))
    lead, *others = parts
    made = ScoreTick(score.tpq)
    made.tempos, made.time_signatures, made.key_signatures = (
        score.tempos.copy(),
        score.time_signatures.copy(),
        score.key_signatures.copy(),
    )
    bass, rest = bass_line(others[-1] if others else lead, score.tpq)
    made.tracks.append(_track(list(lead.notes) if others else rest, int(rng.choice(LEADS))))
    for track in others[:-1]:
        made.tracks.append(_track(list(track.notes), int(rng.choice(CHORDS))))
    if others and rest:
        made.tracks.append(_track(rest, int(rng.choice(CHORDS))))
    made.tracks.append(_track(bass, int(rng.choice(BASSES))))
    first = bars.line(int(rng.choice((0, 0, 0, 4, 8))))
    made.tracks.append(_track(repeated(groove, bars, first, score.tpq), 0, drums=True))
    return made


def fits(score: ScoreTick, groove: ScoreTick) -> bool:
    """Whether both have one metre each, and whole bars of the groove fill whole bars of the score, or half of them.

    >>> piece, groove = ScoreTick(480), ScoreTick(480)  # 4/4
    >>> fits(piece, groove)
    True
    """
    metres = [{metre[1:] for metre in metres_of(one)} for one in (score, groove)]
    if len(metres[0]) != 1 or len(metres[1]) != 1:
        return False
    (numerator, denominator), (of, over) = metres[0].pop(), metres[1].pop()
    quarters, others = 4 * numerator / denominator, 4 * of / over
    return quarters in (others, others / 2) and denominator <= 4 and over <= 4


def bass_line(track: TrackTick, tpq: int) -> tuple[list[NoteTick], list[NoteTick]]:
    """A part as a bass and what is left of it.

    >>> track = TrackTick()
    >>> for time, pitch in ((0, 48), (0, 52), (0, 55), (240, 52), (480, 43)):
    ...     track.notes.append(NoteTick(time, 240, pitch, 64))
    >>> [[note.pitch for note in notes] for notes in bass_line(track, 480)]
    [[48, 43], [52, 55, 52]]
    """
    notes = sorted(track.notes, key=lambda note: (note.time, note.pitch))
    times = np.array([note.time for note in notes])
    if np.unique(times).size > 0.9 * times.size:
        lowest, rest = notes, []
    else:
        begins = np.concatenate(([True], np.diff(times) > 0)) & (times % tpq == 0)
        lowest = [note for note, begin in zip(notes, begins, strict=True) if begin]
        rest = [note for note, begin in zip(notes, begins, strict=True) if not begin]
    down = 12 if lowest and np.median([note.pitch for note in lowest]) > 52 else 0
    bass = [NoteTick(note.time, note.duration, max(24, note.pitch - down), note.velocity) for note in lowest]
    return bass, rest


def repeated(groove: ScoreTick, bars: BarTable, first: int, tpq: int) -> list[NoteTick]:
    """The hits of a groove, beat on beat, its whole bars again and again from tick `first` to the end of the piece."""
    own = bar_table(groove)
    length = own.line(len(own) - 1) if len(own) > GROOVE_BARS else own.end  # the last bar is rarely whole
    hits = [note for track in groove.tracks for note in track.notes if note.time < length]
    made = []
    for start in range(first, bars.end, round(length * tpq / groove.tpq)):
        for hit in hits:
            time = start + round(hit.time * tpq / groove.tpq)
            if time < bars.end:
                made.append(
                    NoteTick(time, max(1, round(hit.duration * tpq / groove.tpq)), hit.pitch, hit.velocity)
                )
    return made


def _track(notes: list[NoteTick], program: int, *, drums: bool = False) -> TrackTick:
    track = TrackTick("drums" if drums else "", program, drums)
    for note in notes:
        track.notes.append(note)
    return track


def main() -> int:
    """Read, arrange, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpora", type=Path, metavar="CORPORA")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--count", type=int, default=400, help="at most; as many from each set, while there are any"
    )
    parser.add_argument("--random-seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        count = 0
        for name, made in islice(arrangements(arguments.corpora, arguments.random_seed), arguments.count):
            write_midi(made, arguments.out / f"{name}.mid", force=True)
            count += 1
    except (MelodiaError, OSError) as error:
        print(f"arrangements.py: {error}", file=sys.stderr)
        return 1
    print(f"{count} arrangements in {arguments.out}")
    return 0


def arrangements(corpora: Path, random_seed: int) -> Iterator[tuple[str, ScoreTick]]:
    """Names and arrangements, one of each set in turn, while there are pieces."""
    rng = np.random.default_rng(random_seed)
    grooves = [
        groove
        for _, groove in readable(find_midi_files(corpora / "train" / GROOVES))
        if len(bar_table(groove)) >= GROOVE_BARS
    ]

    def of_set(folder: Path) -> Iterator[tuple[str, ScoreTick]]:
        files = find_midi_files(folder)
        for stem, score in readable(files[index] for index in rng.permutation(len(files))):
            fitting = [groove for groove in grooves if fits(score, groove)]
            made = arrange(score, fitting[rng.integers(len(fitting))], rng) if fitting else None
            if made is not None:
                yield f"{folder.name}-{stem}", made

    folders = sorted(path for path in (corpora / "train").iterdir() if path.is_dir())
    sets = [of_set(folder) for folder in folders if folder.name not in (GROOVES, BANDS)]
    for turn in zip_longest(*sets):
        yield from (found for found in turn if found is not None)


def readable(files: Iterable[Found]) -> Iterator[tuple[str, ScoreTick]]:
    """Name and score of the files that can be read."""
    for found in files:
        try:
            yield Path(found.relative).stem, read_score(found.path)[0]
        except MelodiaError:
            continue


if __name__ == "__main__":
    sys.exit(main())
