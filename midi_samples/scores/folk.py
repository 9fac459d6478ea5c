"""Traditional tunes, with accompaniments made for this collection."""

from __future__ import annotations

from scores.notation import Part, Score, bars

NYLON_GUITAR, STEEL_GUITAR, ACCORDION, ACOUSTIC_BASS = 24, 25, 21, 32
FLUTE, PICCOLO, SHAKUHACHI, BANJO, KOTO, FIDDLE = 73, 72, 77, 105, 107, 110

# Greensleeves ------------------------------------------------------------------------------------------
LUTE = {
    "Am": "a2:1/2 e3 c4", "C": "c3:1/2 g3 e4", "G": "g2:1/2 d3 b3", "Em": "e2:1/2 b2 g3",
    "F": "f2:1/2 c3 a3", "E": "e2:1/2 b2 g#3",
}  # fmt: skip


def lute(chords: str) -> str:
    """Broken chords, two to a bar."""
    names = chords.split()
    return bars(*(f"{LUTE[a]} {LUTE[b]}" for a, b in zip(names[::2], names[1::2], strict=True)))


GREENSLEEVES = Score(
    slug="greensleeves",
    title="Greensleeves",
    composer="traditional (England)",
    date="about 1580",
    metre="6/8",
    key="Am",
    tempo="1:84 18:76",
    texture="flute and guitar",
    parts=[
        Part(
            "flute",
            FLUTE,
            [
                """
                !mp r:3 | r:5/2 a4:1/2 |
                c5:1 d5:1/2 e5:3/4 f#5:1/4 e5:1/2 | d5:1 b4:1/2 g4:3/4 a4:1/4 b4:1/2 |
                c5:1 a4:1/2 a4:3/4 g#4:1/4 a4:1/2 | !> b4:1 g#4:1/2 e4:1 !mp a4:1/2 |
                c5:1 d5:1/2 e5:3/4 f#5:1/4 e5:1/2 | d5:1 b4:1/2 g4:3/4 a4:1/4 b4:1/2 |
                !> c5:3/4 b4:1/4 a4:1/2 g#4:3/4 f#4:1/4 g#4:1/2 | !p a4:3/2 a4 |
                !f g5:3/2 g5:3/4 f#5:1/4 e5:1/2 | !> d5:1 b4:1/2 g4:3/4 a4:1/4 b4:1/2 |
                !mf c5:1 a4:1/2 a4:3/4 g#4:1/4 a4:1/2 | b4:1 g#4:1/2 e4:3/2 |
                !f g5:3/2 g5:3/4 f#5:1/4 e5:1/2 | !> d5:1 b4:1/2 g4:3/4 a4:1/4 b4:1/2 |
                !mp c5:3/4 b4:1/4 a4:1/2 !> g#4:3/4 f#4:1/4 g#4:1/2 | !p a4:3
                """
            ],
            balance=6,
        ),
        Part(
            "guitar",
            NYLON_GUITAR,
            [
                bars(
                    "!mp " + lute("Am Am Am Am"),
                    lute("Am C G Em Am F E E Am C G Em"),
                    "!> " + lute("Am E"),
                    "!p " + lute("Am Am"),
                    "!mf " + lute("C C G Em Am F E E C C G Em"),
                    "!> " + lute("Am E"),
                    "!p a2:1/2 e3 a3 c4+e4:3/2",
                )
            ],
            balance=-10,
        ),
    ],
)

# The Irish Washerwoman ---------------------------------------------------------------------------------
STRUM = {
    "G": "g2:1 b3+d4:1/2 d3:1 b3+d4:1/2", "Am": "a2:1 c4+e4:1/2 e3:1 c4+e4:1/2",
    "D": "d3:1 a3+d4:1/2 a2:1 a3+d4:1/2", "C D": "c3:1 c4+e4:1/2 d3:1 a3+d4:1/2",
    "C G": "c3:1 c4+e4:1/2 g2:1 b3+d4:1/2",
}  # fmt: skip
JIG_A = """
    b4:1/2 g4 g4 d4 g4 g4 | b4 g4 b4 d5 c5 b4 | c5 a4 a4 e4 a4 a4 | c5 a4 c5 e5 d5 c5 |
    b4 g4 g4 d4 g4 g4 | b4 g4 b4 d5 c5 b4 | c5 b4 c5 a4 d5 c5
"""
JIG_B = """
    g5:1/2 d5 g5 g5 d5 g5 | g5 d5 g5 b5 a5 g5 | f#5 d5 f#5 f#5 d5 f#5 | f#5 d5 f#5 a5 g5 f#5 |
    e5 g5 g5 d5 g5 g5 | c5 g5 g5 b4 g5 g5 | c5 b4 c5 a4 d5 c5
"""
JIG_CHORDS = {
    "A": ["G", "G", "Am", "D", "G", "G", "C D", "G"],
    "B": ["G", "G", "D", "D", "C G", "C G", "C D", "G"],
}

IRISH_WASHERWOMAN = Score(
    slug="irish_washerwoman",
    title="The Irish Washerwoman",
    composer="traditional (Ireland, England)",
    date="18th century",
    metre="6/8",
    key="G",
    tempo="1:165 33:150",
    texture="jig, fiddle and guitar",
    parts=[
        Part(
            "fiddle",
            FIDDLE,
            [
                bars(
                    "!mf r:2 d5:1/2 c5",
                    JIG_A,
                    "b4 g4 g4 g4 d5 c5",
                    JIG_A,
                    "b4 g4 g4 g4:1 g5:1/2",
                    "!f " + JIG_B,
                    "b4 g4 g4 g4:1 g5:1/2",
                    JIG_B,
                    "b4 g4 g4 g4:3/2",
                )
            ],
        ),
        Part(
            "guitar",
            STEEL_GUITAR,
            [
                bars(
                    "!mp r:3",
                    *(STRUM[chord] for part in "AAB" for chord in JIG_CHORDS[part]),
                    *(STRUM[chord] for chord in JIG_CHORDS["B"][:-1]),
                    "g2:1 b3+d4:1/2 g2+d3+b3+d4:3/2",
                )
            ],
            balance=-4,
        ),
    ],
)

# Soldier's Joy -----------------------------------------------------------------------------------------
REEL_BASS = {
    "D": "d2:2 a2", "A": "a1:2 e2", "G": "g2:2 d2", "G A": "g2:2 a2", "Bm": "b1:2 f#2", "Em": "e2:2 b1",
    "D A": "d2:2 a1",
}  # fmt: skip
REEL_BANJO = {
    "D": "a3+d4+f#4", "A": "a3+c#4+e4", "G": "g3+b3+d4", "Bm": "f#3+b3+d4", "Em": "g3+b3+e4",
}  # fmt: skip
REEL_A = (
    "a4:1/2 f#4 d4 f#4 a4 f#4 d4 f#4 | a4:1 d5 d5 c#5:1/2 b4 | a4 f#4 d4 f#4 a4 f#4 d4 f#4 | "
    "g4:1 e4 e4 f#4:1/2 g4 | a4 f#4 d4 f#4 a4 f#4 d4 f#4 | a4:1 d5 d5 g5 | f#5:1/2 a5 f#5 d5 e5 g5 e5 c#5"
)
REEL_B = (
    "f#5:1 f#5:1/2 d5 f#5 a5 g5 f#5 | e5:1 e5:1/2 c#5 e5 g5 f#5 e5 | f#5:1 f#5:1/2 d5 f#5 a5 g5 f#5 | "
    "e5 d5 c#5 b4 a4:1 d5:1/2 e5 | f#5 d5 f#5 d5 f#5 a5 g5 f#5 | e5 c#5 e5 c#5 e5 g5 f#5 e5 | "
    "f#5 a5 f#5 d5 e5 g5 e5 c#5"
)
REEL_CHORDS = {
    "A": ["D", "D", "D", "A", "D", "D", "D A", "D"],
    "B": ["D", "A", "D", "G A", "Bm", "Em", "D A", "D"],
}


def banjo(chords: str) -> str:
    """Chords on the off-beats, one or two chords a bar."""
    first, *second = chords.split()
    last = second[0] if second else first
    return f"r:1 {REEL_BANJO[first]}:1' r:1 {REEL_BANJO[last]}:1'"


REEL_FORM = REEL_CHORDS["A"] * 2 + REEL_CHORDS["B"] * 2

SOLDIERS_JOY = Score(
    slug="soldiers_joy",
    title="Soldier's Joy",
    composer="traditional (Scotland)",
    date="18th century",
    metre="4/4",
    key="D",
    tempo="1:192 33:176",
    texture="reel, fiddle, banjo and bass",
    parts=[
        Part(
            "fiddle",
            FIDDLE,
            [
                bars(
                    "!mf r:3 f#4:1/2 g4",
                    REEL_A,
                    "e5:1 d5 d5 f#4:1/2 g4",
                    REEL_A,
                    "e5:1 d5 d5 !f d5:1/2 e5",
                    REEL_B,
                    "e5:1 d5 d5 d5:1/2 e5",
                    REEL_B,
                    "e5:1 d5 d5:2",
                )
            ],
        ),
        Part(
            "banjo",
            BANJO,
            [bars("!mp r:4", *(banjo(chords) for chords in REEL_FORM[:-1]), "r:1 a3+d4+f#4:1' a3+d4+f#4:2")],
        ),
        Part(
            "bass",
            ACOUSTIC_BASS,
            [bars("!mf r:4", *(REEL_BASS[chords] for chords in REEL_FORM[:-1]), "d2:1 a1 d2:2")],
        ),
    ],
)

# Drunken Sailor ----------------------------------------------------------------------------------------
SHANTY_VERSE = """
    a4:1 a4:1/2 a4 a4:1 a4:1/2 a4 | a4:1 d4 f4 a4 | g4 g4:1/2 g4 g4:1 g4:1/2 g4 | g4:1 c4 e4 g4 |
    a4:1 a4:1/2 a4 a4:1 a4:1/2 a4 | a4:1 b4 c5 d5 | c5 a4 g4 e4 | d4:2 d4
"""
SHANTY_CHORUS = """
    a4:2> a4:3/2 a4:1/2 | a4:1 d4 f4 a4 | g4:2> g4:3/2 g4:1/2 | g4:1 c4 e4 g4 |
    a4:2> a4:3/2 a4:1/2 | a4:1 b4 c5 d5 | c5 a4 g4 e4 | d4:2 d4
"""
SHANTY_BASS = """
    d2:1 a2 d2 a2 | % | c2 g2 c2 g2 | % | d2 a2 d2 a2 | % | c2 g2 a1 e2
"""
SHANTY_GUITAR = """
    r:1 a3+d4+f4:1' r a3+d4+f4' | % | r g3+c4+e4' r g3+c4+e4' | % | r a3+d4+f4' r a3+d4+f4' | % |
    r g3+c4+e4' r a3+c4+e4'
"""
SHANTY_DRUMS = {
    "verse": "bd+ch:1/2 ch rs+ch ch bd+ch ch rs+ch ch",
    "chorus": "bd+ch:1/2 ch sn+ch> ch bd+ch bd+ch sn+ch> oh",
    "first": "bd+cr:1/2> ch sn+ch> ch bd+ch bd+ch sn+ch> oh",
    "fill": "bd+ch:1/2 ch sn ch sn:1/4 sn ht ht mt mt lt> lt",
    "end": "bd+ch:1/2 ch sn+ch> ch bd+cr:2>",
}

DRUNKEN_SAILOR = Score(
    slug="drunken_sailor",
    title="Drunken Sailor",
    composer="traditional (sea shanty)",
    date="before 1840",
    metre="4/4",
    key="Dm",
    scale_note="dorian: B natural",
    tempo="1:176 32:160",
    texture="accordion, guitar, bass and drum kit",
    parts=[
        Part(
            "accordion",
            ACCORDION,
            [
                bars(
                    "!mf " + SHANTY_VERSE, "!f " + SHANTY_CHORUS, "!mf " + SHANTY_VERSE, "!f " + SHANTY_CHORUS
                )
            ],
        ),
        Part(
            "guitar",
            STEEL_GUITAR,
            [
                bars(
                    "!mp " + SHANTY_GUITAR,
                    "r:1 a3+d4+f4:1' a3+d4+f4:2",
                    "!mf " + SHANTY_GUITAR,
                    "r:1 a3+d4+f4:1' a3+d4+f4:2",
                    "!mp " + SHANTY_GUITAR,
                    "r:1 a3+d4+f4:1' a3+d4+f4:2",
                    "!mf " + SHANTY_GUITAR,
                    "r:1 a3+d4+f4:1' a3+d4+f4:2",
                )
            ],
        ),
        Part(
            "bass",
            ACOUSTIC_BASS,
            [bars(*(f"{loudness} {SHANTY_BASS} | d2:1 a2 d2:2" for loudness in ("!mf", "!f", "!mf", "!f")))],
        ),
        Part(
            "drums",
            None,
            [
                bars(
                    "!mp " + SHANTY_DRUMS["verse"],
                    *[SHANTY_DRUMS["verse"]] * 6,
                    SHANTY_DRUMS["fill"],
                    "!mf " + SHANTY_DRUMS["first"],
                    *[SHANTY_DRUMS["chorus"]] * 6,
                    SHANTY_DRUMS["fill"],
                    "!mp " + SHANTY_DRUMS["first"],
                    *[SHANTY_DRUMS["verse"]] * 6,
                    SHANTY_DRUMS["fill"],
                    "!f " + SHANTY_DRUMS["first"],
                    *[SHANTY_DRUMS["chorus"]] * 6,
                    SHANTY_DRUMS["end"],
                )
            ],
        ),
    ],
)

# Yankee Doodle -----------------------------------------------------------------------------------------
FIFE = """
    bb5:1/2 bb5 c6 d6 | bb5 d6 c6 f5 | bb5 bb5 c6 d6 | bb5:1 a5 |
    bb5:1/2 bb5 c6 d6 | eb6 d6 c6 bb5 | a5 f5 g5 a5 | bb5:1 bb5 |
    g5:3/4 a5:1/4 g5:1/2 f5 | g5 a5 bb5:1 | f5:3/4 g5:1/4 f5:1/2 eb5 | d5:1 f5 |
    g5:3/4 a5:1/4 g5:1/2 f5 | g5 a5 bb5 g5 | f5 bb5 a5 c6 | bb5:1 bb5
"""
SECOND_FIFE = """
    d5:1/2 d5 eb5 f5 | d5 f5 eb5 a4 | d5 d5 eb5 f5 | d5:1 c5 |
    d5:1/2 d5 eb5 f5 | g5 f5 eb5 d5 | c5 a4 bb4 c5 | d5:1 d5 |
    bb4:3/4 c5:1/4 bb4:1/2 a4 | bb4 c5 d5:1 | a4:3/4 bb4:1/4 a4:1/2 g4 | f4:1 a4 |
    bb4:3/4 c5:1/4 bb4:1/2 a4 | bb4 c5 d5 bb4 | a4 d5 c5 eb5 | d5:1 d5
"""
FIELD_DRUMS = {
    "march": "bd+sn:1/2> sn:1/4 sn sn:1/2> sn",
    "roll": "bd+sn:1/4> sn sn sn bd+sn:1/2> sn",
    "end": "bd+sn:1/2> sn:1/4 sn bd+sn:1>",
}
FIELD_FOUR = f"{FIELD_DRUMS['march']} | % | {FIELD_DRUMS['roll']} | {FIELD_DRUMS['march']}"
FIELD_CADENCE = f"{FIELD_DRUMS['march']} | % | {FIELD_DRUMS['roll']} | {FIELD_DRUMS['end']}"

YANKEE_DOODLE = Score(
    slug="yankee_doodle",
    title="Yankee Doodle",
    composer="traditional (America)",
    date="about 1755",
    metre="2/4",
    key="Bb",
    tempo="1:112 32:104",
    texture="fifes and field drums",
    remark="the second time in two parts",
    parts=[
        Part("fife 1", PICCOLO, [bars("!mf " + FIFE, "!f " + FIFE)]),
        Part("fife 2", FLUTE, [bars("!mf r:2", *["r:2"] * 15, "!f " + SECOND_FIFE)], balance=-6),
        Part(
            "drums",
            None,
            [
                bars("!mp " + FIELD_FOUR, FIELD_CADENCE, FIELD_FOUR, FIELD_CADENCE)
                + " | "
                + bars("!mf " + FIELD_FOUR, FIELD_CADENCE, FIELD_FOUR, FIELD_CADENCE)
            ],
        ),
    ],
)

# Sakura ------------------------------------------------------------------------------------------------
SAKURA_MIDDLE = """
    !mf a5:1 b5 c6 b5 | a5 b5:1/2 a5 f5:2 | e5:1 c5 e5 f5 | !> e5 e5:1/2 c5 b4:2
"""
KOTO_CALL = "a3:1/2 e4 a4 e4 b3 e4 b4 e4"
KOTO_MIDDLE = """
    !mp a3:1/2 e4 a4 e4 c4 e4 a4 e4 | a3 e4 a4 e4 f3 c4 f4 c4 | e3 b3 e4 b3 f3 c4 f4 c4 |
    !> e3 b3 e4 b3 b2 e3 b3 e4
"""

SAKURA = Score(
    slug="sakura",
    title="Sakura",
    composer="traditional (Japan)",
    date="19th century",
    metre="4/4",
    key="Am",
    scale_note="Japanese in scale: E F A B C",
    tempo="1:72 15:66 16:52",
    texture="shakuhachi and koto",
    parts=[
        Part(
            "shakuhachi",
            SHAKUHACHI,
            [
                bars(
                    "!p r:4 | r",
                    "!p a5:1 a5 b5:2 | !mp a5:1 a5 b5:2",
                    SAKURA_MIDDLE,
                    SAKURA_MIDDLE,
                    "!p a5:1 a5 b5:2 | a5:1 a5 b5:2 | !> e5:1 f5 b5:1/2 a5 f5:1 | !pp e5:4",
                )
            ],
            balance=4,
        ),
        Part(
            "koto",
            KOTO,
            [
                bars(
                    "!mp e4:1/2 f4 a4 b4 c5:1 b4:1/2 a4 | !> f4:1 e4 e3+e4:2",
                    f"!p {KOTO_CALL} | !mp {KOTO_CALL}",
                    KOTO_MIDDLE,
                    KOTO_MIDDLE,
                    f"!p {KOTO_CALL} | {KOTO_CALL}",
                    "!> e3:1/2 b3 e4 b3 f3 c4 f4 c4 | !pp e3:1/2 b3 e4:1 e3+b3+e4:2",
                )
            ],
        ),
    ],
)
