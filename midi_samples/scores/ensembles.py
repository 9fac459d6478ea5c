"""Pieces for one string instrument, voices, strings, brass and woodwinds."""

from __future__ import annotations

from scores.notation import Part, Score, bars

VIOLIN, VIOLA, CELLO, CHOIR = 40, 41, 42, 52
TRUMPET, TROMBONE, TUBA, HORN = 56, 57, 58, 60
OBOE, BASSOON, CLARINET, FLUTE = 68, 70, 71, 73

BOURREE = Score(
    slug="bach_bourree_c_minor",
    title="Bourrée II from the Cello Suite no. 3, BWV 1009",
    composer="Johann Sebastian Bach (1685–1750)",
    date="about 1720",
    metre="4/4",
    key="Cm",
    tempo="1:144 24:132 25:112",
    texture="melody alone (cello)",
    remark="without repeats",
    parts=[
        Part(
            "cello",
            CELLO,
            [
                """
                !p r:3 c4:1/2 d4 | !mp eb4:1 d4:1/2 c4 b3:1 c4 | d4:1/2 c4 b3 a3 g3 f3 eb3 d3 |
                eb3 g3 f3 eb3 d3 f3 eb3 d3 | !< c3 b2 c3 d3 eb3 f3 g3 a3 | !mf bb3:1 ab3:1/2 g3 f3:1 eb3 |
                !< d3:1/2 eb3 f3 g3 ab3 bb3 c4 d4 | !f eb4:1 !> d4:1/2 c4 bb3 ab3 g3 f3 |
                !mp eb3:3 !p eb3:1/2 f3 | g3:1 g3:1/2 f3 g3:1 a3 | !< bb3:1/2 a3 bb3 c4 bb3 c4 d4 bb3 |
                !mf g3 bb3 a3 bb3 c4 bb3 a3 g3 | !> f#3:1 e3:1/2 f#3 d3:1 !mp d4:1/2 c4 |
                d4:1 eb3:1/2 d3 eb3:1 g3 | !< c4:1/2 b3 c4 d4 eb4:1 d4 | !mf c4:1/2 bb3 a3 g3 bb3 a3 g3 f#3 |
                !> g3:1 d3 g2 !p g3:1/2 ab3 | !< bb3:1 ab3:1/2 g3 f3 e3 f3 g3 | bb3 ab3 g3 f3 d4:2~ |
                !f d4:1/2 b3 c4 d4 eb4 d4 c4 eb4 | d4 !> c4 b3 a3 g3 f3 eb3 d3 |
                !mf eb3 d3 f3 eb3 g3 f3 ab3 g3 | !< g2 a2 b2 c3 d3 eb3 f3 d3 |
                !f f3 eb3 d3 c3 !> eb3 d3 c3 b2 |
                !mp c2+c3:3 r:1
                """
            ],
        )
    ],
)

JESU_A = {
    "soprano": """
        b4:1 b4 a4 g4 | f#4:2 e4 | b4:1 c#5 d5 b4 | e5:2 d#5 |
        !< e5:1/2 f#5 g5:1 f#5:3/2 f#5:1/2 | !mf e5:4""",
    "alto": """
        g4:1 f#4 e4:1/2 d#4 e4:1 | e4 d#4 b3:2 | g4:1/2 f#4 e4:1 d4 d4 | g4:1/2 a4 b4:1 b4:2 |
        !< g4:1/2 a4 b4:1 b4:3/2 a4:1/2 | !mf g4:4""",
    "tenor": """
        e4:1 b3 c4:1/2 f#3 g3:1 | c4 b3:1/2 a3 g3:2 | e4:1/2 d4 c#4 b3 a3:1 g3:1/2 a3 | b3:1 g4 f#4:2 |
        !< e4:1 e4 e4 d#4 | !mf b3:4""",
    "bass": """
        e3:1 d3 c3:3/2 b2:1/2 | a2:1 b2 e3:2 | e3:1 a3:1/2 g3 f#3:1 g3:1/2 f#3 | e3 f#3 g3 a3 b3:2 |
        !< c4:1 b3:1/2 a3 b3:1 b2 | !mf e3:4""",
}
JESU_B = {
    "soprano": """
        !mp b4:1 b4 c5 b4 | a4:3/2 a4:1/2 g4:2 | !< b4:1 c#5 d5 b4 | !f e5 d5:1/2 c#5 c#5:2 |
        !> b4 !mp b4:1 b4 | a4 !> g4:1/2 f#4 f#4:2 | !p e4:4""",
    "alto": """
        !mp g4:1 g4 a4 g4 | g4 f#4 d4:2 | !< g4:1 g4 a4 g4:1/2 a4 | !f b4:1 b4 b4 a#4 |
        !> f#4:2 !mp g4:1 f#4 | e4 !> e4 e4 d#4 | !p b3:4""",
    "tenor": """
        !mp e4:1 d4 d4 d4 | e4 d4:1/2 c4 b3:2 | !< d4:1 e4 d4 d4 | !f g4 f#4 g4 f#4:1/2 e4 |
        !> d#4:2 !mp e4:1 f#4:1/2 g4 | a4 a3 !> b3:1 c4 b3:1/2 a3 | !p g#3:4""",
    "bass": """
        !mp e3:1/2 f#3 g3:1 f#3 g3 | c3 d3 g2:2 | !< g3:1 f#3:1/2 e3 f#3:1 g3:1/2 f#3 | !f e3:1 b2 e3 f#3 |
        !> b2:2 !mp e3:1 d3 | c3 !> b2 a2 b2 | !p e3:4""",
}

JESU = Score(
    slug="bach_jesu_meine_freude",
    title="Jesu, meine Freude, BWV 227/1",
    composer="Johann Sebastian Bach (1685–1750); tune: Johann Crüger (1598–1662)",
    date="1723; tune 1653",
    metre="4/4",
    key="Em",
    tempo="1:72 18:66 19:52",
    texture="chorale, four voices",
    remark="with the repeat of the first half",
    parts=[
        Part(voice, CHOIR, [bars("!mp " + JESU_A[voice], "!p " + JESU_A[voice], JESU_B[voice])], balance)
        for voice, balance in (("soprano", 4), ("alto", -4), ("tenor", -4), ("bass", 0))
    ],
)

EMPEROR = Score(
    slug="haydn_emperor_hymn",
    title="Theme of the Emperor Quartet, op. 76 no. 3",
    composer="Joseph Haydn (1732–1809)",
    date="1797",
    metre="4/4",
    key="G",
    tempo="1:60 20:54 21:44",
    texture="string quartet",
    parts=[
        Part(
            "violin 1",
            VIOLIN,
            [
                bars(
                    "!p r:2 g4:3/2 a4:1/2",
                    "b4:1 a4 c5 b4 | a4:1/2 f#4 g4:1 e5 d5 | c5 b4 a4 b4:1/2 g4 | d5:2 g4:3/2 a4:1/2",
                    "b4:1 a4 c5 b4 | a4:1/2 f#4 g4:1 e5 d5 | c5 b4 a4 b4:1/2 g4 | d5:2 a4:1 b4",
                    "a4:1/2 f#4 d4:1 c5 b4 | !< a4:1/2 f#4 d4:1 d5 c5",
                    "!mp b4:3/2 b4:1/2 c#5:1 c#5:1/2 d5 | d5:2 !f g5:3/2 f#5:1/2",
                    "e5:1 d5 !> e5:3/2 d5:1/2 | !mp c5:1 b4 a4:3/2 b4:1/4 c5",
                    "!> d5:1/2 e5 c5 a4 g4:1 a4:1/2 g4 | !p g4:2 !f g5:3/2 f#5:1/2",
                    "e5:1 d5 !> e5:3/2 d5:1/2 | !mp c5:1 b4 a4:3/2 b4:1/4 c5",
                    "!> d5:1/2 e5 c5 a4 g4:1 a4:1/2 g4 | !p g4:2 r",
                )
            ],
            balance=6,
        ),
        Part(
            "violin 2",
            VIOLIN,
            [
                bars(
                    "!p r:2 b3:3/2 d4:1/2",
                    "g4:1 f#4 a4 g4 | c4 b3 c5 b4 | f#4 g4 e4:2 | d4 b3:3/2 d4:1/2",
                    "g4:1 f#4 a4 g4 | c4 b3 c5 b4 | f#4 g4 e4:2 | d4 f#4:1 g4",
                    "f#4 r f#4 g4 | !< f#4 r b4 a4 | !mp g4:3 g4:1/2 f#4 | f#4:2 !f g3+g4:3/2 g4:1/2",
                    "g4:3/4 a4:1/4 b4:1 !> c5:3/2 b4:1/2 | !mp f#4:1 g4 f#4:3/2 g4:1/4 a4",
                    "!> g4:1 e4:1/2 a4 g4:1 f#4 | !p g4:2 !f g3+g4:3/2 g4:1/2",
                    "g4:3/4 a4:1/4 b4:1 !> c5:3/2 b4:1/2 | !mp f#4:1 g4 f#4:3/2 g4:1/4 a4",
                    "!> g4:1 e4:1/2 a4 g4:1 f#4 | !p g4:2 r",
                )
            ],
        ),
        Part(
            "viola",
            VIOLA,
            [
                bars(
                    "!p r:2 g3:1 r",
                    "r:2 d4:1 d4 | f#3:1/2 a3 g3:1 r:2 | a3:1 b3 e4 g3 | f#3:2 g3:1 r",
                    "r:2 d4:1 d4 | f#3:1/2 a3 g3:1 r:2 | a3:1 b3 e4 g3 | f#3:2 d4:1 d4",
                    "d4 r a3 g3:1/2 b3 | !< d4:1 r d4 e4:1/2 f#4 | !mp g4:1 g3 e4 e4:1/2 d4",
                    "d4:2 !f g3+d4 | e4:3/4 f#4:1/4 g4:1 !> g4:3/2 g4:1/2 | !mp d4+a4:1 d4+b4 d4:2",
                    "!> g3:1 e4:1/2 c4 b3:1 c4 | !p b3:2 !f g3+d4",
                    "e4:3/4 f#4:1/4 g4:1 !> g4:3/2 g4:1/2 | !mp d4+a4:1 d4+b4 d4:2",
                    "!> g3:1 e4:1/2 c4 b3:1 c4 | !p b3:2 r",
                )
            ],
        ),
        Part(
            "cello",
            CELLO,
            [
                bars(
                    "!p r:2 g3:1 r",
                    "r:2 f#3:1 g3 | d3 g2 r:2 | d3:1 g3 c3 c#3 | d3:2 g3:1 r",
                    "r:2 f#3:1 g3 | d3 g2 r:2 | d3:1 g3 c3 c#3 | d3:2 d3:1 d3",
                    "d3 r d3 d3 | !< d3 r b2 c3:1/2 d3 | !mp e3:2 a2:1 a2 | d3:2 !f b3:3/2 b3:1/2",
                    "c4:1 g3 !> c3:3/2 g3:1/2 | !mp d3:1 g3 c3:2 | !> b2:1 c3 d3 d3",
                    "!p g2:2 !f b3:3/2 b3:1/2",
                    "c4:1 g3 !> c3:3/2 g3:1/2 | !mp d3:1 g3 c3:2 | !> b2:1 c3 d3 d3 | !p g2:2 r",
                )
            ],
        ),
    ],
)

ODE = {
    "trumpet": (
        "f#4:1 f#4 g4 a4 | a4 g4 f#4 e4 | d4 d4 e4 f#4",
        "f#4:3/2 e4:1/2 e4:2",
        "e4:3/2 d4:1/2 d4:2",
        "e4:1 e4 f#4 d4 | e4 f#4:1/2 g4 f#4:1 d4 | !< e4 f#4:1/2 g4 f#4:1 e4 | d4 e4 a3 !f f#4~",
    ),
    "horn": (
        "d4:1 d4 e4 f#4 | d4 e4 d4 c#4 | b3 b3 c#4 d4",
        "d4:3/2 c#4:1/2 c#4:2",
        "c#4:2 a3",
        "c#4:1 c#4 d4 a3 | c#4 c#4 d4 a3 | !< c#4 c#4 d4 c#4 | b3 d4 c#4 !f c#4",
    ),
    "trombone": (
        "a3:1 a3 a3 a3 | a3 b3 a3 a3 | f#3 f#3 a3 a3",
        "a3:2 a3",
        "g3:2 f#3",
        "a3:1 a3 a3 f#3 | a3 a3 a3 f#3 | !< a3 a3 a3 a3 | f#3 g#3 a3 !f g3",
    ),
    "tuba": (
        "d3:1 d3 c#3 d3 | f#3 e3 d3 a2 | b2 b2 a2 d3",
        "a2:2 a2",
        "a2:2 d3",
        "a2:1 a2 d3 d3 | a2 a2 d3 d3 | !< a2 a2 d3 a2 | b2 e3 a2 !f a2",
    ),
}

ODE_TO_JOY = Score(
    slug="beethoven_ode_to_joy",
    title="Ode to Joy, from the Ninth Symphony, op. 125",
    composer="Ludwig van Beethoven (1770–1827)",
    date="1824",
    metre="4/4",
    key="D",
    tempo="1:116 15:108 16:88",
    texture="brass quartet",
    remark="the theme with its syncopation, harmonised for this collection",
    parts=[
        Part(
            name,
            program,
            [
                bars(
                    "!mp " + ODE[name][0],
                    ODE[name][1],
                    "!mf " + ODE[name][0],
                    ODE[name][2],
                    "!mp " + ODE[name][3],
                    ODE[name][0],
                    ODE[name][2],
                )
            ],
            balance,
        )
        for name, program, balance in (
            ("trumpet", TRUMPET, 6),
            ("horn", HORN, -4),
            ("trombone", TROMBONE, -4),
            ("tuba", TUBA, 0),
        )
    ],
)

FRERE_JACQUES_TUNE = (
    "f4:1 g4 a4 f4 | f4 g4 a4 f4 | a4 bb4 c5:2 | a4:1 bb4 c5:2 | "
    "c5:1/2 d5 c5 bb4 a4:1 f4 | c5:1/2 d5 c5 bb4 a4:1 f4 | f4 c4 f4:2 | f4:1 c4 f4:2"
)
ONE_OCTAVE = {1: str.maketrans("345", "456"), 0: str.maketrans("", ""), -1: str.maketrans("345", "234")}


def round_voice(entry: int, octave: int) -> str:
    """The tune twice, entering after ``entry`` bars and transposed by octaves; 22 bars in all."""
    tune = " | ".join(
        " ".join(
            token.partition(":")[0].translate(ONE_OCTAVE[octave]) + "".join(token.partition(":")[1:])
            if token != "|"
            else token
            for token in bar.split()
        )
        for bar in FRERE_JACQUES_TUNE.split("|")
    )
    return bars(*["r:4"] * entry, "!f " + tune, "!mf " + tune, *["r:4"] * (6 - entry))


FRERE_JACQUES = Score(
    slug="frere_jacques",
    title="Frère Jacques",
    composer="traditional (France)",
    date="before 1780",
    metre="4/4",
    key="F",
    tempo="1:116 21:108 22:92",
    texture="round, four woodwinds",
    remark="each voice enters two bars after the one before and plays the tune twice",
    parts=[
        Part("flute", FLUTE, [round_voice(0, 1)]),
        Part("oboe", OBOE, [round_voice(2, 0)]),
        Part("clarinet", CLARINET, [round_voice(4, 0)]),
        Part("bassoon", BASSOON, [round_voice(6, -1)]),
    ],
)
