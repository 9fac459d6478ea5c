"""What a generation did: numbers and remarks, for people and for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from melodia.decode import SamplingConfig
from melodia.midi.report import Finding, unseen_lines
from melodia.sampler.stretches import WIDER
from melodia.wording import counted


@dataclass(frozen=True)
class GenerationReport:
    """What one continuation is and how it came to be.

    Attributes:
        tokens: new tokens.
        bars: new bars, counted from the join; a bar that the seed left unfinished is not one of them.
        completed: whether the new music first completes the seed's last bar.
        notes: new notes.
        seconds: length of the new music, from the join, or from where a stream stood, to its last bar line.
        wall_seconds: time it took. Of a batch, the time of the whole batch.
        batch: how many continuations were made at once.
        tokens_per_second: of the whole batch.
        times_real_time: seconds of music (of the whole batch) a second of work.
        nll: mean -log probability of the new tokens under the model, before any filter, in nats.
        entropy: mean entropy of what the tokens were drawn from, after all filters, in nats.
        tempo: quarter notes a minute at the join.
        metre: numerator and denominator of the first full bar behind the join.
        programs: programs of the new notes; -1 is the drums.
        ended: "length" where the asked length was reached, "model" where the model ended the piece.
        random_seed: gives the same music again.
        session: which of the streams of that random seed.
        branches: how many times a stretch was played.
        stretches: how many stretches were chosen from so many.
        closing: how many times the last of them was played.
        widened: how many of the others were played four times as often, since all of those were unlike the seed.
        recalled: how many bars were played again.
        chords: the share of the notes' time that belongs to the requested chords, and the share of the chords that
            begin over their bass; None where none were requested.
        backend: what ran.
        backend_reason: why.
        sampling: the settings of the choice.
        findings: what was changed or is worth knowing.
    """

    tokens: int
    bars: int
    completed: bool
    notes: int
    seconds: float
    wall_seconds: float
    batch: int
    tokens_per_second: float
    times_real_time: float
    nll: float
    entropy: float
    tempo: float
    metre: tuple[int, int]
    programs: tuple[int, ...]
    ended: str
    random_seed: int
    session: int
    branches: int
    stretches: int
    closing: int
    widened: int
    recalled: int
    chords: tuple[float, float] | None
    backend: str
    backend_reason: str
    sampling: SamplingConfig
    findings: list[Finding] = field(default_factory=list)

    @property
    def timing(self) -> str:
        """How long it took, in words: the same of all that was made at once."""
        made = "made" if self.batch == 1 else f"{counted(self.batch, 'sample')} made"
        return (
            f"{made} in {self.wall_seconds:.2f} s: {self.tokens_per_second:,.0f} tokens/s, "
            f"{self.times_real_time:,.1f} times faster than real time ({self.backend}: {self.backend_reason})"
        )

    def lines(self, *, timing: bool = True) -> list[str]:
        """The report as lines of text, with or without `timing`."""
        bars = counted(self.bars, "bar")
        if self.completed:
            bars = f"the rest of the seed's last bar and {bars}"
        metre = f"{self.metre[0]}/{self.metre[1]}"
        lines = [
            f"{bars} of {metre} at {self.tempo:.4g} quarter notes per minute: {self.seconds:.1f} s of music, "
            f"{counted(self.notes, 'note')}, {counted(self.tokens, 'token')}",
            *([self.timing] if timing else []),
            f"random seed {self.random_seed}, session {self.session}",
        ]
        if self.stretches:
            wide = f", {self.widened} of them from {WIDER * self.branches}" if self.widened else ""
            last = f", the last from {self.closing} branches" if self.closing != self.branches else ""
            lines.append(
                f"1 stretch chosen from {self.closing} branches"
                if self.stretches == 1
                else f"{self.stretches} stretches chosen from {self.branches} branches each{wide}{last}"
            )
        if self.recalled:
            lines.append(f"repeated from memory: {counted(self.recalled, 'bar')}")
        if self.chords is not None:
            time, bass = self.chords
            lines.append(
                f"{time:.0%} of the notes' time belongs to the chords; {bass:.0%} of the chords begin over their bass"
            )
        if self.ended == "model":
            lines.append("the model ended the piece before the requested length")
        return lines + [str(finding) for finding in self.findings]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)


@dataclass(frozen=True)
class PrimeReport:
    """What the sampler took from a seed.

    Attributes:
        source: the seed's name.
        bars: bars of the seed that were used.
        notes: its notes.
        seconds: its length.
        tokens: its tokens.
        nll: mean -log probability of its tokens under the model, in nats: how foreign it is to the model.
        tempo: quarter notes a minute that new music keeps: what prevails in its last bars.
        tempo_at_end: quarter notes a minute with which it ends.
        metre: numerator and denominator at the join.
        programs: its programs; -1 is the drums.
        completes: whether new music begins inside the seed's last bar, to complete it.
        wall_seconds: time it took to read and to feed it.
        findings: what was repaired or dropped.
        unseen: what the model does not see of it; the seed itself stays as it is.
    """

    source: str
    bars: int
    notes: int
    seconds: float
    tokens: int
    nll: float
    tempo: float
    tempo_at_end: float
    metre: tuple[int, int]
    programs: tuple[int, ...]
    completes: bool
    wall_seconds: float
    findings: list[Finding] = field(default_factory=list)
    unseen: list[Finding] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as lines of text."""
        if not self.tokens:
            return ["no seed: music from nothing"]
        programs = ", ".join("drums" if program < 0 else str(program) for program in self.programs)
        differs = abs(self.tempo / self.tempo_at_end - 1) > 0.02
        end = f" ({self.tempo_at_end:.4g} at the end)" if differs else ""
        return [
            f"seed {self.source}: {counted(self.bars, 'bar')}, {self.seconds:.1f} s, {counted(self.notes, 'note')}, "
            f"{counted(self.tokens, 'token')}; "
            f"{self.metre[0]}/{self.metre[1]} at {self.tempo:.4g} quarter notes per minute{end}, programs {programs}",
            f"seed read in {self.wall_seconds:.2f} s; {self.nll:.2f} nats per token under the model",
            *map(str, self.findings),
            *unseen_lines(self.unseen, "the seed"),
        ]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)
