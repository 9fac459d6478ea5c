"""One MIDI file to a manifest row and token ids; runs inside a worker."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import symusic
from numpy.typing import NDArray

from melodia.corpus.worker import Prepare
from melodia.errors import MidiError, TokenizerError, show_path
from melodia.midi.limits import Limits
from melodia.midi.reading import read_score
from melodia.midi.report import Finding
from melodia.notes import program_of
from melodia.tokenizer import Tokenizer, TokenizerConfig
from melodia.wording import counted

HASH_STEPS_PER_QUARTER = 48
"""Two files have the same content if all onsets and lengths agree on this grid."""


def preparer(tokenizer: dict[str, Any], min_notes: int) -> Prepare:
    """The function that a worker calls for each file.

    Args:
        tokenizer: a `TokenizerConfig` as a dict, without BPE.
        min_notes: a piece with fewer notes is skipped.

    Returns:
        a function from a path to the fields of a manifest row and int32 ids [N].
    """
    encoder = Tokenizer(TokenizerConfig.from_dict(tokenizer))
    encoder.encode(_one_note())  # imports what encoding needs before the worker bounds its memory

    def prepare(path: Path) -> tuple[dict[str, Any], NDArray[np.int32]]:
        return prepare_file(path, encoder, min_notes)

    return prepare


def prepare_file(
    path: Path, tokenizer: Tokenizer, min_notes: int
) -> tuple[dict[str, Any], NDArray[np.int32]]:
    """Read, repair, hash and tokenize one file; a bad one gives a verdict, never an error."""
    nothing = np.zeros(0, dtype=np.int32)
    try:
        score, report = read_score(path)
    except MidiError as error:
        reason = str(error).removeprefix(f"{show_path(path)}: ").partition(";")[0]
        return {"verdict": "failed", "reason": reason, "sha256": file_hash(path)}, nothing
    columns = _columns(score)
    row: dict[str, Any] = {
        "verdict": "used" if report.clean else "repaired",
        "reason": _repairs(report.findings),
        "sha256": report.sha256,
        "bars": report.bars,
        "notes": report.notes,
        "seconds": round(report.seconds, 3),
        "velocity_levels": len(np.unique(columns[4])),
        "programs": ",".join(str(program) for program in report.programs),
        "content": content_hash(columns),
        "tune": content_hash(columns, any_pitch=True),
    }
    if report.notes < min_notes:
        row.update(
            verdict="skipped",
            reason=f"only {counted(report.notes, 'note')} (a piece has at least {min_notes})",
        )
        return row, nothing
    try:
        ids = tokenizer.encode(score).ids
    except TokenizerError as error:
        row.update(verdict="skipped", reason=str(error).partition(";")[0])
        return row, nothing
    bar = tokenizer.vocabulary.index.get("Bar_None")
    if bar is not None:
        row["bars"] = int((ids == bar).sum())
    row["notes"] = int(tokenizer.vocabulary.notes_of_token[ids].sum())
    row["tokens"] = len(ids)
    return row, ids


def _one_note() -> Any:
    score: Any = symusic.Score(480)
    track: Any = symusic.Track()
    track.notes.append(symusic.Note(0, 480, 60, 64))
    score.tracks.append(track)
    return score


def file_hash(path: Path) -> str:
    """SHA-256 of a regular file that is no larger than the limit of a MIDI file, else ""."""
    try:
        if path.is_file() and path.stat().st_size <= Limits().size:
            return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        pass
    return ""


def _columns(score: Any) -> NDArray[np.int64]:
    """Onset, length, pitch, program (-1 for drums), velocity of all notes [5, N].

    Times on the hash's grid.
    """
    parts = []
    scale = HASH_STEPS_PER_QUARTER / score.ticks_per_quarter
    for track in score.tracks:
        notes = track.notes.numpy()
        onset = np.rint(notes["time"] * scale).astype(np.int64)
        end = np.rint((notes["time"] + notes["duration"]) * scale).astype(np.int64)
        program = np.full(len(onset), program_of(track), dtype=np.int64)
        parts.append(np.stack([onset, end - onset, notes["pitch"], program, notes["velocity"]]))
    return np.concatenate(parts, axis=1) if parts else np.zeros((5, 0), dtype=np.int64)


def content_hash(columns: NDArray[np.int64], *, any_pitch: bool = False) -> str:
    """A hash of notes, whatever their order, velocities and the silence before them: 16 hex digits.

    Args:
        columns: onset, length, pitch, program, and anything [4 or more, N].
        any_pitch: move pitches (not drums) so that the lowest is 0: transpositions then have the same hash.
    """
    onset, length, pitch, program = columns[:4]
    if any_pitch:
        pitched = program >= 0
        lowest = int(pitch[pitched].min()) if pitched.any() else 0
        pitch = np.where(pitched, pitch - lowest, pitch)
    order = np.lexsort((length, pitch, program, onset))
    onset = onset - (onset.min() if len(onset) else 0)
    table = np.stack([onset[order], length[order], pitch[order], program[order]]).astype("<i8")
    return hashlib.sha256(table.tobytes()).hexdigest()[:16]


def _repairs(findings: list[Finding]) -> str:
    """What was repaired and dropped, in one line."""
    found = [f"{item.what} ({item.count})" for item in findings if item.kind in ("repaired", "dropped")]
    return ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
