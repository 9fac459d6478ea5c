"""The grammar machine, rule by rule, on cases written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from grammar_helpers import grammar_of, sample, tokenizer_of

from melodia.errors import ConfigError, GrammarError
from melodia.grammar import Constraints, Grammar, GrammarState, TokenReader, compile_tables
from melodia.grammar.state import REGISTERS
from melodia.grammar.tables import MAX_SILENCE
from melodia.midi import Limits
from melodia.tokenizer import SCHEMES
from melodia.vocabulary import Vocabulary

START = "Bar TimeSig_3/4 Position_0 Program_0"


class Walk:
    """A state that takes token strings and answers which types or tokens may follow."""

    def __init__(self, scheme: str = "REMI", line: str = "", **limits: Any) -> None:
        self.grammar = grammar_of(scheme, Constraints(**limits))
        self.vocabulary = self.grammar.vocabulary
        self.state = self.grammar.start()
        self(line)

    def token(self, name: str) -> int:
        return self.vocabulary.index[name if "_" in name else f"{name}_None"]

    def __call__(self, line: str) -> Walk:
        for name in line.split():
            self.grammar.advance(self.state, self.token(name))
        return self

    def allows(self, name: str) -> bool:
        token = self.token(name)
        answer = bool(self.grammar.mask(self.state)[token])
        assert self.grammar.allows(self.state, token) == answer
        return answer

    def types(self) -> set[str]:
        return {self.vocabulary.types[i] for i in np.flatnonzero(self.grammar.mask(self.state))}

    def names(self, kind: str) -> list[str]:
        mask = self.grammar.mask(self.state)
        return [self.vocabulary.value(i) for i in self.vocabulary.ids_of(kind) if mask[i]]


def test_the_order_of_types_in_remi() -> None:
    walk = Walk()
    for line, expected in (
        ("", {"Bar"}),
        ("Bar", {"TimeSig"}),
        ("TimeSig_3/4", {"Position", "Bar"}),
        ("Position_0", {"Tempo", "Program"}),
        ("Tempo_120.0", {"Program", "Position", "Bar"}),
        ("Program_0", {"Pitch"}),
        ("Pitch_60", {"Velocity"}),
        ("Velocity_63", {"Duration"}),
        ("Duration_1.0.12", {"Pitch", "Program", "Position", "Bar", "EOS"}),
        ("Program_-1", {"PitchDrum"}),
        ("PitchDrum_38 Velocity_63 Duration_1.0.12", {"PitchDrum", "Program", "Position", "Bar", "EOS"}),
    ):
        assert walk(line).types() == expected


def test_positions_go_forward_inside_the_bar() -> None:
    walk = Walk(line="Bar TimeSig_3/4")
    assert walk.names("Position") == [str(i) for i in range(36)]
    walk("Position_30 Program_0 Pitch_60 Velocity_63 Duration_1.0.12")
    assert walk.names("Position") == [str(i) for i in range(31, 36)]
    walk("Bar TimeSig_12/8")
    assert walk.names("Position") == [str(i) for i in range(144)]


def test_a_pitch_rests_until_it_has_ended() -> None:
    """A crotchet at the start of the bar: the pitch is free a beat later, and at once for another program."""
    walk = Walk(line=f"{START} Pitch_60 Velocity_63 Duration_1.0.12")
    assert not walk.allows("Pitch_60")
    assert walk.allows("Pitch_61")
    assert walk("Position_11 Program_1").allows("Pitch_60")
    walk("Pitch_60 Velocity_63 Duration_1.0.12 Program_0")
    assert not walk.allows("Pitch_60")
    assert walk("Pitch_61 Velocity_63 Duration_1.0.12 Position_12").allows("Pitch_60")


def test_time_is_counted_in_the_beats_of_the_metre() -> None:
    """In 6/8 a dotted minim that starts in the middle lasts to the middle of the next bar, in 3/4 beats too."""
    walk = Walk(
        line="Bar TimeSig_6/8 Position_36 Program_0 Pitch_60 Velocity_63 Duration_6.0.4 Bar TimeSig_3/4"
    )
    assert walk.state.bar_length == 3 * walk.grammar.tables.ticks_per_quarter
    assert not walk("Position_17 Program_1 Pitch_1 Velocity_63 Duration_1.0.12 Program_0").allows("Pitch_60")
    walk("Pitch_61 Velocity_63 Duration_1.0.12")
    assert walk("Position_18").allows("Pitch_60")


def test_registers() -> None:
    walk = Walk(
        line="Bar TimeSig_4/4 Position_12 Program_5 Pitch_60 Velocity_63 Duration_1.0.12 Bar TimeSig_6/8"
    )
    state, quarter = walk.state, 48
    assert (state.bar, state.bar_start, state.bar_length, state.now) == (
        1,
        4 * quarter,
        3 * quarter,
        4 * quarter,
    )
    walk("Position_6")
    assert (state.position, state.now, state.bar_end) == (6, 4 * quarter + 12, 7 * quarter)
    assert (state.notes, state.bar_notes, state.program, state.bars) == (1, 0, 5, 2)
    assert (Walk().state.bar, Walk().state.bars) == (-1, 0)


def test_tempo_comes_once_at_a_place_and_only_to_change() -> None:
    walk = Walk(line="Bar TimeSig_3/4 Position_0 Tempo_120.0")
    assert "Tempo" not in walk.types()
    walk("Program_0 Pitch_60 Velocity_63 Duration_1.0.12 Position_12")
    assert not walk.allows("Tempo_120.0")
    assert walk.allows("Tempo_100.0")


def test_program_comes_only_to_change() -> None:
    walk = Walk(line=f"{START} Pitch_60 Velocity_63 Duration_1.0.12")
    assert not walk.allows("Program_0")
    assert walk.allows("Program_1")
    assert walk("Bar TimeSig_3/4 Position_0").allows("Pitch_61")


def test_bos_comes_first_and_pad_behind_the_end() -> None:
    walk = Walk(line="BOS Bar TimeSig_3/4")
    assert not {"BOS", "PAD"} & walk.types()
    with pytest.raises(GrammarError, match="BOS_None may not follow TimeSig in bar 1, position 0"):
        walk("BOS")
    walk("Position_0 Program_0 Pitch_60 Velocity_63 Duration_1.0.12 EOS")
    assert walk.grammar.ended(walk.state)
    assert walk.types() == {"PAD"}
    walk("PAD PAD")
    assert walk.types() == {"PAD"}


def test_no_end_without_a_note() -> None:
    assert "EOS" not in Walk(line="Bar TimeSig_3/4").types()
    assert "EOS" in Walk(line=f"{START} Pitch_60 Velocity_63 Duration_1.0.12").types()


def test_midilike_closes_what_it_opens() -> None:
    walk = Walk("MIDILike", "TimeSig_4/4 Program_0 NoteOn_60 Velocity_63")
    assert not walk.allows("NoteOn_60")
    assert not walk.allows("NoteOff_60"), "a note without length"
    walk("TimeShift_1.0.12")
    assert walk.names("NoteOff") == ["60"]
    assert "EOS" not in walk.types()
    walk("Program_1")
    assert walk.names("NoteOff") == []
    walk("NoteOn_60 Velocity_63 TimeShift_0.1.12 NoteOff_60")
    assert "EOS" not in walk.types()
    walk("Program_0 NoteOff_60")
    assert "EOS" in walk.types()


def test_midilike_notes_have_a_longest_length() -> None:
    """The longest note is the longest time shift, 32 quarters: behind it the only way is to close it."""
    walk = Walk("MIDILike", "TimeSig_4/4 Program_0 NoteOn_60 Velocity_63 TimeShift_31.0.1")
    assert walk.names("TimeShift")[-1] == "1.0.12"
    walk("TimeShift_1.0.12")
    assert walk.names("TimeShift") == []
    assert walk("NoteOff_60").names("TimeShift")[-1] == "32.0.1"


def test_metre_without_bar_tokens_changes_only_at_bar_lines() -> None:
    walk = Walk("TSD", "TimeSig_3/4")
    assert walk.types() == {"Tempo", "Program", "TimeShift"}
    assert walk("TimeShift_1.0.12").names("TimeSig") == []
    walk("TimeShift_2.0.12")
    assert (walk.state.bar, walk.state.bars) == (1, 1)
    assert "3/4" not in walk.names("TimeSig")
    assert walk.allows("TimeSig_4/4")
    assert "TimeSig" not in walk("Program_0 Pitch_60 Velocity_63 Duration_1.0.12").types()


def test_pertok_stays_in_its_bar_and_micro_timing_does_not_overlap() -> None:
    walk = Walk("PerTok", "Bar TimeSig_3/4 Program_0 Pitch_60")
    assert walk.names("MicroTiming") == ["0", "1", "2", "3"], "nothing before the beginning"
    walk("MicroTiming_2 Velocity_63 Duration_0.1.12")
    assert not walk.allows("Pitch_60")
    assert walk.names("TimeShift")[-1] == "2.11.12"
    walk("TimeShift_0.1.12 Pitch_60")
    assert walk.names("MicroTiming") == ["2", "3"]


def test_micro_timing_begins_no_note_too_many() -> None:
    """Before its place on the grid a note would meet those that end there."""
    line = "Bar TimeSig_3/4 Program_0 Pitch_60 MicroTiming_0 Velocity_63 Duration_1.0.12 TimeShift_1.0.12 Pitch_62"
    free, alone = Walk("PerTok", line), Walk("PerTok", line, max_polyphony=1)
    assert free.names("MicroTiming") == ["-3", "-2", "-1", "0", "1", "2", "3"]
    assert alone.names("MicroTiming") == ["0", "1", "2", "3"]


def test_silence_is_bounded_as_the_reader_bounds_it() -> None:
    assert Limits().silence == MAX_SILENCE
    walk = Walk(line=f"{START} Pitch_60 Velocity_63 Duration_3.0.12" + " Bar TimeSig_12/4" * 21)
    assert walk.state.now == (3 + 12 * 20) * 48
    walk("Bar TimeSig_12/4")  # reaches 255 quarters behind the note, with 4 more to go
    assert walk.names("Position")[-1] == str(4 * 12)
    assert "Bar" not in walk.types()
    shift = Walk("TSD", "TimeSig_4/4" + " TimeShift_32.0.1" * 8)
    assert shift.names("TimeShift") == []
    assert shift("Program_0 Pitch_60 Velocity_63 Duration_1.0.12").names("TimeShift")[-1] == "32.0.1"


# -- constraints


def test_programs_and_pitches() -> None:
    walk = Walk(line="Bar TimeSig_3/4 Position_0", programs=(40, -1), pitch_range=(55, 57))
    assert walk.names("Program") == ["40", "-1"]
    assert walk("Program_40").names("Pitch") == ["55", "56", "57"]
    walk("Pitch_55 Velocity_63 Duration_1.0.12 Program_-1")
    assert len(walk.names("PitchDrum")) == 68, "drums have a range of their own"
    walk = Walk(line="Bar TimeSig_3/4 Position_0 Program_-1", drum_range=(35, 36), pitch_range=(55, 57))
    assert walk.names("PitchDrum") == ["35", "36"]


def test_time_signatures_and_changes() -> None:
    assert Walk(line="Bar", time_signatures=("3/4", "6/8")).names("TimeSig") == ["3/4", "6/8"]
    assert Walk(line="Bar TimeSig_5/8 Bar", allow_metre_changes=False).names("TimeSig") == ["5/8"]
    assert "Tempo" not in Walk(line="Bar TimeSig_3/4 Position_0", allow_tempo=False).types()
    walk = Walk(line="Bar TimeSig_3/4 Position_0 Tempo_120.0 Position_1", allow_tempo_changes=False)
    assert "Tempo" not in walk.types()


def test_polyphony() -> None:
    line = "Bar TimeSig_3/4 Position_0 Program_0 Pitch_60 Velocity_63 Duration_2.0.12"
    walk = Walk(line=line, max_polyphony=1, allow_tempo=False)
    assert walk.types() == {"Position", "Bar", "EOS"}
    assert walk.names("Position")[0] == "24"
    two = Walk(
        line=line + " Program_1 Pitch_61 Velocity_63 Duration_1.0.12", max_polyphony=2, allow_tempo=False
    )
    assert two.names("Position")[0] == "12"


def test_one_pitch_that_sounds_leaves_no_dead_end() -> None:
    """With one pitch allowed, only places behind its end may be chosen, and a program that cannot play may not."""
    walk = Walk(
        line="Bar TimeSig_3/4 Position_0 Program_3 Pitch_60 Velocity_63 Duration_2.0.12",
        programs=(3,),
        pitch_range=(60, 60),
        allow_tempo=False,
    )
    assert walk.types() == {"Position", "Bar", "EOS"}
    assert walk.names("Position")[0] == "24"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bars_are_limited(scheme: str) -> None:
    """Random music under min_bars 2 and max_bars 2 has two bars of 3/4 (Structured counts 4/4)."""
    limits = Constraints(programs=(0,), time_signatures=("3/4",), min_bars=2, max_bars=2)
    grammar = grammar_of(scheme, limits)
    rng = np.random.default_rng(1)
    for _ in range(20):
        ids = sample(grammar, rng, tokens=30, by_type=True)
        reader = TokenReader(grammar.vocabulary)
        notes = reader.read(ids)
        bar = (4 if scheme == "Structured" else 3) * reader.ticks_per_quarter
        assert max(note.onset for note in notes) < 2 * bar
        state = grammar.start()
        for token in ids:
            grammar.advance(state, token)
        assert state.bars == 2 or scheme == "Structured", (
            "a Structured piece may end before its second bar ends"
        )


def test_a_continuation_of_full_bars() -> None:
    """The sampler's registers: this bar must hold a note, and not before a place."""
    walk = Walk(line=f"{START} Pitch_60 Velocity_63 Duration_1.0.12 Bar TimeSig_3/4")
    walk.state.require_note_in_bar = 1
    walk.state.min_position = 12
    assert walk.types() == {"Position"}
    assert walk.names("Position")[0] == "12"
    assert walk("Position_20 Tempo_100.0").types() == {"Program", "Pitch", "Position"}
    walk("Pitch_64 Velocity_63 Duration_1.0.12")
    assert {"Bar", "EOS"} <= walk.types()
    walk("Bar TimeSig_3/4")
    assert (walk.state.require_note_in_bar, walk.state.min_position) == (0, 0)
    assert "Bar" in walk.types()


@pytest.mark.parametrize("scheme", ["TSD", "MIDILike", "PerTok"])
def test_the_same_without_positions(scheme: str) -> None:
    """min_position is a place in the bar; time shifts of at least that must come first."""
    walk = Walk(scheme, "TimeSig_4/4" if scheme != "PerTok" else "Bar TimeSig_4/4")
    walk.state.require_note_in_bar = 2
    walk.state.min_position = 24
    assert walk.types() == {"TimeShift"}
    walk("TimeShift_1.0.12")
    assert walk.types() == {"TimeShift"}
    assert "Program" in walk("TimeShift_1.0.12").types()
    assert walk.names("TimeShift")[-1] == "1.11.12", "not over the bar line without a note"


def test_what_cannot_be_had_is_waived() -> None:
    """A note is asked for, but the only pitch sounds over the whole bar: the bar may stay empty."""
    walk = Walk(
        line="Bar TimeSig_3/4 Position_0 Program_3 Pitch_60 Velocity_63 Duration_8.0.4 Bar TimeSig_3/4",
        programs=(3,),
        pitch_range=(60, 60),
    )
    walk.state.require_note_in_bar = 1
    assert "Bar" in walk.types()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"programs": ()}, "at least one program"),
        ({"pitch_range": (60, 50)}, "lowest and highest"),
        ({"pitch_range": (40, 50, 60)}, "lowest and highest"),
        ({"drum_range": (60, 50)}, "lowest and highest"),
        ({"time_signatures": ()}, "at least one metre"),
        ({"min_bars": 3, "max_bars": 2}, "min_bars must not be above max_bars"),
        ({"max_bars": 2, "allow_eos": False}, "allow_eos"),
    ],
)
def test_constraints_that_contradict_themselves(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        Constraints(**limits)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"programs": (128,)}, r"`programs\[0\]` must be .* between 0 and 127, or -1"),
        ({"programs": (0, "a")}, r"`programs\[1\]` must be a whole number"),
        ({"pitch_range": (-1, 50)}, r"`pitch_range\[0\]` must be .* between 0 and 127"),
        ({"pitch_range": 5}, "`pitch_range` must be a list of whole numbers"),
        ({"pitch_classes": (12,)}, "between 0 and 11"),
        ({"time_signatures": 5}, '`time_signatures` must be metres such as "3/4"'),
        ({"max_polyphony": 0}, "`max_polyphony` must be a whole number between 1 and 16512"),
        ({"max_polyphony": 2**62}, "`max_polyphony` must be a whole number between 1 and 16512"),
        ({"min_bars": 10**30}, "`min_bars` must be a whole number between 0 and"),
        ({"max_bars": 10**30}, "`max_bars` must be a whole number between 1 and"),
        ({"min_bars": -1}, "`min_bars` must be"),
        ({"max_bars": 0}, "`max_bars` must be"),
        ({"allow_eos": "no"}, "`allow_eos` must be True or False"),
    ],
)
def test_constraints_of_the_wrong_kind(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Constraints(**limits)


def test_constraints_that_no_token_meets() -> None:
    vocabulary = tokenizer_of("REMI").vocabulary
    with pytest.raises(GrammarError, match="no token for the time signature 17/32; known are"):
        Grammar.compile(vocabulary, Constraints(time_signatures=("17/32",)))
    small = Vocabulary(
        "REMI",
        tuple(t for t in vocabulary.tokens if t != "Program_40"),
        vocabulary.graph,
        vocabulary.positions_per_beat,
    )
    with pytest.raises(GrammarError, match="leave no program with a pitch"):
        Grammar.compile(small, Constraints(programs=(40,)))


def test_a_vocabulary_that_is_not_melodias() -> None:
    strange = Vocabulary("REMI", ("PAD_None", "BOS_None", "EOS_None", "Strange_1"), {}, 12)
    with pytest.raises(GrammarError, match="no grammar for tokens of type 'Strange'"):
        compile_tables(strange)
    mixed = Vocabulary("REMI", ("PAD_None", "BOS_None", "EOS_None", "Pitch_60", "Pitch_62"), {}, 12)
    with pytest.raises(GrammarError, match="not consecutive"):
        Grammar.compile(mixed)


# -- states


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_state_is_a_value(scheme: str) -> None:
    """Copied or saved and loaded at any moment, a state goes on as if nothing had been, and copies do not touch."""
    grammar = grammar_of(scheme, Constraints(programs=(0, -1), pitch_range=(60, 64)))
    rng = np.random.default_rng(3)
    for _ in range(10):
        ids = sample(grammar, rng, tokens=40, by_type=True)
        cut = int(rng.integers(len(ids)))
        state = grammar.start()
        for token in ids[:cut]:
            grammar.advance(state, token)
        before = state.to_array()
        copy, loaded = state.copy(), GrammarState.from_array(before)
        assert before.dtype == np.int64
        for token in ids[cut:]:
            assert np.array_equal(grammar.mask(copy), grammar.mask(loaded))
            grammar.advance(copy, token)
            grammar.advance(loaded, token)
        assert np.array_equal(copy.to_array(), loaded.to_array())
        assert np.array_equal(state.to_array(), before)


@pytest.mark.parametrize(
    ("register", "value"),
    [
        ("kind", 99),
        ("kind", -1),
        ("metre", 3),
        ("tempo", 3),
        ("program", 300),
        ("unit", 0),
        ("on_off", 1),
        ("bar", -5),
        ("place", -2),
        ("now", -1),
        ("heard", 1 << 60),
    ],
)
def test_a_state_of_another_vocabulary_is_refused(register: str, value: int) -> None:
    walk = Walk(line=f"{START} Pitch_60 Velocity_63 Duration_1.0.12")
    array = walk.state.to_array()
    assert np.array_equal(walk.grammar.restore(array).to_array(), array)
    array[REGISTERS.index(register)] = value
    with pytest.raises(GrammarError, match="another vocabulary"):
        walk.grammar.restore(array)


@pytest.mark.parametrize(
    "numbers", [[], [1, 2], [0] * (len(REGISTERS) + 1), [0] * len(REGISTERS) + [0, 500, 1]]
)
def test_arrays_that_are_no_state(numbers: list[int]) -> None:
    with pytest.raises(GrammarError, match="not a grammar state"):
        GrammarState.from_array(np.array(numbers))


def test_accepts_names_the_first_wrong_token() -> None:
    walk = Walk()
    line = "BOS Bar TimeSig_3/4 Position_5 Program_0 Pitch_60 Velocity_63 Duration_1.0.12 Position_4"
    ids = [walk.token(name) for name in line.split()]
    assert walk.grammar.accepts(ids) == 8
    assert walk.grammar.accepts(ids[:-1]) is None
    assert walk.grammar.accepts([*ids[:4], 10**6]) == 4
    assert walk.grammar.accepts([-1]) == 0


def test_advance_without_check_follows_a_seed_that_breaks_the_limits() -> None:
    """A seed may hold what its continuation may not."""
    walk = Walk(programs=(1,), time_signatures=("4/4",), max_bars=9)
    for name in f"{START} Pitch_60 Velocity_63 Duration_1.0.12 Bar".split():
        walk.grammar.advance(walk.state, walk.token(name), check=False)
    assert walk.names("TimeSig") == ["4/4"]
    assert walk("TimeSig_4/4 Position_0").names("Program") == ["1"]


# -- byte pairs


@pytest.fixture(scope="module")
def paired() -> Any:
    rng = np.random.default_rng(0)
    grammar = grammar_of("REMI", Constraints(programs=(0,), pitch_range=(60, 67), time_signatures=("3/4",)))
    pieces = [np.array(sample(grammar, rng, tokens=300, by_type=True)[:-1]) for _ in range(10)]
    base = tokenizer_of("REMI")
    return base.train_bpe(pieces, base.vocabulary.size + 60), pieces


def test_a_byte_pair_may_stand_where_its_parts_may(paired: Any) -> None:
    tokenizer, pieces = paired
    grammar, base = Grammar.compile(tokenizer.vocabulary), grammar_of("REMI")
    state = grammar.start()
    for token in tokenizer.apply_bpe(pieces[0])[:60].tolist():
        mask = grammar.mask(state)
        for pair, parts in tokenizer.vocabulary.expansions.items():
            alone = state.copy()
            try:
                for part in parts:
                    base.advance(alone, part)
                expected = True
            except GrammarError:
                expected = False
            assert mask[pair] == grammar.allows(state, pair) == expected
        grammar.advance(state, token)
