"""Branching: stretches are played several times from one state, and what fits best is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sampler_helpers import check_continuation, decoded_after_join, make_seed, notes_of, scale, tiny_sampler

from melodia import engine
from melodia.errors import ConfigError
from melodia.grammar import Grammar, NoteEvent
from melodia.notes import notes_of_events, notes_of_score
from melodia.sampler import Request, Sampler
from melodia.sampler.branching import FAR, Judge, closure, key_of, last_stretches, tonic_triad
from melodia.sampler.loop import Loop
from melodia.sampler.stretches import STRETCH_BARS
from melodia.sampler.texture import texture_of

QUARTER = 48  # grid ticks of the schemes' tokenizers
BAR = 4 * QUARTER
TRIAD = [(bar * 4 + beat, 1, pitch, 0) for bar in range(4) for beat, pitch in enumerate((48, 55, 64, 72))]
SEED = make_seed(TRIAD)


@pytest.mark.parametrize("scheme", ["REMI", "TSD", "Structured", "MIDILike", "PerTok"])
def test_branched_music_is_music(scheme: str) -> None:
    sampler = tiny_sampler(scheme)
    sampler.prime(SEED)
    for random_seed in range(3):
        made = sampler.generate(bars=5, random_seed=random_seed, branches=4)
        check_continuation(sampler, made, bars=5)
        assert decoded_after_join(sampler, made) == notes_of(made.score)
        assert made.report.random_seed == random_seed
        report = made.report
        assert report.stretches == 3
        wide = f", {report.widened} of them from 16" if report.widened else ""
        assert f"3 stretches chosen from 4 branches each{wide}, the last from 32 branches" in report.lines()


@pytest.mark.parametrize("scheme", ["REMI", "TSD"])
def test_where_the_branches_are(scheme: str) -> None:
    """Five bars are a bar, two bars and two bars: branches leave together at bar lines, and the first is the stream."""
    sampler = tiny_sampler(scheme)
    sampler.prime(SEED)
    request = Request(bars=5, random_seed=7, branches=3)
    root = lane = sampler._lane(sampler.state, request)
    assert lane.classes.tables.ticks_per_quarter == QUARTER
    judge = Judge(root.session.seed, root.programs)
    stretches = []
    while not lane.ended:
        before = list(lane.tokens), list(lane.notes), lane.session.grammar.to_array().tolist()
        group = judge.branches_of(lane)
        sampler._run(group)
        assert (lane.tokens, lane.notes, lane.session.grammar.to_array().tolist()) == before, "the root stays"
        assert len({branch.stretch for branch in group}) == 1
        assert len({tuple(branch.tokens) for branch in group}) > 1
        alone = judge.branches_of(lane)[2]
        sampler._run([alone])
        assert alone.tokens == group[2].tokens
        stretches.append(group[0].stretch)
        lane = group[0]
    first = root.session.context.join
    assert stretches == [
        (first, first + BAR),
        (first + BAR, first + 3 * BAR),
        (first + 3 * BAR, first + 5 * BAR),
    ]
    assert lane.tokens == sampler.generate(bars=5, random_seed=7).tokens.tolist()


def test_more_branches_where_all_are_far() -> None:
    """Four times as many, the first among them, but neither at the end nor where one is near or alone."""
    sampler = tiny_sampler()
    sampler.prime(SEED)
    root = sampler._lane(sampler.state, Request(bars=5, random_seed=7, branches=3))
    judge = Judge(root.session.seed, root.programs)
    group = judge.branches_of(root)
    sampler._run(group)
    distances = [judge.distance(branch) for branch in group]
    judge.far = min(distances)
    assert judge.more_of(root, group) == []
    judge.far = min(distances) - 1e-6
    more = judge.more_of(root, group)
    assert len(more) == 9
    assert judge.more_of(root, group[:1]) == []
    seeds = [branch.random_seed for branch in [*group, *more]]
    assert len(set(seeds)) == 12
    assert seeds[0] == 7

    judge.far = -1.0
    last = root
    while not last.plan.closes:
        (last, *_) = group = judge.branches_of(last)
        sampler._run(group)
    group = judge.branches_of(last)
    assert len(group) == 24
    sampler._run(group)
    assert judge.more_of(last, group) == []
    assert Judge(None, None).more_of(root, judge.branches_of(root)) == []


def test_half_of_the_branches_close_on_the_tonic() -> None:
    """They lean towards its triad in the last bar, but not under other chords nor where other music follows."""
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(4)))
    for wish, leans in (({}, True), ({"chords": "C F"}, False), ({"following": make_seed(scale(2))}, False)):
        root = sampler._lane(sampler.state, Request(bars=2, random_seed=7, branches=2, **wish))
        following = sampler._following(root.request)
        judge = Judge(root.session.seed, root.programs, following)
        group = judge.branches_of(root)
        assert len(group) == 16
        leaning = [branch.plan.closing is not None for branch in group]
        assert leaning == [leans and k % 2 == 1 for k in range(16)]
        if leans:
            assert judge.key is not None
            assert group[1].plan.closing == tonic_triad(judge.key)
            bias = group[1].bias
            assert bias is not None
            assert not bias.rows.any(), "not before the last bar"
            sampler._run(group)
            triad = list(tonic_triad(judge.key).classes)
            shares = []
            for half in (group[::2], group[1::2]):
                last = [
                    note.pitch % 12 for lane in half for note in lane.notes if note.onset >= lane.end - BAR
                ]
                shares.append(np.mean(np.isin(last, triad)))
            assert shares[1] > 1.3 * shares[0]


def test_the_best_of_more_branches_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = tiny_sampler()
    sampler.prime(SEED)
    near = sampler.generate(bars=4, random_seed=1, branches=4)
    monkeypatch.setattr(Judge, "distance", lambda judge, branch: 1000 - branch.random_seed % 997)
    far = sampler.generate(bars=4, random_seed=1, branches=4)
    assert far.report.widened == 1
    assert near.report.widened in (0, 1)
    step = 0x9E3779B97F4A7C15
    best = max(((1 + k * step) % 2**64 for k in range(16)), key=lambda random_seed: random_seed % 997)
    assert best not in [(1 + k * step) % 2**64 for k in range(4)], "else the test says nothing"
    assert far.tokens.tolist()[:20] == sampler.generate(bars=4, random_seed=best).tokens.tolist()[:20]


def test_what_is_far() -> None:
    """The farthest of the last 32 stretches from all of the music; of plain music, what is said to be far."""
    sampler = tiny_sampler()
    sampler.prime(SEED)
    assert Judge(sampler.state.seed, None).far == FAR
    odd = [(64 + beat / 4, 0.25, 24 + 3 * beat, 0) for beat in range(32)]  # two bars of another kind
    even = [(bar * 4 + beat, 1, pitch, 0) for bar in range(16) for beat, pitch in enumerate((48, 55, 64, 72))]
    seed = make_seed([*even, *odd, *[(start + 72, *note) for start, *note in even]])
    judge = Judge(seed, None)
    quarter = seed.ticks_per_quarter
    (whole,) = judge.around
    notes = notes_of_score(seed)
    there = texture_of(notes, quarter, 64 * quarter, 72 * quarter)
    assert there is not None
    assert judge.far == there.distance(whole) > FAR
    assert len(last_stretches(notes, seed)) == 17
    longer = make_seed([*odd, *[(72 + start + 64 * k, *note) for k in range(5) for start, *note in even]])
    assert len(last_stretches(notes_of_score(longer), longer)) == 32
    assert Judge(longer, None).far == FAR, "what was long ago does not count"


@pytest.mark.skipif(engine.reason() is not None, reason=f"no engine: {engine.reason()}")
@pytest.mark.parametrize("scheme", ["REMI", "TSD"])
def test_bursts_tokens_and_the_reference_agree(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = tiny_sampler(scheme)
    settings: dict[str, Any] = {"bars": 5, "branches": 3, "pitch_bias": 0.5, "random_seed": 3}
    sampler.prime(SEED)
    made = [sampler.generate_many(2, **settings)]
    reference = Sampler(sampler.model, sampler.tokenizer, backend="reference")
    reference.prime(SEED)
    made.append(reference.generate_many(2, **settings))
    made.append([sampler.generate(session=session, **settings) for session in range(2)])
    monkeypatch.setattr("melodia.sampler.sampler.Loop", lambda *them: Loop(*them, bursts=False))
    made.append(sampler.generate_many(2, **settings))
    for others in made[1:]:
        assert [one.tokens.tolist() for one in others] == [one.tokens.tolist() for one in made[0]]


@pytest.mark.slow
def test_branches_fit_better() -> None:
    """The texture is nearer to the seed's; without a seed, where the close is all that counts, more pieces close."""
    sampler = tiny_sampler()
    sampler.prime(SEED)
    (texture_of_seed,) = Judge(sampler.state.seed, None).around
    distances, closes = [], []
    for branches in (1, 8):
        made = sampler.generate_many(12, bars=6, random_seed=1, branches=branches)
        played = [notes_of_events(one._notes) for one in made]
        textures = [texture_of(notes, QUARTER, 0, 4 * BAR) for notes in played]  # then it closes
        distances.append(
            np.mean([texture.distance(texture_of_seed) for texture in textures if texture is not None])
        )
    sampler.prime(None)
    for branches in (1, 8):
        made = sampler.generate_many(12, bars=3, random_seed=1, branches=branches)
        closes.append(
            np.mean([closure(one._notes, QUARTER, key_of(notes_of_events(one._notes))) for one in made])
        )
    assert distances[1] < 0.95 * distances[0]
    assert closes[1] > closes[0]


@pytest.mark.parametrize("length", [{"bars": 1}, {"bars": 2}, {"seconds": 9.0}, {"tokens": 90}])
def test_every_length(length: dict[str, Any]) -> None:
    sampler = tiny_sampler()
    sampler.prime(SEED)
    chosen = []
    for random_seed in range(3):
        made = sampler.generate(random_seed=random_seed, branches=4, **length)
        check_continuation(sampler, made)
        plain = sampler.generate(random_seed=random_seed, **length)
        if (
            "tokens" in length
        ):  # each branch has bars of its own: it ends behind the one in which it had enough
            ids = made.tokens.tolist()
            assert bar_behind(sampler, ids[: length["tokens"]]) == bar_behind(sampler, ids)
            assert len(ids) >= length["tokens"]
        else:
            assert made.report.bars == plain.report.bars
        chosen.append(made.tokens.tolist() != plain.tokens.tolist())
    assert any(chosen), "the stream's own branch was never the worse one"


def bar_behind(sampler: Sampler, ids: list[int]) -> int:
    """The bar that tokens behind the seed lead to."""
    grammar, state = Grammar.compile(sampler.vocabulary), sampler.state.grammar
    for token in ids:
        grammar.advance(state, token)
    return state.bar


@pytest.mark.parametrize("metre", [(3, 4), (7, 8), (5, 4)])
def test_metres_and_unfinished_bars(metre: tuple[int, int]) -> None:
    """A bar of a metre that no token has is written as several; a bar that is completed is not counted."""
    sampler = tiny_sampler()
    notes = [note for note in scale(4, metre) if note[0] < 4 * 4 * metre[0] / metre[1] - 1.5]
    sampler.prime(make_seed(notes, metre))
    made = sampler.generate(bars=4, random_seed=2, branches=3)
    check_continuation(sampler, made, bars=4)
    free = sampler.generate(bars=4, random_seed=2, branches=3, metre_changes=True)
    assert free.report.bars == 4


def test_without_a_seed_only_the_end_is_branched() -> None:
    sampler = tiny_sampler()
    bars = []  # begun before the first token that differs
    for random_seed in range(8):
        plain = sampler.generate(bars=6, random_seed=random_seed)
        made = sampler.generate(bars=6, random_seed=random_seed, branches=8)
        assert made.report.bars == 6
        assert (made.report.stretches, made.report.closing) == (1, 64)
        assert plain.report.stretches == 0
        if plain.tokens.tolist() != made.tokens.tolist():
            shorter = min(len(plain.tokens), len(made.tokens))
            differ = np.flatnonzero(plain.tokens[:shorter] != made.tokens[:shorter])
            same = plain.tokens[: differ[0] if len(differ) else shorter]
            bars.append(np.isin(same, sampler.vocabulary.ids_of("Bar")).sum())
    assert len(bars) > 2, "a branch of its own was chosen now and then"
    assert min(bars) == 6 - STRETCH_BARS


def test_the_state_behind_is_that_of_the_branch_that_was_kept() -> None:
    sampler = tiny_sampler(sides=())  # which tell the generation how many bars are left
    sampler.prime(SEED)
    made = sampler.generate(bars=4, random_seed=1, branches=5)
    ids = np.concatenate([sampler.tokenizer.encode(SEED).ids, made.tokens])
    again = tiny_sampler(sides=())
    again.prime(ids)
    np.testing.assert_allclose(made.state.logits, again.state.logits, atol=2e-5)
    more = sampler.generate(state=made.state, bars=2, random_seed=1)
    assert more.report.bars == 2


def test_closure_by_hand() -> None:
    """Twelve ticks a quarter; before the last chord eight quarter notes, so that their mean is known."""

    def played(*pitches: int, length: int = 48, program: int = 0) -> list[NoteEvent]:
        before = [NoteEvent(12 * k, 12, 0, 60, 80) for k in range(8)]
        return [*before, *(NoteEvent(96, length, program, pitch, 80) for pitch in pitches)]

    def score(notes: list[NoteEvent], key: int = 0) -> float:
        return closure(notes, 12, key)

    assert score(played(48, 64, 72)) == 1 + 1 + 0.5 + 1  # length, bass, top, triad
    assert score(played(48, 65, 72)) == 1 + 1 + 0.5 + 1 / 2  # C twice and F, which is not of the triad
    assert score(played(43, 60, 67)) == 1 + 0 + 0 + 1  # on the fifth
    assert score(played(45, 60, 72), key=12 + 9) == 1 + 1 + 0.5 + 1  # A minor, its third on top
    assert score(played(45, 64, 73), key=12 + 9) == pytest.approx(1 + 1 + 0 + 2 / 3)  # not its major third
    mean = (8 * 12 + 12) / 9
    assert score(played(60, length=12)) == pytest.approx(12 / (2 * mean) + 1 + 1 + 0.5)
    assert score(played(60, length=6)) == pytest.approx(1 + 1 + 0.5)  # shorter than a quarter
    assert score(played(72)) == 1 + 0.5 + 1 + 0.5  # above the mean pitch, no bass
    running = [*played(48, 64, 72), NoteEvent(96 + 36, 12, 0, 76, 80)]
    mean = (8 * 12 + 3 * 48 + 12) / 12
    assert score(running) == pytest.approx(12 / (2 * mean) + 1 + 1 + 0.5)  # what begins last is short
    drums = played(36, program=-1)
    assert score(drums) == score([note for note in drums if note.program == 0]), "drums do not count"
    assert closure(played(48), 12, -1) == 1, "no key"
    assert closure([], 12, 0) == 0


def test_the_key_by_hand() -> None:
    new = [NoteEvent(0, 12, 0, pitch, 80) for pitch in (57, 60, 64, 69, 71, 68)]
    assert key_of(notes_of_events(new)) == 12 + 9
    assert key_of(notes_of_events([NoteEvent(0, 12, -1, 38, 80)])) == -1, "drums have no key"


def test_the_distance_of_textures_by_hand() -> None:
    seed = [NoteEvent(12 * beat, 12, 0, pitch, 80) for beat in range(8) for pitch in (48, 67)]

    def distance(notes: list[NoteEvent]) -> float:
        return apart(seed, notes)

    def apart(before: list[NoteEvent], notes: list[NoteEvent]) -> float:
        textures = [texture_of(notes_of_events(some), 12, 0, 96) for some in (notes, before)]
        assert textures[0] is not None
        assert textures[1] is not None
        return textures[0].distance(textures[1])

    assert distance(seed) == 0
    octave = [note._replace(pitch=note.pitch + 12) for note in seed]
    assert distance(octave) == pytest.approx((12 + 12 + 12) / 4), "both lines and the register"
    flute = [note._replace(program=73) for note in seed]
    assert distance(flute) == pytest.approx(1 + 1), "another program, and the seed's rests"
    tune = [
        note for note in seed if note.pitch == 67
    ]  # half the notes, one voice, one note an onset, the bass 19 higher, one class of two
    assert distance(tune) == pytest.approx(np.log(2.125 / 1.125) + 2 * np.log(2) + 19 / 4 + 0.5 + 9.5 / 4)
    swung = [note._replace(pitch=note.pitch + 8 * (note.onset % 24 // 12)) for note in seed]
    outer_and_register, classes, step, repeated = 3 * 4 / 4, 0.5, 8 / 4, 2 * 1.0
    assert distance(swung) == pytest.approx(outer_and_register + classes + step + repeated)
    louder = [note._replace(velocity=104) for note in seed]
    assert distance(louder) == pytest.approx(24 / 12)
    uneven = [note._replace(velocity=80 + 6 * (-1) ** (note.onset // 12)) for note in seed]
    assert distance(uneven) == pytest.approx(6 / 12)
    assert apart(uneven, seed) == pytest.approx((6 / 2) / 12), (
        "dynamics may be half as wide, and lie half beside"
    )
    assert apart(uneven, [note._replace(velocity=83) for note in seed]) == pytest.approx((6 / 2) / 12)
    short = [note._replace(duration=6) for note in seed]
    assert distance(short) == pytest.approx(2 * np.log(2)), "the notes, and how much of a quarter note sounds"
    line = apart(tune, seed) - distance(tune)
    assert line == pytest.approx(4 * (2 - 1)), "no chords in a part that has none"
    turns = [note._replace(program=int(note.pitch == 67)) for note in seed]  # two programs at once
    rows = [note._replace(program=int(note.onset >= 48)) for note in seed]  # one behind the other
    textures = [texture_of(notes_of_events(notes), 12, 0, 96) for notes in (turns, rows)]
    assert [texture.players for texture in textures if texture is not None] == [2, 1]
    drums = [*seed, *(NoteEvent(12 * beat, 1, -1, 38, 80) for beat in range(8))]
    assert distance(drums) == pytest.approx(np.log(1.125 / 0.125) + 1 / 3)
    assert texture_of(notes_of_events(seed), 12, 96, 192) is None


def test_notes_without_length_have_a_texture() -> None:
    for onsets in ((0,), (4,), tuple(range(16))):
        judge = Judge(make_seed([(onset, 0, 60 + onset, 0) for onset in onsets]), None)
        (texture,) = judge.around
        assert texture.distance(texture) == 0
        assert judge.far == FAR


def test_programs_that_may_not_play_do_not_count() -> None:
    seed = make_seed([*TRIAD, *scale(4, program=40)])
    (texture,) = Judge(seed, (0,)).around
    assert texture.shares == {0: 1.0}
    assert (
        Judge(seed, (73,), beside=True).around == Judge(None, None).around == Judge(seed, (-1,)).around == []
    )


def test_other_programs_are_compared_as_music_of_anyone() -> None:
    """Where they take the place of those before: how dense, how high and low, and which pitch classes."""
    seed = make_seed([*TRIAD, *scale(4, program=40), *scale(4, program=-1)])
    judge, own = Judge(seed, (73, 74, -1)), Judge(seed, None)
    assert (judge.anyone, own.anyone) == (True, False)
    (texture,), (whole,) = judge.around, own.around
    assert (texture.density, texture.top, texture.bottom) == (whole.density, whole.top, whole.bottom)
    assert texture.classes.tolist() == whole.classes.tolist()
    assert texture.drum_density == 0 < whole.drum_density
    assert not texture.shares
    assert judge.key == own.key
    sampler = tiny_sampler()
    sampler.prime(seed)
    root = sampler._lane(sampler.state, Request(bars=5, programs=(73, 74), branches=3))
    branches = judge.branches_of(root)
    assert len(branches) == 3
    sampler._run(branches)
    distances = [judge.distance(branch) for branch in branches]
    assert len(set(distances)) > 1
    for branch, distance in zip(branches, distances, strict=True):
        notes = notes_of_events(branch.notes[branch.before :])
        found = texture_of(notes, branch.classes.tables.ticks_per_quarter, *branch.stretch)
        assert found is not None
        assert distance == found.of_anyone().distance(texture)


def test_what_cannot_be() -> None:
    for branches in (0, 65, True, 2.0):
        with pytest.raises(ConfigError, match=r"`branches` must be a whole number between 1 and 64"):
            Request(branches=branches)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`may_end` leaves it open"):
        Request(branches=2, may_end=True)
    with pytest.raises(ConfigError, match="a stream cannot take back what was heard"):
        tiny_sampler().stream(bars=4, branches=2)


@pytest.mark.parametrize(
    "length", [{"tokens": 40}, {"seconds": 7, "tempo_changes": True}, {"seconds": 7, "metre_changes": True}]
)
def test_music_whose_last_bar_is_found_late_is_branched_as_a_whole(length: dict[str, Any]) -> None:
    """With compiled code and without: no branch leaves inside the last bar."""
    native = tiny_sampler()
    reference = Sampler(native.model, native.tokenizer, backend="reference")
    for random_seed in range(3):
        tokens = []
        for sampler in (native, reference):
            sampler.prime(SEED)
            made = sampler.generate(random_seed=random_seed, branches=2, **length)
            assert (made.report.stretches, made.report.closing) == (1, 2)
            tokens.append(made.tokens.tolist())
        assert tokens[0] == tokens[1]
