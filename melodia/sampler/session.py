"""A session: everything that the next token depends on, as one value.

A session is copied, saved and loaded; generating from one never changes it. Letters: V vocabulary, S side inputs.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from melodia.checks import file_path, real_number, whole_number
from melodia.errors import CheckpointError, MelodiaError, show_path
from melodia.files import asked_file, asked_target
from melodia.grammar import Grammar, GrammarState, NoteEvent, Op, TokenReader, compile_tables
from melodia.model.config import ModelConfig
from melodia.model.network import ModelState, checked_state
from melodia.notes import MAX_BARS
from melodia.sampler.recall import Recollection
from melodia.sampler.score_arrays import score_from_arrays, score_to_arrays
from melodia.sampler.timeline import Mark
from melodia.side_inputs import SideInputTracker
from melodia.vocabulary import Vocabulary

if TYPE_CHECKING:
    from symusic.core import ScoreTick

FORMAT = "melodia-session"
FORMAT_VERSION = 5
READABLE = (2, 3, 4, FORMAT_VERSION)
"""2 says nothing of tempi that changed, nor of how long programs have rested; 3 nothing of what may come again; 4
nothing of notes that wait to be heard, and the seed is a MIDI file in it, which is read as others are."""

MOST_FED = 1 << 53
"""Tokens that a session may have behind it."""


@dataclass(frozen=True)
class Context:
    """What new music keeps of the music before it. Ticks are grid ticks from the start of the first token.

    Attributes:
        source: name of the seed, "" for none.
        join: where new music begins.
        origin: the bar line at or before the join; continuations count their time from here.
        seed_join: the join in the seed's own score, in quarter notes.
        metre: numerator and denominator as they stand in the seed; None: the model chooses.
        cycle: the TimeSig values that write one bar; several where no token fits the metre; none: the model
            chooses.
        anchor: a bar line from which the cycle counts.
        tempo: quarter notes a minute; None: the model chooses.
        tempi: those since the origin, as far back as anybody may ask; none: the tempo holds from the origin.
        programs: the seed's programs, -1 for the drums; None: the model chooses.
        chords: those that hold, and the bar line at which the first of them began; None: none do.
        strangers: the programs that were asked for and those of them that join in, though they may have been heard by
            now; None: that is still to be found out.
    """

    source: str = ""
    join: int = 0
    origin: int = 0
    seed_join: float = 0.0
    metre: tuple[int, int] | None = None
    cycle: tuple[str, ...] = ()
    anchor: int = 0
    tempo: float | None = None
    tempi: tuple[Mark, ...] = ()
    programs: tuple[int, ...] | None = None
    chords: tuple[str, int] | None = None
    strangers: tuple[tuple[int, ...], tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Tail:
    """The last tokens, from a place at which no note was open: what a reader needs to go on.

    Attributes:
        offset: grid ticks of that place.
        before: tokens that bring a new reader to that place (bar, metre, position, program).
        ids: the tokens since.
    """

    offset: int = 0
    before: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()

    def reader(self, vocabulary: Vocabulary) -> TokenReader:
        """A reader that stands behind the tail; its ticks count from `offset`."""
        reader = TokenReader(vocabulary)
        for token in (*self.before, *self.ids):
            reader.feed(token)
        return reader

    def since(self, vocabulary: Vocabulary, tick: int) -> Tail:
        """The tail from the token on that leads to a tick, where no note from before still sounds.

        Only where bars are no tokens, as in MIDILike, in which notes may overlap for ever: a note that began earlier
        has ended, so that its end, if it is among the tokens that stay, says nothing to a reader.
        """
        ops = compile_tables(vocabulary).ops
        reader, now = replace(self, ids=()).reader(vocabulary), 0
        lasting = {ops[token]: token for token in self.before}
        for place, token in enumerate(self.ids):
            reader.feed(token)
            if self.offset + reader.now >= tick:
                return Tail(self.offset + now, tuple(lasting.values()), self.ids[place:])
            now = reader.now
            for part in vocabulary.expansions.get(token, (token,)):
                if ops[part] in (Op.TIME_SIGNATURE, Op.PROGRAM):
                    lasting[ops[part]] = part
        return Tail(self.offset + now, tuple(lasting.values()))


def half_described(vocabulary: Vocabulary, token: int) -> bool:
    """Whether a note, a bar or a change of program is only begun behind a token."""
    tables = compile_tables(vocabulary)
    op = tables.ops[vocabulary.expansions.get(token, (token,))[-1]]
    begun = {Op.BAR, Op.PROGRAM, Op.DRUM, Op.PITCH, Op.MICRO, Op.POSITION}
    return op in begun or (op == Op.VELOCITY and not tables.on_off)


def tail_at(vocabulary: Vocabulary, state: GrammarState) -> Tail:
    """The tail at a place at which no note is open."""
    tables = compile_tables(vocabulary)
    before: list[int] = []
    offset = state.now
    if tables.has_bars and state.bar >= 0:
        offset = state.bar_start
        before.append(vocabulary.index["Bar_None"])
    if state.metre >= 0:
        before.append(state.metre)
    if tables.has_bars and state.bar >= 0:
        before += _place(vocabulary, state)
    if state.program >= -1:
        before.append(vocabulary.index[f"Program_{state.program}"])
    return Tail(offset, tuple(before))


def _place(vocabulary: Vocabulary, state: GrammarState) -> list[int]:
    """Tokens that move from the bar line to the present place in the bar."""
    units = (state.now - state.bar_start) // state.unit
    position = vocabulary.index.get(f"Position_{units}")
    if position is not None:
        return [position] if state.place >= 0 else []
    return shifts_over(vocabulary, units)


def shifts_over(vocabulary: Vocabulary, units: int) -> list[int]:
    """Time shifts over so many of the metre's units, the longest first; none where time passes by other tokens."""
    tables = compile_tables(vocabulary)
    shifts = [(value, i) for i, value in enumerate(tables.values) if tables.ops[i] == Op.TIME_SHIFT]
    tokens = []
    for value, token in sorted(shifts, reverse=True):
        while 0 < value <= units:
            tokens.append(token)
            units -= value
    return tokens


def _heard(state: GrammarState) -> NDArray[np.int64]:
    """(program, pitch, tick) of the last end of each pitch that a program has played, [N, 3].

    The grammar's own array leaves out what has ended, but the plan asks how long a program has rested, and those that
    join in stay near what they have played last.
    """
    rows = {} if state.on_off else state.rows
    ends = [
        (program, pitch, int(row[pitch]))
        for program, row in sorted(rows.items())
        for pitch in (np.flatnonzero(row).tolist() or [0])
    ]
    return np.array(ends, np.int64).reshape(-1, 3)


def _checksum(about: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> int:
    """CRC-32 of a session file's content."""
    crc = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        crc = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), crc)
        crc = zlib.crc32(array.tobytes(), crc)
    return crc


@dataclass(eq=False)
class Session:
    """Where the music stands. A value: `fork` copies it, `Sampler.state` gives and takes it.

    Attributes:
        model_state: the model's state behind all tokens so far, as arrays.
        logits: float32 [V], the model's prediction of the next token.
        grammar: the grammar's registers.
        side: the side inputs' registers.
        fed: how many tokens were fed, BOS included: the position of the next one in its stream of random numbers.
        recent: the last tokens that the repetition penalty may count.
        tail: what a reader of notes needs to go on.
        context: what new music keeps of the music before it.
        seed: the music before, as a score; None for none.
        ids: int32 [N], the tokens of the seed, as long as nothing else was fed.
        recollection: what may come again, where the music so far was made with `recall`.
        waiting: notes of the last tokens that nobody has heard yet, in grid ticks from the first token, in the order in
            which a stream gives them.
        fingerprint: of the model and the vocabulary.
    """

    model_state: ModelState = field(repr=False)
    logits: NDArray[np.float32] = field(repr=False)
    grammar: GrammarState = field(repr=False)
    side: SideInputTracker = field(repr=False)
    fed: int
    recent: tuple[int, ...] = field(repr=False)
    tail: Tail = field(repr=False)
    context: Context
    seed: ScoreTick | None
    ids: NDArray[np.int32] | None = field(default=None, repr=False)
    recollection: Recollection | None = field(default=None, repr=False)
    waiting: tuple[NoteEvent, ...] = field(default=(), repr=False)
    fingerprint: str = field(repr=False, default="")

    def fork(self) -> Session:
        """An independent copy."""
        seed = None if self.seed is None else self.seed.copy()
        return replace(self, grammar=self.grammar.copy(), side=self.side.copy(), seed=seed)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the session as one safetensors file whose header holds the rest as JSON.

        Args:
            path: where.
            force: replace a file that is there.

        Returns:
            the path.

        Raises:
            CheckpointError: the file is there already (without `force`), or cannot be written.
        """
        target = asked_target(path, CheckpointError, "the session", force=force)
        arrays: dict[str, NDArray[Any]] = {f"model.{name}": part for name, part in self.model_state.items()}
        arrays["logits"] = self.logits
        arrays["grammar"] = self.grammar.to_array()
        arrays["heard"] = _heard(self.grammar)
        arrays["side"] = self.side.to_array()
        arrays["recent"] = np.array(self.recent, dtype=np.int64)
        arrays["tail"] = np.array(self.tail.ids, dtype=np.int64)
        arrays["tail_before"] = np.array(self.tail.before, dtype=np.int64)
        arrays["waiting"] = np.array(self.waiting, dtype=np.int64).reshape(-1, len(NoteEvent._fields))
        if self.ids is not None:
            arrays["ids"] = self.ids
        if self.recollection is not None:
            arrays |= {f"recall.{name}": part for name, part in self.recollection.to_arrays().items()}
        about: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "fed": self.fed,
            "tail_offset": self.tail.offset,
            "context": asdict(self.context),
        }
        if self.seed is not None:
            about["seed"], columns = score_to_arrays(self.seed)
            arrays |= {f"seed.{name}": part for name, part in columns.items()}
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        about["crc32"] = _checksum(about, arrays)
        data = safetensors.numpy.save(arrays, metadata={"melodia": json.dumps(about)})
        with asked_file(target, CheckpointError, force=force) as part:
            part.write_bytes(data)
        return target

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], config: ModelConfig, vocabulary: Vocabulary, fingerprint: str
    ) -> Session:
        """Read a session that `save` wrote, for the model that it belongs to.

        Raises:
            CheckpointError: the file is missing, damaged, of a newer format, or belongs to another model.
        """
        path = file_path("path", path, CheckpointError)
        try:
            if path.is_dir():
                raise CheckpointError(
                    f"{show_path(path)}: is a directory; give a file that `Session.save` wrote"
                )
            if not path.exists():
                raise CheckpointError(f"{show_path(path)}: no such file; check the path")
            with safetensors.safe_open(str(path), framework="numpy") as file:
                about = json.loads((file.metadata() or {}).get("melodia", "null"))
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        except (OSError, safetensors.SafetensorError, ValueError) as error:
            raise CheckpointError(
                f"{show_path(path)}: not a session that can be read ({error}); save it again"
            ) from error
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise CheckpointError(
                f"{show_path(path)}: is not a saved session; give a file that `Session.save` wrote"
            )
        if about.get("format_version") not in READABLE:
            raise CheckpointError(
                f"{show_path(path)}: session format {about.get('format_version')!r}, but this version reads "
                f"{' and '.join(map(str, READABLE))}; prime the seed again"
            )
        checksum = about.pop("crc32", None)  # files of earlier versions have none
        if checksum != _checksum(about, arrays) and (checksum is not None or about["format_version"] >= 5):
            raise CheckpointError(
                f"{show_path(path)}: is damaged (its checksum differs); prime the seed again"
            )
        if about.get("fingerprint") != fingerprint:
            raise CheckpointError(
                f"{show_path(path)}: belongs to another model; load that model, or prime the seed again with this one"
            )
        try:
            return cls._unpack(about, arrays, config, Grammar.compile(vocabulary))
        except (MelodiaError, LookupError, ValueError, TypeError, OverflowError, AttributeError) as error:
            raise CheckpointError(f"{show_path(path)}: is damaged ({error}); prime the seed again") from error

    @classmethod
    def _unpack(
        cls,
        about: dict[str, Any],
        arrays: dict[str, NDArray[Any]],
        config: ModelConfig,
        grammar: Grammar,
    ) -> Session:
        vocabulary = grammar.vocabulary
        inner, memory, columns = (
            {name.removeprefix(first): array for name, array in arrays.items() if name.startswith(first)}
            for first in ("model.", "recall.", "seed.")
        )
        seed = score_from_arrays(about["seed"], columns) if "seed" in about else None
        if "seed_midi" in arrays:  # of an earlier version
            from melodia.midi import read_score

            seed, _ = read_score(arrays["seed_midi"].tobytes())
        if arrays["logits"].shape != (vocabulary.size,):
            raise ValueError(f"{arrays['logits'].shape} logits for {vocabulary.size} tokens")
        broken = [
            name for name, part in arrays.items() if part.dtype.kind == "f" and not np.isfinite(part).all()
        ]
        if broken:
            raise ValueError(f"{broken[0]} holds what is no number")
        state = grammar.restore(arrays["grammar"])
        for program, pitch, tick in arrays.get("heard", np.zeros((0, 3), np.int64)).tolist():
            state.row(whole_number("program", program, -1, 127))[whole_number("pitch", pitch, 0, 127)] = tick
        waiting = arrays.get("waiting", np.zeros((0, len(NoteEvent._fields)), np.int64))
        for note in (NoteEvent(*row) for row in waiting.tolist()):
            whole_number("program", note.program, -1, 127)
            whole_number("pitch", note.pitch, 0, 127)
            whole_number("velocity", note.velocity, 0, 127)
            whole_number("duration", note.duration, 1)
        furthest = state.now + MAX_BARS * grammar.tables.default_bar
        return cls(
            model_state=checked_state(config, inner),
            logits=arrays["logits"].astype(np.float32),
            grammar=state,
            side=SideInputTracker.from_array(vocabulary, config.side_inputs, arrays["side"]),
            fed=whole_number("fed", about["fed"], 0, MOST_FED),
            recent=_tokens(arrays["recent"], vocabulary),
            tail=Tail(
                whole_number("tail_offset", about["tail_offset"], -furthest, furthest),
                _tokens(arrays["tail_before"], vocabulary),
                _tokens(arrays["tail"], vocabulary),
            ),
            context=_context_of(about["context"], furthest, vocabulary),
            seed=seed,
            ids=np.array(_tokens(arrays["ids"], vocabulary), np.int32) if "ids" in arrays else None,
            recollection=Recollection.from_arrays(memory, vocabulary.size) if memory else None,
            waiting=tuple(NoteEvent(*note) for note in waiting.tolist()),
            fingerprint=str(about["fingerprint"]),
        )


def _tokens(array: NDArray[Any], vocabulary: Vocabulary) -> tuple[int, ...]:
    """Ids from a file; raises ValueError where some are none."""
    if array.ndim != 1 or array.dtype.kind != "i" or ((array < 0) | (array >= vocabulary.size)).any():
        raise ValueError(f"tokens must be whole numbers from 0 to {vocabulary.size - 1}")
    return tuple(array.tolist())


def _context_of(stored: dict[str, Any], furthest: int, vocabulary: Vocabulary) -> Context:
    """A context from a file; raises MelodiaError, LookupError, TypeError and ValueError where it is none.

    Args:
        stored: as `asdict` gives it and JSON keeps it.
        furthest: how far from the beginning its places may lie, in grid ticks.
        vocabulary: which its metre is written in.
    """
    context = dict(stored)
    context["tempi"] = tuple(
        (whole_number("tempi", tick, -furthest, furthest), real_number("tempi", seconds), _tempo(tempo))
        for tick, seconds, tempo in context.get("tempi", ())
    )
    if context.get("chords") is not None:
        text, line = context["chords"]
        context["chords"] = str(text), whole_number("chords", line, -furthest, furthest)
    for name in ("join", "anchor"):
        whole_number(name, context[name], -furthest, furthest)
    whole_number("origin", context["origin"], -furthest, context["join"])
    real_number("seed_join", context["seed_join"])
    if context["tempo"] is not None:
        _tempo(context["tempo"])
    if context["metre"] is not None:
        top, bottom = (whole_number("metre", part, 1, 255) for part in context["metre"])
        context["metre"] = top, bottom
    context["cycle"] = tuple(context["cycle"])
    if not all(f"TimeSig_{metre}" in vocabulary.index for metre in context["cycle"]):
        raise ValueError(f"the vocabulary has no metre of {context['cycle']}")
    if context["programs"] is not None:
        context["programs"] = _programs(context["programs"])
    if context.get("strangers") is not None:
        asked, strangers = context["strangers"]
        context["strangers"] = _programs(asked), _programs(strangers)
    return Context(**context)


def _programs(stored: Sequence[object]) -> tuple[int, ...]:
    return tuple(whole_number("programs", each, -1, 127) for each in stored)


def _tempo(value: object) -> float:
    tempo = real_number("tempo", value, 0)
    if not tempo:
        raise ValueError("a tempo must be more than 0")
    return tempo
