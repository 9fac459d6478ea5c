"""Continue a MIDI file into new files: MIDI, and on request a picture and sound."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melodia.errors import MidiError
from melodia.midi import write_midi
from melodia.sampler import Continuation, PrimeReport, Sampler

if TYPE_CHECKING:
    import pretty_midi


@dataclass(frozen=True)
class GeneratedFiles:
    """What `generate_files` wrote.

    Attributes:
        seed: what was read of the seed; None without one.
        continuations: the new music, one a sample.
        paths: every file written, in the order written.
        notes: remarks, such as which synthesiser made the sound.
    """

    seed: PrimeReport | None
    continuations: list[Continuation]
    paths: list[Path]
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as lines of text."""
        lines = [] if self.seed is None else self.seed.lines()
        for continuation in self.continuations:
            lines.extend(continuation.report.lines())
        return [*lines, *self.notes, *(f"wrote {path}" for path in self.paths)]


def output_paths(out: Path | None, seed: Path | None, num_samples: int) -> list[Path]:
    """The MIDI file of each sample: `out`, numbered from 1 when there are several.

    >>> [str(p) for p in output_paths(Path("new.mid"), None, 2)]
    ['new-1.mid', 'new-2.mid']
    """
    base = out or Path(f"{seed.stem}-continued.mid" if seed else "melodia.mid")
    if base.suffix.lower() not in (".mid", ".midi"):
        base = base.with_name(base.name + ".mid")
    if num_samples == 1:
        return [base]
    return [base.with_name(f"{base.stem}-{k + 1}{base.suffix}") for k in range(num_samples)]


def check_writable(paths: list[Path], *, force: bool) -> None:
    """Refuse before the work what could not be written after it.

    Raises:
        MidiError: a file is there already (without `force`), or its folder is not.
    """
    for path in paths:
        if path.exists() and not force:
            raise MidiError(f"{path}: is there already; choose another --out, or give --force to replace it")
        if not path.parent.is_dir():
            raise MidiError(f"{path}: there is no folder {path.parent}; make it first")


def generate_files(
    seed: Path | None,
    out: Path | None = None,
    *,
    model: Path | None = None,
    seed_bars: int | None = None,
    seed_seconds: float | None = None,
    num_samples: int = 1,
    continuation_only: bool = False,
    plot: bool = False,
    audio: bool = False,
    device: str = "auto",
    backend: str = "auto",
    weights: str = "fp32",
    force: bool = False,
    **settings: Any,
) -> GeneratedFiles:
    """Continue `seed` and write the result.

    Args:
        seed: a MIDI file, or None for music from nothing.
        out: the MIDI file to write; None: named after the seed, in the working folder. Several samples are numbered.
        model: a checkpoint folder; None: the model that comes with melodia.
        seed_bars, seed_seconds: use only the beginning of the seed.
        num_samples: how many continuations.
        continuation_only: leave the seed out of the files.
        plot: also write a piano roll, as PNG beside the MIDI file.
        audio: also write sound, as WAV beside the MIDI file.
        device, backend, weights: where and with what to compute; see `Sampler.load`.
        force: replace files.
        settings: of `Sampler.generate`: length, filters, random seed.

    Raises:
        MelodiaError: whatever cannot be read, generated or written; no file that was there is lost.
    """
    paths = output_paths(out, seed, num_samples)
    suffixes = [".png"] * plot + [".wav"] * audio
    check_writable(
        [*paths, *(path.with_suffix(suffix) for path in paths for suffix in suffixes)], force=force
    )
    sampler = Sampler.load(model, device=device, backend=backend, weights=weights)
    report = sampler.prime(seed, seed_bars, seed_seconds) if seed is not None else None
    continuations = sampler.generate_many(num_samples, **settings)
    written: list[Path] = []
    notes: list[str] = []
    for path, continuation in zip(paths, continuations, strict=True):
        joined = seed is not None and not continuation_only
        score = continuation.joined_score if joined else continuation.score
        written.append(write_midi(score, path, force=force))
        if not (plot or audio):
            continue
        midi = continuation.joined if joined else continuation.midi
        if plot:
            split_at = continuation.joined_at if joined else None
            written.append(_plot(midi, path.with_suffix(".png"), split_at, seed, force))
        if audio:
            note, file = _sound(midi, path.with_suffix(".wav"), force)
            written.append(file)
            if note not in notes:
                notes.append(note)
    return GeneratedFiles(report, continuations, written, notes)


def _plot(
    midi: pretty_midi.PrettyMIDI, path: Path, split_at: float | None, seed: Path | None, force: bool
) -> Path:
    from melodia.render import plot_pianoroll

    title = f"{seed.stem}, continued" if seed is not None else "from nothing"
    plot_pianoroll(midi, path, split_at=split_at, title=title, force=force)
    return path


def _sound(midi: pretty_midi.PrettyMIDI, path: Path, force: bool) -> tuple[str, Path]:
    from melodia.render import render_audio

    report = render_audio(midi, path, force=force)
    return report.line(), path
