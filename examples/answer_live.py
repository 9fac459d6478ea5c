"""Play with melodia over MIDI: you play some bars, it answers with as many, and so on. Ctrl-C ends it.

    pip install python-rtmidi
    python examples/answer_live.py                      # lists the ports
    python examples/answer_live.py IN OUT --tempo 100 --bars 4 --click

Your first note begins the first bar; then keep to the tempo. --click plays the beats of your bars on channel 10.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mido
import pretty_midi

from melodia import RECOMMENDED, Sampler

SETTINGS = {**RECOMMENDED, "branches": 1}  # what was heard cannot be taken back
KEPT_BARS = 8  # of what both played, the answer takes the last ones into account
POLL = 0.001  # seconds
DRUM_CHANNEL, SIDE_STICK = 9, 37


class Clock:
    """Time in seconds; a test has one that does not wait."""

    def now(self) -> float:
        """The present time."""
        return time.monotonic()

    def wait_until(self, moment: float) -> None:
        """Sleep until a time, if it has not passed."""
        time.sleep(max(0.0, moment - self.now()))


def listen(
    port: Any, seconds: float, clock: Clock, click: Iterator[float], out: Any
) -> list[pretty_midi.Note]:
    """The notes of so many seconds from the first one on, which is at 0.

    Args:
        port: the MIDI input, as mido opens it.
        seconds: how long a turn lasts.
        clock: the time.
        click: seconds from the first note at which a beat is heard.
        out: the MIDI output of the clicks.
    """
    began = None
    held: dict[int, tuple[float, int]] = {}
    notes = []
    beat = next(click, None)

    def end(pitch: int, moment: float) -> None:
        onset, velocity = held.pop(pitch)
        notes.append(pretty_midi.Note(velocity, pitch, onset, max(moment, onset + POLL)))

    while began is None or clock.now() < began + seconds:
        for message in port.iter_pending():
            if message.type not in ("note_on", "note_off"):
                continue
            if began is None:
                if message.type == "note_off" or not message.velocity:
                    continue
                began = clock.now()
            moment = clock.now() - began
            if message.note in held:
                end(message.note, moment)
            if message.type == "note_on" and message.velocity:
                held[message.note] = moment, message.velocity
        if began is not None and beat is not None and clock.now() >= began + beat:
            out.send(mido.Message("note_on", channel=DRUM_CHANNEL, note=SIDE_STICK, velocity=70))
            beat = next(click, None)
        clock.wait_until(clock.now() + POLL)
    for pitch in list(held):
        end(pitch, seconds)
    return notes


def play(events: Iterator[Any], port: Any, began: float, clock: Clock) -> list[pretty_midi.Note]:
    """Send events to a MIDI output at their times, as they are made, and give them back as notes."""
    notes, ends = [], []  # ends: a heap of (time, pitch)
    for event in itertools.chain(events, [None]):
        onset = event.onset if event is not None else float("inf")
        while ends and ends[0][0] <= onset:
            moment, pitch = heapq.heappop(ends)
            clock.wait_until(began + moment)
            port.send(mido.Message("note_off", note=pitch))
        if event is not None:
            clock.wait_until(began + onset)
            port.send(mido.Message("note_on", note=event.pitch, velocity=event.velocity))
            heapq.heappush(ends, (onset + event.duration, event.pitch))
            notes.append(pretty_midi.Note(event.velocity, event.pitch, onset, onset + event.duration))
    return notes


def take_turns(
    sampler: Sampler,
    source: Any,
    out: Any,
    *,
    bars: int,
    tempo: float,
    beats: int,
    program: int,
    click: bool,
    rounds: Iterator[int],
    clock: Clock,
) -> None:
    """Listen and answer, for every number that `rounds` gives; that is the answer's random seed."""
    sampler.prime(None)
    next(sampler.stream(bars=1, **SETTINGS))  # what is loaded when it is first needed is there now
    beat = 60 / tempo
    turn = bars * beats * beat
    past: list[pretty_midi.Note] = []
    length = 0.0
    for random_seed in rounds:
        print(f"your turn: {bars} bars from your first note on")
        ticks = (k * beat for k in range(bars * beats)) if click else iter(())
        heard = listen(source, turn, clock, ticks, out)
        line = clock.now()
        past = joined(past, heard, length)
        length += turn
        music = pretty_midi.PrettyMIDI(initial_tempo=tempo)
        music.time_signature_changes.append(pretty_midi.TimeSignature(beats, 4, 0))
        music.instruments.append(pretty_midi.Instrument(program))
        music.instruments[0].notes = past
        unfinished = sampler.prime(music).completes  # then events first complete the last bar that was heard
        events = sampler.stream(bars=bars, metre=(beats, 4), random_seed=random_seed, **SETTINGS)
        events = behind(events, beats * beat if unfinished else 0.0)
        first = next(events)
        print(f"answering, ready {1000 * (clock.now() - line):.0f} ms after the bar line")
        answer = play(itertools.chain([first], events), out, line, clock)
        clock.wait_until(line + turn)
        past = joined(past, answer, length)
        length += turn
        gone = max(0.0, length - KEPT_BARS * beats * beat)
        past = [moved(note, -gone) for note in past if note.start >= gone]
        length -= gone


def behind(events: Iterator[Any], seconds: float) -> Iterator[Any]:
    """The events from a time on, counted from there."""
    for event in events:
        if event.onset > seconds - POLL:
            yield replace(event, onset=max(0.0, event.onset - seconds))


def joined(
    before: list[pretty_midi.Note], after: list[pretty_midi.Note], offset: float
) -> list[pretty_midi.Note]:
    """The notes of both, those of the second later by an offset in seconds."""
    return [*before, *(moved(note, offset) for note in after)]


def moved(note: pretty_midi.Note, offset: float) -> pretty_midi.Note:
    """The same note at another time."""
    return pretty_midi.Note(note.velocity, note.pitch, note.start + offset, note.end + offset)


def main() -> None:
    """Parse the arguments and do what the module says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", metavar="IN", help="the MIDI input that you play on")
    parser.add_argument("out", nargs="?", metavar="OUT", help="the MIDI output that is heard")
    parser.add_argument("--model", type=Path, help="a checkpoint; default: the model that comes with melodia")
    parser.add_argument("--bars", type=int, default=4, help="of each turn")
    parser.add_argument("--tempo", type=float, default=100.0, help="beats a minute")
    parser.add_argument("--beats", type=int, default=4, help="in a bar")
    parser.add_argument("--program", type=int, default=0, help="General MIDI program of both players")
    parser.add_argument("--click", action="store_true", help="beats on channel 10 while you play")
    options = parser.parse_args()
    try:
        inputs, outputs = mido.get_input_names(), mido.get_output_names()
    except ModuleNotFoundError as error:
        parser.exit(1, f"{error}; MIDI ports need it: pip install python-rtmidi\n")
    if options.source is None or options.out is None:
        print("inputs: " + ", ".join(inputs), "outputs: " + ", ".join(outputs), sep="\n")
        return
    sampler = Sampler.load(options.model)
    with mido.open_input(options.source) as source, mido.open_output(options.out) as out:
        out.send(mido.Message("program_change", program=options.program))
        try:
            take_turns(
                sampler, source, out,
                bars=options.bars, tempo=options.tempo, beats=options.beats, program=options.program,
                click=options.click, rounds=itertools.count(1), clock=Clock(),
            )  # fmt: skip
        except KeyboardInterrupt:
            out.reset()


if __name__ == "__main__":
    main()
