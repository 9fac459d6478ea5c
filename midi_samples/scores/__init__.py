"""The pieces of this folder, written out note by note."""

from __future__ import annotations

from scores.ensembles import BOURREE, EMPEROR, FRERE_JACQUES, JESU, ODE_TO_JOY
from scores.folk import DRUNKEN_SAILOR, GREENSLEEVES, IRISH_WASHERWOMAN, SAKURA, SOLDIERS_JOY, YANKEE_DOODLE
from scores.keyboard import ENTERTAINER, FUR_ELISE, MINUET_G_MAJOR, MINUET_G_MINOR, PRELUDE_C, WALTZ

PIECES = [
    MINUET_G_MAJOR,
    MINUET_G_MINOR,
    PRELUDE_C,
    FUR_ELISE,
    WALTZ,
    ENTERTAINER,
    BOURREE,
    JESU,
    EMPEROR,
    ODE_TO_JOY,
    FRERE_JACQUES,
    GREENSLEEVES,
    IRISH_WASHERWOMAN,
    SOLDIERS_JOY,
    DRUNKEN_SAILOR,
    YANKEE_DOODLE,
    SAKURA,
]
