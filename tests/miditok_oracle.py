"""miditok behind a small door: a score on the grid in, base token ids out."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from melodia.errors import TokenizerError
from melodia.tokenizer.config import DRUMS, METRES, PITCHES, TEMPO_RANGE, TokenizerConfig
from melodia.tokenizer.grid import GridScore, bar_of, units_of
from melodia.tokenizer.scores import DRUM_PROGRAM, build_score, voice
from melodia.vocabulary import SPECIAL_TYPES, Vocabulary

if TYPE_CHECKING:
    from symusic.core import ScoreTick


def grid_to_symusic(grid: GridScore) -> ScoreTick:
    """A symusic score in grid ticks, one track per program."""
    names = ("program", "onset", "duration", "pitch", "velocity")
    notes = {name: getattr(grid, name) for name in names}
    return build_score(grid.ticks_per_quarter, notes, grid.tempi, grid.metres)


class Miditok:
    """miditok's tokenizer of a configuration; importing miditok takes a second, so it happens here."""

    def __init__(self, config: TokenizerConfig, vocabulary: Vocabulary) -> None:
        self.config = config
        self.index = vocabulary.index
        self.tokenizer = None if config.scheme == "PerTok" else _make(config)
        if self.tokenizer is not None and self.tokenizer.vocab != self.index:
            raise TokenizerError(
                f"the vocabulary is not the one that miditok makes for {config.scheme}; "
                "install the miditok version of constraints.txt or rebuild the tokenizer"
            )

    def encode(self, grid: GridScore) -> NDArray[np.int32]:
        """Base token ids of a score on the grid, without BOS and EOS: int32 [N]."""
        if self.tokenizer is None:
            return np.array([self.index[t] for t in _pertok(grid, self.config)], dtype=np.int32)
        sequence: Any = self.tokenizer.encode(
            grid_to_symusic(grid), encode_ids=False, no_preprocess_score=True
        )
        return np.array(sequence.ids, dtype=np.int32)


def _make(config: TokenizerConfig) -> Any:
    """The miditok tokenizer of a configuration."""
    import miditok

    settings: dict[str, Any] = {
        "pitch_range": PITCHES,
        "drums_pitch_range": DRUMS,
        "beat_res": config.beat_resolution,
        "num_velocities": config.velocities,
        "special_tokens": list(SPECIAL_TYPES),
        "encode_ids_split": "no",
        "use_programs": True,
        "one_token_stream_for_programs": True,
        "use_pitchdrum_tokens": True,
    }
    if config.scheme == "Structured":
        settings |= {"use_time_signatures": False, "time_signature_range": {4: [4]}}
    else:
        settings |= {
            "program_changes": True,
            "use_tempos": True,
            "num_tempos": config.tempi,
            "tempo_range": TEMPO_RANGE,
            "log_tempos": False,
            "use_time_signatures": True,
            "time_signature_range": {d: list(n) for d, n in METRES.items()},
        }
    return getattr(miditok, config.scheme)(miditok.TokenizerConfig(**settings))


def _pertok(grid: GridScore, config: TokenizerConfig) -> list[str]:
    """PerTok token strings.

    The tokens are miditok's, laid out as in REMI (each Bar followed by its TimeSig), because miditok 3.1
    takes the length of a bar as numerator * denominator / 4 quarters, which is right for x/4 alone, and puts
    a tempo change where the note before it stands.
    """
    from melodia.tokenizer.vocabularies import duration_values

    unit = config.unit(4)
    spans = [(units_of(v, config.positions_per_beat) * unit, v) for v in duration_values(config)]
    name_of = dict(spans)
    steps = [span for span, _ in spans]
    quarter = grid.ticks_per_quarter
    tempi = dict(grid.tempi)
    columns = (grid.onset, grid.program, grid.pitch, grid.velocity, grid.duration)
    notes = list(zip(*(column.tolist() for column in columns), strict=True))
    points = ((grid.onset + unit // 2) // unit * unit).tolist()  # a note's place on the grid
    events = [(metre[0], -2) for metre in grid.metres] + [(tick, -1) for tick in tempi]
    events += [(point, i) for i, point in enumerate(points)]
    events.sort(key=lambda event: (event[0], event[1] >= 0 and voice(notes[event[1]][1]), event[1]))

    tokens: list[str] = []
    now, bar_end, program = 0, 0, None
    for point, i in events:
        while point >= bar_end:
            _, numerator, denominator = bar_of(grid.metres, bar_end)
            now = bar_end
            bar_end += quarter * 4 * numerator // denominator
            tokens += ["Bar_None", f"TimeSig_{numerator}/{denominator}"]
        if i == -2:
            continue
        while now < point:
            span = steps[bisect_right(steps, point - now) - 1]
            tokens.append(f"TimeShift_{name_of[span]}")
            now += span
        if i == -1:
            tokens.append(f"Tempo_{tempi[point]}")
            continue
        onset, part, pitch, velocity, duration = notes[i]
        if part != program:
            tokens.append(f"Program_{part}")
            program = part
        kind = "PitchDrum" if part == DRUM_PROGRAM else "Pitch"
        tokens += [f"{kind}_{pitch}", f"MicroTiming_{onset - point}", f"Velocity_{velocity}"]
        tokens.append(f"Duration_{name_of[duration]}")
    return tokens
