"""Write the MIDI files of this folder and their README from the notes in ``scores``.

python midi_samples/write_samples.py            writes the files
python midi_samples/write_samples.py --check    compares them with the scores; exit code 1 if they differ
python midi_samples/write_samples.py --report   prints what is in each piece
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if str(FOLDER) not in sys.path:
    sys.path.insert(0, str(FOLDER))

from scores import PIECES  # noqa: E402  the folder of this script is not a package
from scores.notation import Score  # noqa: E402
from scores.smf import key_signature, write  # noqa: E402

PITCH_CLASSES = ["C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"]

HEADER = """# MIDI samples

Short pieces in the public domain: their composers died more than a hundred years ago, or they are
traditional. Each is written out from its notes in `scores/`, in a small notation that
`scores/notation.py` explains; the accompaniments of traditional tunes were made for this collection.
The files may be used for anything (CC0 1.0).

`python midi_samples/write_samples.py` writes the files and this page again, byte for byte; `--check` says
whether they are what it would write, `--report` prints what is in them. A piece that begins with an upbeat
begins with a full bar, filled up with rests.

| file | title | composer | date | metre | key | texture | bars | sha256 |
|---|---|---|---|---|---|---|---|---|
"""


def key_name(score: Score) -> str:
    """The key in words, with its mode where that is neither major nor minor."""
    tonic = score.key.removesuffix("m").replace("b", " flat").replace("#", " sharp")
    name = f"{tonic} minor" if score.key.endswith("m") else f"{tonic} major"
    return f"{name} ({score.scale_note})" if score.scale_note else name


def readme(files: dict[str, bytes]) -> str:
    """The README with its table."""
    rows = []
    for score in PIECES:
        _, bars = score.read()
        title = f"{score.title}: {score.remark}" if score.remark else score.title
        name = f"{score.slug}.mid"
        digest = hashlib.sha256(files[name]).hexdigest()
        cells = [f"`{name}`", title, score.composer, score.date, score.metre, key_name(score), score.texture]
        rows.append("| " + " | ".join([*cells, str(bars), f"`{digest}`"]) + " |\n")
    return HEADER + "".join(rows)


def render() -> dict[str, bytes]:
    """Every file of this folder that is written by this script: name to content."""
    files = {f"{score.slug}.mid": write(score) for score in PIECES}
    return files | {"README.md": readme(files).encode()}


def outside_key(score: Score) -> dict[str, Fraction]:
    """Pitch classes outside the scale of the key signature, with their share of the sounding time."""
    sharps, _ = key_signature(score.key)
    scale = {(7 * sharps + step) % 12 for step in (0, 2, 4, 5, 7, 9, 11)}
    weight: Counter[int] = Counter()
    for part, notes in zip(score.parts, score.read()[0], strict=True):
        if part.program is not None:
            for note in notes:
                weight[note.pitch % 12] += note.duration
    total = sum(weight.values())
    return {PITCH_CLASSES[c]: Fraction(weight[c]) / total for c in sorted(weight) if c not in scale}


def report() -> str:
    """Bars, notes, range and foreign pitch classes of each piece."""
    lines = []
    for score in PIECES:
        parts, bars = score.read()
        tempi = [*score.tempi(), (bars * score.bar_length, 0)]
        seconds = sum(60 * (end - start) / qpm for (start, qpm), (end, _) in pairwise(tempi))
        lines.append(
            f"{score.slug}: {bars} bars of {score.metre}, {key_name(score)}, {float(seconds):.0f} s, "
            f"{sum(map(len, parts))} notes"
        )
        for part, notes in zip(score.parts, parts, strict=True):
            pitches = [note.pitch for note in notes]
            velocities = [note.velocity for note in notes]
            lines.append(
                f"    {part.name}: {len(notes)} notes, pitches {min(pitches)}-{max(pitches)}, "
                f"velocities {min(velocities)}-{max(velocities)}"
            )
        foreign = ", ".join(f"{name} {float(share):.1%}" for name, share in outside_key(score).items())
        lines.append(f"    outside the key: {foreign or 'nothing'}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the MIDI samples and their README from the scores.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--report", action="store_true", help="print what is in each piece")
    options = parser.parse_args(arguments)
    if options.report:
        print(report())
        return 0
    files = render()
    if not options.check:
        for name, content in files.items():
            (FOLDER / name).write_bytes(content)
        print(f"wrote {len(files)} files to {FOLDER}")
        return 0
    present = {path.name for path in FOLDER.glob("*.mid")} | {"README.md"}
    wrong = sorted(present - set(files))
    for name, content in files.items():
        path = FOLDER / name
        if not path.is_file() or path.read_bytes() != content:
            wrong.append(name)
    if wrong:
        print(f"differ from the scores: {', '.join(wrong)}; run write_samples.py again", file=sys.stderr)
        return 1
    print(f"{len(files)} files are as the scores say")
    return 0


if __name__ == "__main__":
    sys.exit(main())
