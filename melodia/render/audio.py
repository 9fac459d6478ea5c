"""Sound: a PrettyMIDI as a WAV file, through FluidSynth where it is installed, else through pretty_midi."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from melodia.errors import BackendError, ConfigError, MidiError, show_path
from melodia.files import asked_file, check_target

if TYPE_CHECKING:
    import pretty_midi

Synthesiser = Literal["auto", "fluidsynth", "pretty_midi"]

LONGEST = 3 * 3600.0  # seconds
PEAK = 0.89  # of full scale: 1 dB below it
SILENCE = 1e-3  # of the peak: 60 dB below it
BLOCK = 1 << 18  # samples handled at a time
SOUNDFONT_FOLDERS = [
    "/usr/share/sounds/sf2",
    "/usr/share/sounds/sf3",
    "/usr/share/soundfonts",
    "/usr/local/share/sounds/sf2",
    "/usr/local/share/soundfonts",
    "/opt/homebrew/share/soundfonts",
    "~/.local/share/soundfonts",
    "~/Library/Audio/Sounds/Banks",
]
PREFERRED_SOUNDFONTS = ["default-GM", "default", "FluidR3_GM", "GeneralUser"]


@dataclass(frozen=True)
class AudioReport:
    """What was written and by whom.

    Attributes:
        path: the WAV file.
        synthesiser: ``"fluidsynth"`` or ``"pretty_midi"``.
        reason: why that one, in words.
        soundfont: the soundfont that FluidSynth played, else None.
        seconds: length of the sound.
        rate: samples a second.
        channels: 2 from FluidSynth, 1 from pretty_midi.
    """

    path: Path
    synthesiser: str
    reason: str
    soundfont: Path | None
    seconds: float
    rate: int
    channels: int

    def line(self) -> str:
        """The report in one line."""
        kind = "stereo" if self.channels == 2 else "mono"
        return f"{show_path(self.path)}: {self.seconds:.1f} s, {kind}, {self.rate} Hz, by {self.reason}"


def render_audio(
    midi: pretty_midi.PrettyMIDI,
    path: str | os.PathLike[str],
    *,
    rate: int = 44100,
    force: bool = False,
    synthesiser: Synthesiser = "auto",
) -> AudioReport:
    """Play a piece into a WAV file, 16 bit, its loudest sample 1 dB below full scale.

    FluidSynth plays where its command and a soundfont are found: the one that the environment variable
    ``MELODIA_SOUNDFONT`` names, else one of the standard folders, else the small one that comes with
    pretty_midi. Otherwise pretty_midi's own synthesis plays, with a drum layer of noise bursts.

    Args:
        midi: what to play.
        path: where; the name ends in ``.wav``.
        rate: samples a second, 8000-96000.
        force: replace a file that is there.
        synthesiser: insist on one of the two.

    Returns:
        which synthesiser played and why, and what was written.

    Raises:
        MidiError: there is nothing to hear, or the piece is too long.
        ConfigError: a wrong `rate` or `synthesiser`, or ``MELODIA_SOUNDFONT`` names no file.
        BackendError: FluidSynth was asked for and cannot play.
        MelodiaError: the file cannot be written, or is there already.
    """
    target = check_target(path, ".wav", force)
    if not 8000 <= rate <= 96000:
        raise ConfigError(f"`rate` must be 8000 to 96000 samples per second (received {rate})")
    if synthesiser not in ("auto", "fluidsynth", "pretty_midi"):
        raise ConfigError(f"`synthesiser` must be auto, fluidsynth or pretty_midi (received {synthesiser!r})")
    end = max((note.end for part in midi.instruments for note in part.notes), default=0.0)
    if end <= 0:
        raise MidiError("there are no notes to play; give a MIDI file with notes")
    if end > LONGEST:
        raise MidiError(
            f"the piece lasts {end / 3600:.1f} h, the limit is {LONGEST / 3600:.0f} h; cut it first"
        )
    reason = "pretty_midi's own synthesis, as asked for"
    with asked_file(target, force=force) as part:
        if synthesiser != "pretty_midi":
            try:
                command, soundfont = find_fluidsynth()
                seconds = _with_fluidsynth(midi, part, rate, end, command, soundfont)
                reason = f"FluidSynth with {soundfont.name}"
                return AudioReport(target, "fluidsynth", reason, soundfont, seconds, rate, 2)
            except BackendError as error:
                if synthesiser == "fluidsynth":
                    raise
                reason = f"pretty_midi's own synthesis, because {error}"
        seconds = _with_pretty_midi(midi, part, rate, end)
    return AudioReport(target, "pretty_midi", reason, None, seconds, rate, 1)


def find_fluidsynth() -> tuple[str, Path]:
    """The FluidSynth command and a soundfont for it.

    Raises:
        BackendError: one of the two is missing; the message says which and what to do.
        ConfigError: ``MELODIA_SOUNDFONT`` names no file.
    """
    command = shutil.which("fluidsynth")
    if command is None:
        raise BackendError("the command fluidsynth is not on the PATH; install FluidSynth for better sound")
    named = os.environ.get("MELODIA_SOUNDFONT")
    if named:
        soundfont = _expanded(named)
        if not soundfont.is_file():
            raise ConfigError(
                f"MELODIA_SOUNDFONT names {show_path(named)}, which is not a file; correct or unset it"
            )
        return command, soundfont.resolve()
    for folder in SOUNDFONT_FOLDERS:
        place = _expanded(folder)
        found = sorted(file for file in place.glob("*.sf[23]") if file.is_file()) if place.is_dir() else []
        if found:
            ranks = {name: rank for rank, name in enumerate(PREFERRED_SOUNDFONTS)}
            return command, min(found, key=lambda file: (ranks.get(file.stem, len(ranks)), file.name))
    import pretty_midi

    bundled = Path(pretty_midi.__file__).parent / "TimGM6mb.sf2"
    if bundled.is_file():
        return command, bundled
    raise BackendError(
        "no soundfont was found in the standard folders; install one or name one in MELODIA_SOUNDFONT"
    )


def _expanded(path: str) -> Path:
    """A path with the user's home folder for ~; as it stands where the user has none."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises there


def _with_fluidsynth(
    midi: pretty_midi.PrettyMIDI, part: Path, rate: int, end: float, command: str, soundfont: Path
) -> float:
    """Let FluidSynth play; returns the length in seconds, raises BackendError where it cannot."""
    from melodia.midi import Limits, midi_bytes, read_score

    # PrettyMIDI itself writes instruments of several programs on one channel, and banks behind their programs.
    whole = Limits(**dict.fromkeys(vars(Limits()), 1 << 31))
    with tempfile.TemporaryDirectory(prefix="melodia-") as folder:
        score, sound = Path(folder, "piece.mid"), Path(folder, "piece.wav")
        score.write_bytes(midi_bytes(read_score(midi, limits=whole)[0]))
        options = ["-ni", "-q", "-g", "0.4", "-r", str(rate), "-T", "wav", "-O", "s16", "-F", str(sound)]
        try:
            done = subprocess.run(
                [command, *options, str(soundfont), str(score)],
                stdin=subprocess.DEVNULL, capture_output=True, timeout=max(120.0, 4 * end), check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BackendError(f"FluidSynth did not finish ({type(error).__name__})") from None
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        message = "; ".join(said[:3])[:300] if said else f"exit code {done.returncode}"
        if "not a SoundFont" in message or "Failed to load" in message:  # it would go on with another one
            raise BackendError(f"FluidSynth cannot use {soundfont.name} ({message})")
        if done.returncode != 0 or not sound.is_file():
            raise BackendError(f"FluidSynth failed ({message})")
        try:
            with wave.open(str(sound), "rb") as stream:
                channels = stream.getnchannels()
                peak, last = _scan(_frames(stream), rate, end)
                if peak == 0:
                    raise BackendError(
                        f"FluidSynth played nothing but silence with {soundfont.name} ({message})"
                    )
                stream.rewind()
                return _write(part, _frames(stream), rate, channels, peak, last)
        except (wave.Error, EOFError) as error:
            raise BackendError(f"FluidSynth wrote no readable WAV file ({error})") from None


def _with_pretty_midi(midi: pretty_midi.PrettyMIDI, part: Path, rate: int, end: float) -> float:
    """Let pretty_midi play; returns the length in seconds."""
    from melodia.render.synthesis import synthesise

    # The peak is known only at the end, so the sound waits on the disk, beside the file that is to be.
    with tempfile.TemporaryFile(dir=part.parent, prefix=".melodia-") as store:
        peak, last, start = 0.0, 0, 0
        for block in synthesise(midi, rate):
            samples = block.astype(np.float32)
            store.write(samples.tobytes())
            peak = max(peak, float(np.abs(samples).max()))
        if peak == 0:
            raise MidiError("every note has velocity 0, so there is nothing to hear; raise the velocities")
        for samples in _stored(store):
            heard = np.flatnonzero(np.abs(samples) > SILENCE * peak)
            last = start + int(heard[-1]) + 1 if len(heard) else last
            start += len(samples)
        last = max(last + rate // 4, round(end * rate))
        return _write(part, (block[:, None] for block in _stored(store)), rate, 1, peak, last)


def _stored(store: IO[bytes]) -> Iterator[NDArray[np.float32]]:
    """The samples of a temporary file from its beginning."""
    store.seek(0)
    while data := store.read(4 * BLOCK):
        yield np.frombuffer(data, np.float32)


def _frames(stream: wave.Wave_read) -> Iterator[NDArray[np.float32]]:
    """The frames [n, channels] of a 16 bit WAV file from where it stands."""
    while data := stream.readframes(BLOCK):
        yield np.frombuffer(data, "<i2").astype(np.float32).reshape(-1, stream.getnchannels())


def _scan(blocks: Iterable[NDArray[np.float32]], rate: int, end: float) -> tuple[float, int]:
    """The peak, and the number of frames until the sound has died away."""
    peak, last, start = 0.0, 0, 0
    for block in blocks:
        loud = np.abs(block).max(axis=1)
        peak = max(peak, float(loud.max()))
        heard = np.flatnonzero(loud > SILENCE * peak)
        last = start + int(heard[-1]) + 1 if len(heard) else last
        start += len(block)
    return peak, max(last + rate // 4, round(end * rate))


def _write(
    part: Path, blocks: Iterable[NDArray[np.float32]], rate: int, channels: int, peak: float, frames: int
) -> float:
    """Write frames [n, channels] as 16 bit WAV, the peak scaled to PEAK; returns the length in seconds."""
    written = 0
    with wave.open(str(part), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        for block in blocks:
            block = block[: frames - written]
            if not len(block):
                break
            out.writeframesraw(np.rint(block * (PEAK * 32767 / peak)).astype("<i2").tobytes())
            written += len(block)
    return written / rate
