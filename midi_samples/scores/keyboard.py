"""Pieces for a keyboard, two hands."""

from __future__ import annotations

from scores.notation import Part, Score, bars

PIANO, HARPSICHORD = 0, 6

MINUET_G_MAJOR = Score(
    slug="petzold_minuet_g_major",
    title="Minuet in G, BWV Anh. 114",
    composer="Christian Petzold (1677–1733)",
    date="before 1725",
    metre="3/4",
    key="G",
    tempo="1:126 31:112 32:96",
    texture="piano, two hands",
    remark="from the Notebook for Anna Magdalena Bach; without repeats and ornaments",
    parts=[
        Part(
            "right hand",
            PIANO,
            [
                """
                !mf d5:1 g4:1/2 a4 b4 c5 | d5:1 g4' g4' | e5:1 c5:1/2 d5 e5 f#5 | g5:1 g4' g4' |
                !> c5:1 d5:1/2 c5 b4 a4 | b4:1 c5:1/2 b4 a4 g4 | f#4:1 g4:1/2 a4 b4 g4 | !mp a4:3 |
                !mf d5:1 g4:1/2 a4 b4 c5 | d5:1 g4' g4' | !< e5:1 c5:1/2 d5 e5 f#5 | !f g5:1 g4' g4' |
                !> c5:1 d5:1/2 c5 b4 a4 | b4:1 c5:1/2 b4 a4 g4 | a4:1 b4:1/2 a4 g4 f#4 | !mp g4:3 |
                !f b5:1 g5:1/2 a5 b5 g5 | a5:1 d5:1/2 e5 f#5 d5 | g5:1 e5:1/2 f#5 g5 d5 |
                c#5:1 b4:1/2 c#5 a4:1 | !mf !< a4:1/2 b4 c#5 d5 e5 f#5 | !f g5:1 f#5 e5 | !> f#5 a4 c#5 |
                !mf d5:3 |
                !p d5:1 g4:1/2 f#4 g4:1' | e5:1 g4:1/2 f#4 g4:1' | d5:1 c5 b4 | a4:1/2 g4 f#4 g4 a4:1 |
                !< d4:1/2 e4 f#4 g4 a4 b4 | !mf c5:1 b4 a4 | b4:1/2 d5 g4:1 f#4 | b3+d4+g4:3
                """
            ],
        ),
        Part(
            "left hand",
            PIANO,
            [
                """
                !mf g3+b3+d4:2 a3:1 | b3:3 | c4 | b3 | !> a3 | g3 | d4:1 b3 g3 | !mp d4 d3:1/2 c4 b3 a3 |
                !mf b3:2 a3:1 | g3 b3 g3 | !< c4:3 | !f b3:1 c4:1/2 b3 a3 g3 | !> a3:2 f#3:1 | g3:2 b3:1 |
                c4 d4 d3 | !mp g3:2 g2:1 |
                !f g3:3 | f#3 | e3:1 g3 e3 | a3:2 a2:1 | !mf !< a3:3 | !f b3:1 d4 c#4 | !> d4 f#3 a3 |
                !mf d4 d3 c4 |
                !p b3:2 b3:1 | c4:2 c4:1 | b3 a3 g3 | d4:2 r:1 | !< d3:2 f#3:1 | !mf e3 g3 f#3 | g3 b2 d3 |
                g3 d3 g2
                """,
                bars(*["r:3"] * 24, "!p r:1 d4:2", "r:1 e4:2", *["r:3"] * 6),
            ],
            balance=-8,
        ),
    ],
)

MINUET_G_MINOR = Score(
    slug="petzold_minuet_g_minor",
    title="Minuet in G minor, BWV Anh. 115",
    composer="Christian Petzold (1677–1733)",
    date="before 1725",
    metre="3/4",
    key="Gm",
    tempo="1:112 31:100 32:84",
    texture="harpsichord, two hands",
    remark="from the Notebook for Anna Magdalena Bach; without repeats and ornaments",
    parts=[
        Part(
            "right hand",
            HARPSICHORD,
            [
                """
                !mf bb5:1 a5 g5 | a5 d5 d5 | g5 g4:1/2 a4 bb4 c5 | d5:3 |
                eb5:1 f5:1/2 eb5 d5 c5 | d5:1 eb5:1/2 d5 c5 bb4 | !> c5:1 d5:1/2 c5 bb4 c5 | !mp a4:3 |
                !mf bb5:1 a5 g5 | a5 d5 d5 | g5 g4:1/2 a4 bb4 c5 | !< d5:3 |
                f5:1 g5:1/2 f5 eb5 d5 | !f eb5:1 f5:1/2 eb5 d5 c5 | d5:1 g5 c5 | d4+f4+bb4:3 |
                !mf d5:1 bb4:1/2 c5 d5 e5 | !< f5:1 g5 a5 | !f bb5 g5:1/2 a5 bb5 g5 | a5:1 g5:1/2 a5 f5:1 |
                !mp !< f4:1/2 g4 a4 bb4 c5 d5 | !f eb5:1 d5 c5 | !> f5 bb4 a4 | !mf bb4:3 |
                !p g4:1 d5:1/2 c5 d5:1 | g4 eb5:1/2 d5 eb5:1 | g4:1/2 d5 f#4 c5 g4 bb4 | a4:2 r:1 |
                !< d4:1/2 e4 f#4 g4 a4 bb4 | !mf c5:1 bb4 a4 | bb4:1/2 c5:1/4 d5 g4:1 f#4 | bb3+d4+g4:3
                """
            ],
        ),
        Part(
            "left hand",
            HARPSICHORD,
            [
                """
                !mf g3:3 | f3 | eb3 | d3:1 d4:1/2 c4 bb3 a3 |
                g3+bb3:2 a3:1 | bb3:2 g3:1 | !> a3 f#3 g3 | !mp d3 d4:1/2 c4 bb3 a3 |
                !mf g3:3 | f3 | eb3 | !< d3:1 d4:1/2 c4 b3 a3 |
                b3+d4:2 g3:1 | !f c4 a3 f3 | bb3 eb3 f3+a3 | bb3 bb2:2 |
                !mf bb3:3 | !< a3:1 g3 f3 | !f g3 e3 c3 | f3:2 r:1 |
                !mp !< a3:1 g3 f3 | !f g3 f3 eb3 | !> d3 eb3 f3 | !mf bb2 d4 c4 |
                !p b3+d4:3 | c4 | bb3:1 a3 g3 | d4 a3:1/2 g3 f#3 e3 |
                !< d3:2 r:1 | !mf eb3 d3 c3 | bb2 c3 d3 | g3 g2:2
                """
            ],
            balance=-8,
        ),
    ],
)

# The prelude is one figure: five notes a bar, spread in the same way twice. The last three bars leave it.
PRELUDE_FIVES = [
    "c4 e4 g4 c5 e5", "c4 d4 a4 d5 f5", "b3 d4 g4 d5 f5", "c4 e4 g4 c5 e5",
    "c4 e4 a4 e5 a5", "c4 d4 f#4 a4 d5", "b3 d4 g4 d5 g5", "b3 c4 e4 g4 c5",
    "a3 c4 e4 g4 c5", "d3 a3 d4 f#4 c5", "g3 b3 d4 g4 b4", "g3 bb3 e4 g4 c#5",
    "f3 a3 d4 a4 d5", "f3 ab3 d4 f4 b4", "e3 g3 c4 g4 c5", "e3 f3 a3 c4 f4",
    "d3 f3 a3 c4 f4", "g2 d3 g3 b3 f4", "c3 e3 g3 c4 e4", "c3 g3 bb3 c4 e4",
    "f2 f3 a3 c4 e4", "f#2 c3 a3 c4 eb4", "ab2 f3 b3 c4 d4", "g2 f3 g3 b3 d4",
    "g2 e3 g3 c4 e4", "g2 d3 g3 c4 f4", "g2 d3 g3 b3 f4", "g2 eb3 a3 c4 f#4",
    "g2 e3 g3 c4 g4", "g2 d3 g3 c4 f4", "g2 d3 g3 b3 f4", "c2 c3 g3 bb3 e4",
]  # fmt: skip
PRELUDE_LOUDNESS = {
    1: "!p",
    5: "!mp !<",
    7: "!mf !>",
    9: "!p",
    12: "!mp !>",
    15: "!p",
    18: "!mp !>",
    19: "!p",
}
PRELUDE_LOUDNESS |= {21: "!mp !<", 24: "!mf", 28: "!<", 29: "!f !>", 32: "!mp !>"}


def prelude_voices() -> tuple[str, str, str]:
    """The right hand and the two voices of the left hand."""
    right, tenor, bass = [], [], []
    for number, notes in enumerate(PRELUDE_FIVES, start=1):
        mark = PRELUDE_LOUDNESS.get(number, "")
        low, held, *upper = notes.split()
        bass.append(f"{mark} {low}:2 {low}")
        tenor.append(f"{mark} " + f"r:1/4 {held}:7/4 " * 2)
        right.append(f"{mark} " + f"r:1/2 {upper[0]}:1/4 {upper[1]} {upper[2]} {' '.join(upper)} " * 2)
    right += [
        "!p r:1/2 f3:1/4 a3 c4 f4 c4 a3 c4 a3 f3 a3 f3 d3 f3 d3",
        "!> r:1/2 g4:1/4 b4 d5 f5 d5 b4 d5 b4 g4 b4 d4 f4 e4 d4",
        "!pp e4+g4+c5:4",
    ]
    tenor += ["!p r:1/4 c3:15/4", "!> r:1/4 b2:15/4", "!pp c3:4"]
    bass += ["!p c2:4", "!> c2:4", "!pp c2:4"]
    return bars(*right), bars(*tenor), bars(*bass)


PRELUDE_RIGHT, PRELUDE_TENOR, PRELUDE_BASS = prelude_voices()

PRELUDE_C = Score(
    slug="bach_prelude_c_major",
    title="Prelude in C, BWV 846",
    composer="Johann Sebastian Bach (1685–1750)",
    date="1722",
    metre="4/4",
    key="C",
    tempo="1:72 33:66 34:58 35:50",
    texture="piano, broken chords",
    remark="the first prelude of The Well-Tempered Clavier, complete",
    parts=[
        Part("right hand", PIANO, [PRELUDE_RIGHT]),
        Part("left hand", PIANO, [PRELUDE_BASS, PRELUDE_TENOR]),
    ],
)

ELISE_RIGHT_A = """
    e5 d#5 e5 b4 d5 c5 | !< a4:1/2 r:1/4 c4 e4 a4 | !mp b4:1/2 r:1/4 e4 g#4 b4 | !> c5:1/2 r:1/4 e4 e5 d#5 |
    !p e5 d#5 e5 b4 d5 c5 | !< a4:1/2 r:1/4 c4 e4 a4 | !mp b4:1/2 r:1/4 e4 c5 b4
"""
ELISE_LEFT_A = """
    r:3/2 | !< a2:1/4 e3 a3 r:3/4 | !mp e2:1/4 e3 g#3 r:3/4 | !> a2:1/4 e3 a3 r:3/4 |
    !p r:3/2 | !< a2:1/4 e3 a3 r:3/4 | !mp e2:1/4 e3 g#3 r:3/4
"""

FUR_ELISE = Score(
    slug="beethoven_fur_elise",
    title="Für Elise, WoO 59",
    composer="Ludwig van Beethoven (1770–1827)",
    date="1810",
    metre="3/8",
    key="Am",
    tempo="1:66 13:60 14:66 30:60 31:46",
    texture="piano, two hands",
    remark="the first theme with its first repeat",
    parts=[
        Part(
            "right hand",
            PIANO,
            [
                bars(
                    "!p r:1 e5:1/4 d#5",
                    ELISE_RIGHT_A,
                    "!> a4:1 !p e5:1/4 d#5",
                    ELISE_RIGHT_A,
                    """
                    !< a4:1/2 r:1/4 b4 c5 d5 |
                    !mf e5:3/4 g4:1/4 f5 e5 | !> d5:3/4 f4:1/4 e5 d5 | c5:3/4 e4:1/4 d5 c5 |
                    !p b4:1/2 r:1/4 e4 e5 r | r e5 e6 r r d#5 | e5 r r d#5 e5 d#5
                    """,
                    ELISE_RIGHT_A,
                    "!> a4:3/2",
                )
            ],
        ),
        Part(
            "left hand",
            PIANO,
            [
                bars(
                    "!p r:3/2",
                    ELISE_LEFT_A,
                    "!> a2:1/4 e3 a3 !p r:3/4",
                    ELISE_LEFT_A,
                    """
                    !< a2:1/4 e3 a3 r:3/4 |
                    !mf c3:1/4 g3 c4 r:3/4 | !> g2:1/4 g3 b3 r:3/4 | a2:1/4 e3 a3 r:3/4 |
                    !p e2:1/4 e3 e4 r r e4 | e5 r r d#5 e5 r | r d#5 e5 r:3/4
                    """,
                    ELISE_LEFT_A,
                    "!> a2:1/4 e3 a3:1",
                )
            ],
            balance=-8,
        ),
    ],
)

WALTZ_A = (
    """
    eb4+c5:3/2 c4+ab4:1/2 c4+ab4 eb4+c5 | eb4+c5:3/2 c4+ab4:1/2 c4+ab4 eb4+c5 |
    !< db5:1/2 eb5:1/4 db5 c5:1 bb4 | !mp eb4+ab4+c5:3/2 ab4:1/2 ab4 c5+eb5 |
    ab4+c5+f5:3/2> ab4+c5:1/2 ab4+c5 eb5 | ab4+c5+f5:3/2> ab4+c5:1/2 ab4+c5 eb5 |
    !> g5:1/2 f5 eb5:1 d5
    """,
    """
    r:3 | r | !< f4+ab4:1 eb4+ab4 db4+ab4 | !mp r:3 | r | r | !> g4+c5:1 g4+c5 f4+b4
    """,
    """
    ab2:1 eb3+ab3+c4 c3+eb3+ab3 | ab1 eb3+ab3+c4 c3+eb3+ab3 | !< ab2 db3+f3+db4 f3+ab3 |
    !mp ab1 eb3+ab3+c4 c3+eb3+ab3 | f2 f3+ab3+c4+f4 ab2+eb3+c4 | f2 f3+ab3+c4+f4 ab2+eb3+c4 |
    !> eb2 eb3+g3+c4 g2+f3+b3
    """,
)

WALTZ = Score(
    slug="brahms_waltz_a_flat",
    title="Waltz in A flat, op. 39 no. 15",
    composer="Johannes Brahms (1833–1897)",
    date="1865",
    metre="3/4",
    key="Ab",
    tempo="1:108 16:100 17:112 22:100 23:104 29:92 30:76",
    texture="piano, two hands, full chords",
    remark="up to the coda, which is left out",
    parts=[
        Part(
            "right hand",
            PIANO,
            [
                bars(
                    "!p " + WALTZ_A[0],
                    "!p g4+c5+eb5:3/2 eb4+g4:1/2 eb4+g4 c5",
                    WALTZ_A[0],
                    """
                    !p g4+c5+eb5:3/2 eb4+g4+c5:1/2 eb4+g4+c5 eb5 |
                    !mp !< eb4+g4+bb4+db5+eb5:3/2 eb4+g4+bb4:1/2 eb4+g4+bb4 db5+eb5 |
                    eb4+ab4+c5+eb5:3/2 ab4+c5:1/2 ab4+c5 eb5 |
                    ab4+c5+eb5+gb5+ab5:3/2 ab4+c5+eb5:1/2 ab4+c5+eb5 gb5+ab5 |
                    !f ab4+db5+f5+ab5:3/2 ab4+db5+f5:1/2 ab4+db5+f5 ab5 |
                    ab4+bb4+d5+f5+bb5:3/2 !> bb4+d5+f5:1/2 bb4+d5+f5 ab5 | ab5:1/2 g5 f5:1 eb5 |
                    !p eb4+c5:3/2 c4+ab4:1/2 c4+ab4 eb4+c5 | eb4+c5:3/2 c4+ab4:1/2 c4+ab4 eb4+c5 |
                    !< db5:1/2 eb5:1/4 db5 c5:1 bb4 | !mp eb4+ab4+c5:3/2 ab4:1/2 ab4 c5+eb5 |
                    ab4+c5+f5:3/2 ab4+c5:1/2 ab4+c5 eb5 | ab4+c5+f5:3/2 !> ab4+c5:1/2 ab4+c5 eb5 |
                    ab5:1/2 eb5 db5:1 bb4 | !p c4+eb4+ab4:3
                    """,
                ),
                bars(
                    "!p " + WALTZ_A[1],
                    "r:3",
                    WALTZ_A[1],
                    "r:3",
                    *["r:3"] * 5,
                    "!mf bb4+db5:1 ab4+db5 g4+db5",
                    "!p r:3",
                    "r:3",
                    "!< f4+ab4:1 eb4+ab4 db4+ab4",
                    "!mp r:3",
                    "r:3",
                    "!> r:3",
                    "ab4:1 g4 db4+eb4",
                    "!p r:3",
                ),
            ],
        ),
        Part(
            "left hand",
            PIANO,
            [
                bars(
                    "!p " + WALTZ_A[2],
                    "!p c2 eb3+g3+c4 c3+eb3",
                    WALTZ_A[2],
                    """
                    !p c2 eb3+g3+c4 c3+eb3+g3 | !mp !< eb2 eb3+g3+db4 eb3+g3 | ab2 eb3+ab3+c4 eb3+ab3 |
                    ab1 ab3+c4+gb4 ab3+c4 | !f db2 ab3+db4+f4 ab3+db4 |
                    bb1+bb2 !> ab3+bb3+d4+f4 f3+bb3+d4 | eb2 eb3+bb3+db4 eb3+bb3+eb4 |
                    !p ab2 eb3+ab3+c4 c3+eb3+ab3 | ab1 eb3+ab3+c4 c3+eb3+ab3 |
                    !< ab2 db3+f3+db4 f3+ab3 | !mp ab1 eb3+ab3+c4 c3+eb3+ab3 |
                    f2 f3+ab3+c4+f4 ab2+eb3+c4 | f2 !> f3+ab3+c4+f4 ab2+eb3+c4 |
                    c2 eb2 eb3+g3 | !p ab2 eb3+ab3:2
                    """,
                )
            ],
            balance=-8,
        ),
    ],
)

ENTERTAINER = Score(
    slug="joplin_entertainer",
    title="The Entertainer",
    composer="Scott Joplin (1868–1917)",
    date="1902",
    metre="2/4",
    key="C",
    tempo="1:76",
    texture="piano, two hands, ragtime",
    remark="the introduction and the first strain, without its repeat",
    parts=[
        Part(
            "right hand",
            PIANO,
            [
                """
                !f d5+d6:1/4 e5+e6 c5+c6 a4+a5:1/2 b4+b5:1/4 g4+g5:1/2 |
                d5:1/4 e5 c5 a4:1/2 b4:1/4 g4:1/2 | d4:1/4 e4 c4 r:5/4 |
                r:1 g4+b4+d5+g5:1/2> !p d4:1/4 d#4 |
                e4 c5:1/2 e4:1/4 c5:1/2 e4:1/4 c5~ | c5:5/4 !f c5+e5+c6:1/4 d5+f5+d6 d#5+f#5+d#6 |
                e5+g5+e6 c5+e5+c6 d5+f5+d6 e5+g5+e6:1/2 b4+d5+b5:1/4 d5+f5+d6:1/2 |
                c5+e5+c6:3/2 !p d4:1/4 d#4 |
                e4 c5:1/2 e4:1/4 c5:1/2 e4:1/4 c5~ | c5:3/2 a4+c5+a5:1/4 g4+c5+g5 |
                !mf f#4+c5+f#5 a4+a5 c5+c6 e5+e6:1/2 d5+d6:1/4 c5+c6 a4+a5 | d5+f5+d6:3/2 !p d4:1/4 d#4 |
                e4 c5:1/2 e4:1/4 c5:1/2 e4:1/4 c5~ | c5:5/4 !f c5+e5+c6:1/4 d5+f5+d6 d#5+f#5+d#6 |
                e5+g5+e6 c5+e5+c6 d5+f5+d6 e5+g5+e6:1/2 b4+d5+b5:1/4 d5+f5+d6:1/2 |
                c5+e5+c6:3/2 c5+c6:1/4 d5+d6 |
                e5+e6 c5+c6 d5+d6 e5+e6:1/2 c5+c6:1/4 d5+d6 c5+c6 |
                e5+e6 c5+c6 d5+d6 e5+e6:1/2 c5+c6:1/4 d5+d6 c5+c6 |
                e5+g5+e6 c5+e5+c6 d5+f5+d6 e5+g5+e6:1/2 b4+d5+b5:1/4 d5+f5+d6:1/2 | c5+e5+c6:2
                """
            ],
        ),
        Part(
            "left hand",
            PIANO,
            [
                """
                !f r:2 | d4:1/4 e4 c4 a3:1/2 b3:1/4 g3:1/2 |
                d3:1/4 e3 c3 a2+a3:1/2 b2+b3:1/4 a2+a3 g#2+g#3 | g2+g3:1/2 r g1+g2> !p g3+b3 |
                c3:1/2 e3+g3+c4 g2+g3 g3+bb3+c4 | f2+f3 a3+c4 !f e2+e3 g3+c4 |
                g2 e3+g3+c4 g2 f3+g3+b3 | c3 e3+g3+c4 e3+g3+c4 !p g3+b3 |
                c3:1/2 e3+g3+c4 g2+g3 g3+bb3+c4 | f2+f3 a3+c4 e2+e3 eb2+eb3 |
                !mf d2+d3 d3+f#3+a3+c4 d3 f#3+a3+c4 | g3+b3 g2+g3 a2+a3 !p b2+b3 |
                c3:1/2 e3+g3+c4 g2+g3 g3+bb3+c4 | f2+f3 a3+c4 !f e2+e3 g3+c4 |
                g2 e3+g3+c4 g2 f3+g3+b3 | c3 e3+g3+c4 g3+c4+e4 r |
                c3+c4:1/2 g3+c4+e4 bb2+bb3 g3+c4+e4 | a2+a3 a3+c4+f4 ab2+ab3 ab3+c4+f4 |
                g2+g3 g3+c4+e4 g2 g3+b3 | c3+g3+c4 g2+g3 c2+c3:1
                """
            ],
            balance=-10,
        ),
    ],
)
