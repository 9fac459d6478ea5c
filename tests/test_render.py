"""Piano rolls and audio files: what is in the pictures and the sound, and what happens when things go wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import wave
from pathlib import Path

import mido
import numpy as np
import pretty_midi
import pytest
from numpy.typing import NDArray
from PIL import Image

from melodia.errors import BackendError, ConfigError, MelodiaError, MidiError
from melodia.notes import bar_lines
from melodia.render import render_audio
from melodia.render.audio import find_fluidsynth
from melodia.render.clock import Clock
from melodia.render.drums import drum_wave
from melodia.render.pianoroll import CONTINUATION, PLAIN, SEED, _break, plot_pianoroll
from melodia.render.synthesis import WINDOW, synthesise

HAS_FLUIDSYNTH = shutil.which("fluidsynth") is not None
needs_fluidsynth = pytest.mark.skipif(not HAS_FLUIDSYNTH, reason="needs the command fluidsynth")


def sample(folder: Path, name: str) -> pretty_midi.PrettyMIDI:
    return pretty_midi.PrettyMIDI(str(folder / f"{name}.mid"))


def tones(
    *notes: tuple[int, float, float], program: int = 0, drum: bool = False, velocity: int = 90
) -> pretty_midi.PrettyMIDI:
    """A piece of (pitch, start, end) in seconds, 120 quarter notes a minute."""
    midi = pretty_midi.PrettyMIDI(initial_tempo=120)
    part = pretty_midi.Instrument(program, is_drum=drum)
    part.notes = [pretty_midi.Note(velocity, pitch, start, end) for pitch, start, end in notes]
    midi.instruments.append(part)
    return midi


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def count(image: NDArray[np.uint8], colour: str) -> int:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image.astype(int) - rgb).max(axis=2) <= 24).sum())


def sound(path: Path) -> tuple[NDArray[np.float64], int]:
    """Samples [n, channels] between -1 and 1, and the rate."""
    with wave.open(str(path), "rb") as stream:
        assert stream.getsampwidth() == 2
        data = np.frombuffer(stream.readframes(stream.getnframes()), "<i2")
        return data.reshape(-1, stream.getnchannels()) / 32768, stream.getframerate()


def rms(samples: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(samples))))


class TestClock:
    def test_seconds_and_quarters_along_changing_tempi(self) -> None:
        midi = pretty_midi.PrettyMIDI(initial_tempo=60)
        midi._tick_scales = [(0, 1 / 220), (440, 0.5 / 220)]  # 60, and 120 from the third quarter note on
        midi._update_tick_to_time(2200)
        clock = Clock(midi)
        np.testing.assert_allclose(clock.quarters([0.5, 2.0, 3.0]), [0.5, 2.0, 4.0])
        np.testing.assert_allclose(clock.seconds([0.5, 2.0, 4.0]), [0.5, 2.0, 3.0])

    def test_bars_follow_the_metres(self) -> None:
        midi = pretty_midi.PrettyMIDI(initial_tempo=120)
        midi.time_signature_changes = [
            pretty_midi.TimeSignature(3, 4, 0.0),
            pretty_midi.TimeSignature(6, 8, 3.0),  # after two bars of three
        ]
        bars = Clock(midi).bars(10.0)
        assert [(bar.number, bar.start, bar.length, bar.numerator) for bar in bars] == [
            (1, 0.0, 3.0, 3),
            (2, 3.0, 3.0, 3),
            (3, 6.0, 3.0, 6),
            (4, 9.0, 3.0, 6),
        ]

    def test_bars_begin_where_those_of_the_score_do(self) -> None:
        midi = pretty_midi.PrettyMIDI(resolution=25, initial_tempo=120)
        midi.time_signature_changes = [pretty_midi.TimeSignature(3, 8, 0.0)]
        lines = bar_lines([(0, 3, 8)], 100, 25)
        assert [round(25 * bar.start) for bar in Clock(midi).bars(4.0)] == lines[:-1].tolist()

    def test_without_a_metre_bars_have_four_quarters(self) -> None:
        assert [bar.start for bar in Clock(tones((60, 0, 4.1))).bars(8.2)] == [0, 4, 8]

    def test_systems_hold_all_bars_in_groups_of_four(self) -> None:
        for number in (1, 8, 20, 21, 33, 82, 200, 5000):
            bars = Clock(tones((60, 0, 2.0 * number))).bars(4.0 * number)
            systems = _break(bars)
            assert [bar for system in systems for bar in system] == bars
            assert len(systems) <= 26
            if len(systems) > 1:
                assert len(systems[0]) % 4 == 0
                assert len(systems[-1]) >= len(systems[0]) / 3


class TestPianoroll:
    @pytest.mark.parametrize("name", ["yankee_doodle", "greensleeves", "beethoven_fur_elise"])
    def test_seed_and_continuation_have_their_own_colours(
        self, name: str, samples_dir: Path, tmp_path: Path
    ) -> None:
        midi = sample(samples_dir, name)
        for part in midi.instruments:
            for note in part.notes:
                note.velocity = 90  # all equally opaque
        plain = pixels(plot_pianoroll(midi, tmp_path / "plain.png"))
        half = pixels(plot_pianoroll(midi, tmp_path / "half.png", split_at=midi.get_end_time() / 2))
        assert count(plain, PLAIN[0]) > 300
        assert count(plain, CONTINUATION[0]) < 20
        width = half.shape[1]
        legend = 90  # pixel rows that the legend may take
        left, right = half[legend:, : int(0.45 * width)], half[legend:, int(0.6 * width) :]
        assert count(left, SEED[0]) > 100
        assert count(left, CONTINUATION[0]) < 20
        assert count(right, CONTINUATION[0]) > 100
        assert count(right, SEED[0]) < 20

    @pytest.mark.parametrize("split_at", [None, 1.0])
    def test_names_of_programs_stay_inside_the_picture(self, split_at: float | None, tmp_path: Path) -> None:
        midi = tones((60, 0, 2))
        for program in range(1, 15):
            midi.instruments += tones((60, 0, 2), program=program).instruments
        image = pixels(plot_pianoroll(midi, tmp_path / "a.png", split_at=split_at, title="x"))
        line = image[40:70]
        assert (line < 128).any()
        assert (line[:, :8] > 250).all()

    def test_velocity_is_opacity(self, tmp_path: Path) -> None:
        midi = tones((60, 0, 2), (64, 2, 4))
        midi.instruments[0].notes[1].velocity = 20
        image = pixels(plot_pianoroll(midi, tmp_path / "a.png"))
        full, pale = np.array([0x2A, 0x6F, 0x97]), 0.4 * np.array([0x2A, 0x6F, 0x97]) + 0.6 * 250
        for colour in (full, pale):
            assert (np.abs(image - colour).max(axis=2) < 8).sum() > 200, colour

    def test_notes_stand_where_they_sound(self, tmp_path: Path) -> None:
        """One note in the second of four bars: its box in the picture begins at a quarter, ends at half."""
        image = pixels(plot_pianoroll(tones((60, 2, 4), (60, 7.99, 8)), tmp_path / "a.png"))
        rgb = [0x2A, 0x6F, 0x97]
        rows, columns = np.nonzero(np.abs(image.astype(int) - rgb).max(axis=2) < 40)
        wide = np.bincount(rows).argmax()
        box = np.sort(columns[rows == wide])
        edge = np.flatnonzero(np.diff(box) > 3)[0] if (np.diff(box) > 3).any() else len(box) - 1
        left, right = 0.62 * 120, image.shape[1] - 0.2 * 120
        assert (box[0] - left) / (right - left) == pytest.approx(0.25, abs=0.006)
        assert (box[edge] - left) / (right - left) == pytest.approx(0.5, abs=0.006)

    def test_drums_alone_and_every_kind_of_piece(self, tmp_path: Path) -> None:
        drums = tones((36, 0, 0.1), (38, 0.5, 0.6), (27, 1, 1.1), drum=True)
        assert pixels(plot_pianoroll(drums, tmp_path / "drums.png")).std() > 5
        one = tones((60, 0, 0.01))
        assert plot_pianoroll(one, tmp_path / "one.png", title="日本 $x_1$ \n" + "long " * 60).is_file()
        wide = tones((0, 0, 1), (127, 1, 100))
        assert plot_pianoroll(wide, tmp_path / "wide.png", split_at=0.0).is_file()
        for split in (-1.0, 1e9):
            plot_pianoroll(one, tmp_path / "one.png", split_at=split, force=True)

    def test_a_size_is_kept(self, samples_dir: Path, tmp_path: Path) -> None:
        plot_pianoroll(sample(samples_dir, "sakura"), tmp_path / "a.png", size=(7, 3))
        assert pixels(tmp_path / "a.png").shape == (360, 840, 3)

    def test_the_same_picture_for_the_same_music(self, samples_dir: Path, tmp_path: Path) -> None:
        for name in ("a", "b"):
            plot_pianoroll(sample(samples_dir, "sakura"), tmp_path / f"{name}.png", title="Sakura")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def test_two_hundred_bars_fit_a_page(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        starts = np.arange(1600) / 4
        midi = tones(
            *((int(p), s, s + 0.25) for p, s in zip(rng.integers(40, 80, 1600), starts, strict=True))
        )
        height, width, _ = pixels(plot_pianoroll(midi, tmp_path / "a.png")).shape
        assert width == 1680
        assert 2000 < height < 8000

    def test_no_global_state_of_matplotlib_is_touched(self, samples_dir: Path, tmp_path: Path) -> None:
        code = (
            "import sys, pretty_midi, matplotlib\n"
            "def settings():  # asking for the backend would choose one\n"
            "    return {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if not k.startswith('backend')}\n"
            "before = settings()\n"
            "from melodia.render import plot_pianoroll\n"
            "plot_pianoroll(pretty_midi.PrettyMIDI(sys.argv[1]), sys.argv[2], split_at=9)\n"
            "assert 'matplotlib.pyplot' not in sys.modules\n"
            "assert settings() == before\n"
        )
        arguments = [sys.executable, "-c", code, str(samples_dir / "sakura.mid"), str(tmp_path / "a.png")]
        subprocess.run(arguments, check=True, env={**os.environ, "PYTHONPATH": str(samples_dir.parent)})
        assert (tmp_path / "a.png").stat().st_size > 5000

    def test_errors(self, tmp_path: Path) -> None:
        midi = tones((60, 0, 1))
        with pytest.raises(MidiError, match="no notes to draw"):
            plot_pianoroll(pretty_midi.PrettyMIDI(), tmp_path / "a.png")
        for size in ((0, 5), (5, 201), (150, 150), (float("nan"), 5)):
            with pytest.raises(ConfigError, match="inches"):
                plot_pianoroll(midi, tmp_path / "a.png", size=size)
        with pytest.raises(ConfigError, match="split_at"):
            plot_pianoroll(midi, tmp_path / "a.png", split_at=float("nan"))
        assert list(tmp_path.iterdir()) == []


class TestFiles:
    """What both kinds of files have in common."""

    @pytest.fixture(params=["png", "wav"])
    def writer(self, request: pytest.FixtureRequest):
        if request.param == "png":
            return ".png", lambda path, **rest: plot_pianoroll(tones((60, 0, 0.5)), path, **rest)
        return ".wav", lambda path, **rest: render_audio(
            tones((60, 0, 0.5)), path, rate=8000, synthesiser="pretty_midi", **rest
        )

    def test_nothing_is_overwritten_without_force(self, writer, tmp_path: Path) -> None:
        suffix, write = writer
        target = tmp_path / f"a{suffix}"
        target.write_bytes(b"old")
        with pytest.raises(MelodiaError, match="already exists"):
            write(target)
        assert target.read_bytes() == b"old"
        write(target, force=True)
        assert target.stat().st_size > 1000
        assert list(tmp_path.iterdir()) == [target]

    def test_impossible_targets(self, writer, tmp_path: Path) -> None:
        suffix, write = writer
        with pytest.raises(MelodiaError, match=f"must end in {suffix}"):
            write(tmp_path / "a.txt")
        with pytest.raises(MelodiaError, match="is a directory"):
            write(tmp_path)
        with pytest.raises(MelodiaError, match="there is no folder"):
            write(tmp_path / "none" / f"a{suffix}")
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_leaves_nothing_behind(
        self, writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        suffix, write = writer
        target = tmp_path / f"a{suffix}"
        target.write_bytes(b"old")

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(MelodiaError, match=r"No space left on device.*check the folder"):
            write(target, force=True)
        assert target.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [target]

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
    def test_an_unwritable_folder(self, writer, tmp_path: Path) -> None:
        suffix, write = writer
        tmp_path.chmod(0o500)
        with pytest.raises(MelodiaError, match="cannot be written"):
            write(tmp_path / f"a{suffix}")


class TestAudio:
    @pytest.mark.parametrize("name", ["drunken_sailor", "haydn_emperor_hymn", "petzold_minuet_g_minor"])
    def test_a_sample_sounds_from_beginning_to_end_without_clipping(
        self, name: str, samples_dir: Path, tmp_path: Path
    ) -> None:
        midi = sample(samples_dir, name)
        began = time.perf_counter()
        report = render_audio(midi, tmp_path / "a.wav", synthesiser="pretty_midi")
        assert time.perf_counter() - began < 10
        samples, rate = sound(tmp_path / "a.wav")
        assert rate == report.rate == 44100
        assert samples.shape[1] == report.channels == 1
        assert len(samples) / rate == pytest.approx(report.seconds)
        assert midi.get_end_time() <= report.seconds + 1e-3 <= midi.get_end_time() + 2
        assert np.abs(samples).max() == pytest.approx(0.89, abs=0.001)
        first = min(note.start for part in midi.instruments for note in part.notes)
        seconds = samples[int(first * rate) : int(midi.get_end_time() * rate)]
        loudness = [rms(seconds[at : at + rate]) for at in range(0, len(seconds) - rate, rate)]
        assert min(loudness) > 0.005
        assert abs(samples.mean()) < 0.005

    def test_a_note_has_its_pitch_and_place(self, tmp_path: Path) -> None:
        render_audio(tones((69, 1.0, 2.0)), tmp_path / "a.wav", rate=16000, synthesiser="pretty_midi")
        samples, rate = sound(tmp_path / "a.wav")
        assert np.abs(samples[: rate - 2]).max() == 0
        note = samples[rate : 2 * rate, 0]
        assert rms(note) > 0.1
        assert np.abs(np.fft.rfft(note)).argmax() == 440

    def test_high_notes_do_not_fold_back(self, tmp_path: Path) -> None:
        render_audio(tones((103, 0, 1), program=56), tmp_path / "a.wav", rate=8000, synthesiser="pretty_midi")
        samples, _ = sound(tmp_path / "a.wav")
        spectrum = np.abs(np.fft.rfft(samples[:8000, 0]))
        assert spectrum.argmax() in (3135, 3136)  # G7
        assert spectrum[:2500].max() < 0.02 * spectrum.max()

    def test_drums_are_heard(self, samples_dir: Path, tmp_path: Path) -> None:
        midi = sample(samples_dir, "drunken_sailor")
        with_drums = np.concatenate(list(synthesise(midi, 11025)))
        midi.instruments = [part for part in midi.instruments if not part.is_drum]
        without = np.concatenate(list(synthesise(midi, 11025)))
        assert 0.2 < rms(with_drums - without) / rms(without) < 0.8
        render_audio(tones((38, 0, 0.1), drum=True), tmp_path / "a.wav", synthesiser="pretty_midi")
        samples, rate = sound(tmp_path / "a.wav")
        assert rms(samples[: rate // 10]) > 0.05

    def test_edges_of_hi_hats_are_hi_hats(self) -> None:
        assert len(drum_wave(22, 8000)) == len(drum_wave(42, 8000))
        assert len(drum_wave(26, 8000)) == len(drum_wave(46, 8000))

    @pytest.mark.parametrize("pitch", [0, 22, 26, *range(27, 88), 127])
    def test_every_drum_is_a_short_burst(self, pitch: int) -> None:
        burst = drum_wave(pitch, 44100)
        assert np.isfinite(burst).all()
        assert 0.1 < np.abs(burst).max() < 4
        assert len(burst) < 2 * 44100
        assert np.abs(burst[-10:]).max() < 0.01
        assert (burst == drum_wave(pitch, 44100)).all()
        assert len(drum_wave(pitch, 8000)) > 0

    def test_windows_make_the_same_sound_as_one_piece(self) -> None:
        """Notes on both sides of a window's border, and over it, with a pitch bend: against pretty_midi in one go."""
        from melodia.render.synthesis import timbre

        rate = 8000
        midi = tones(
            (60, 1, 3),
            (64, WINDOW - 1, WINDOW + 2),
            (67, WINDOW, WINDOW + 1),
            (72, 2 * WINDOW + 1, 2 * WINDOW + 2),
        )
        midi.instruments[0].pitch_bends = [
            pretty_midi.PitchBend(0, 0.0),
            pretty_midi.PitchBend(2000, 2.0),
            pretty_midi.PitchBend(-3000, 2 * WINDOW - 3.0),
        ]
        whole = midi.instruments[0].synthesize(fs=rate, wave=timbre(0))
        pieces = np.concatenate(list(synthesise(midi, rate)))
        assert len(pieces) >= len(whole)
        np.testing.assert_allclose(pieces[: len(whole)], whole, atol=1e-6)
        assert not pieces[len(whole) :].any()

    def test_memory_and_time_stay_bounded_over_long_silence(self, tmp_path: Path) -> None:
        midi = tones((60, 0, 1), (60, 3000, 3001))
        blocks = list(map(len, synthesise(midi, 8000)))
        assert set(blocks) == {WINDOW * 8000}
        report = render_audio(midi, tmp_path / "a.wav", rate=8000, synthesiser="pretty_midi")
        assert report.seconds == pytest.approx(3001.25, abs=0.1)

    def test_broken_lengths_do_no_harm(self, tmp_path: Path) -> None:
        midi = tones((60, 0, 0.0), (62, 1, 2), (64, 1, 100))
        midi.instruments[0].notes[1].end = 0.5
        report = render_audio(midi, tmp_path / "a.wav", rate=8000, synthesiser="pretty_midi")
        assert report.seconds == pytest.approx(100, abs=0.5)

    def test_errors(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        midi, target = tones((60, 0, 1)), tmp_path / "a.wav"
        with pytest.raises(MidiError, match="no notes to play"):
            render_audio(pretty_midi.PrettyMIDI(), target)
        with pytest.raises(MidiError, match=r"lasts 10\.0 h, the limit is 3 h"):
            render_audio(tones((60, 0, 1), (60, 35999, 36000)), target)
        with pytest.raises(MidiError, match="velocity 0"):
            render_audio(tones((60, 0, 1), velocity=0), target, synthesiser="pretty_midi")
        with pytest.raises(ConfigError, match="received 100"):
            render_audio(midi, target, rate=100)
        with pytest.raises(ConfigError, match="synthesiser"):
            render_audio(midi, target, synthesiser="timidity")  # type: ignore[arg-type]
        monkeypatch.setattr("melodia.render.synthesis.MOST_NOTE_SECONDS", 0.5)
        with pytest.raises(MidiError, match="more than"):
            render_audio(midi, target, synthesiser="pretty_midi")
        assert list(tmp_path.iterdir()) == []


class TestFluidSynth:
    def test_without_the_command_pretty_midi_plays_and_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        report = render_audio(tones((60, 0, 1)), tmp_path / "a.wav", rate=8000)
        assert report.synthesiser == "pretty_midi"
        assert "fluidsynth is not on the PATH" in report.line()
        with pytest.raises(BackendError, match="not on the PATH"):
            render_audio(tones((60, 0, 1)), tmp_path / "b.wav", synthesiser="fluidsynth")
        assert not (tmp_path / "b.wav").exists()

    def test_a_soundfont_that_is_no_file_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.install(tmp_path, monkeypatch, "exit 0")
        monkeypatch.setenv("MELODIA_SOUNDFONT", str(tmp_path / "none.sf2"))
        with pytest.raises(ConfigError, match=r"none\.sf2, which is not a file"):
            render_audio(tones((60, 0, 1)), tmp_path / "a.wav")

    def test_soundfonts_are_found_in_the_standard_folders(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.install(tmp_path, monkeypatch, "exit 0")
        monkeypatch.delenv("MELODIA_SOUNDFONT", raising=False)
        monkeypatch.setattr("melodia.render.audio.SOUNDFONT_FOLDERS", [str(tmp_path / "fonts")])
        assert find_fluidsynth()[1].name == "TimGM6mb.sf2"  # the one that pretty_midi brings along
        (tmp_path / "fonts").mkdir()
        for name in ("Aaa.sf2", "FluidR3_GM.sf2", "note.txt"):
            (tmp_path / "fonts" / name).touch()
        assert find_fluidsynth()[1].name == "FluidR3_GM.sf2"
        (tmp_path / "mine.sf2").touch()
        monkeypatch.setenv("MELODIA_SOUNDFONT", str(tmp_path / "mine.sf2"))
        assert find_fluidsynth()[1].name == "mine.sf2"

    def test_a_user_without_a_home_folder_has_no_soundfonts_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.install(tmp_path, monkeypatch, "exit 0")
        for name in ("MELODIA_SOUNDFONT", "HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
        monkeypatch.setattr("melodia.render.audio.SOUNDFONT_FOLDERS", ["~/fonts"])
        assert find_fluidsynth()[1].name == "TimGM6mb.sf2"
        monkeypatch.setenv("MELODIA_SOUNDFONT", "~/mine.sf2")
        with pytest.raises(ConfigError, match=r"~/mine\.sf2, which is not a file"):
            find_fluidsynth()

    @pytest.mark.parametrize("script", ["echo broken >&2; exit 3", "exit 0"])
    def test_when_it_fails_pretty_midi_plays_and_says_why(
        self, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.install(tmp_path, monkeypatch, script)
        report = render_audio(tones((60, 0, 1)), tmp_path / "a.wav", rate=8000)
        assert report.synthesiser == "pretty_midi"
        assert "because FluidSynth failed" in report.reason
        assert ("broken" in report.reason) == ("broken" in script)
        assert sound(tmp_path / "a.wav")[0].max() > 0.5

    @staticmethod
    def install(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
        """A command fluidsynth that does what the script says."""
        if os.name != "posix":
            pytest.skip("needs a shell")
        (folder / "bin").mkdir()
        command = folder / "bin" / "fluidsynth"
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder / "bin"))

    def test_a_program_has_a_channel(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fifteen instruments and the drums; PrettyMIDI puts the last one where the first one is."""
        midi = tones((60, 0, 1))
        midi.instruments[0].program = 1
        for program in range(2, 17):
            midi.instruments.append(pretty_midi.Instrument(program, is_drum=program == 16))
            midi.instruments[-1].notes.append(pretty_midi.Note(80, 60, 0.0, 1.0))
        midi.instruments.insert(3, midi.instruments.pop())
        given = tmp_path / "given.mid"
        self.install(tmp_path, monkeypatch, f'for last; do :; done; /bin/cat "$last" > "{given}"; exit 3')
        render_audio(midi, tmp_path / "a.wav", rate=8000)
        tracks = mido.MidiFile(given).tracks[1:]
        channels = {m.channel: m.program for track in tracks for m in track if m.type == "program_change"}
        assert sorted(channels.values()) == list(range(1, 17))

    @needs_fluidsynth
    @pytest.mark.parametrize("name", ["drunken_sailor", "sakura"])
    def test_it_plays_the_samples(self, name: str, samples_dir: Path, tmp_path: Path) -> None:
        midi = sample(samples_dir, name)
        report = render_audio(midi, tmp_path / "a.wav", synthesiser="fluidsynth")
        assert report.synthesiser == "fluidsynth"
        assert report.soundfont is not None
        assert report.soundfont.name in report.reason
        samples, rate = sound(tmp_path / "a.wav")
        assert (rate, samples.shape[1]) == (44100, 2)
        assert midi.get_end_time() <= report.seconds + 1e-3 <= midi.get_end_time() + 5
        assert np.abs(samples).max() == pytest.approx(0.89, abs=0.001)
        assert rms(samples) > 0.02
        assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]

    @needs_fluidsynth
    def test_a_soundfont_that_is_none_is_found_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "bad.sf2").write_bytes(b"no soundfont at all")
        monkeypatch.setenv("MELODIA_SOUNDFONT", str(tmp_path / "bad.sf2"))
        with pytest.raises(BackendError, match=r"FluidSynth cannot use bad\.sf2"):
            render_audio(tones((60, 0, 1)), tmp_path / "a.wav", synthesiser="fluidsynth")
        report = render_audio(tones((60, 0, 1)), tmp_path / "a.wav", rate=8000)
        assert report.synthesiser == "pretty_midi"
        assert "bad.sf2" in report.line()
