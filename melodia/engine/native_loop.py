"""The functions of csrc/engine/loop_api.cpp: rules, followers and the loop."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_int, c_int64, c_uint64, c_void_p
from functools import lru_cache

from melodia.engine import native


class StatePlaces(ctypes.Structure):
    """Where the registers of a follower lie."""

    _fields_ = [(name, c_int64) for name in ("registers", "begun", "rows", "ends", "capacity")]


class LaneFacts(ctypes.Structure):
    """What the loop says of a lane."""

    _fields_ = [
        ("standing", c_int64),
        ("token", c_int64),
        ("nll", c_double),
        ("entropy", c_double),
        ("made", c_int64),
        ("fed", c_int64),
    ]


class LaneTerms(ctypes.Structure):
    """How a lane goes on until it is asked again."""

    _fields_ = [
        *((name, c_int64) for name in ("tokens", "pause", "bars_total", "stop_tick")),
        ("ticks", c_int64 * 3),
        ("late", c_void_p * 3),
        ("exclude", c_void_p),
        ("stop", c_void_p),
    ]


class BeginNumbers(ctypes.Structure):
    """The settings of a lane's choices, and whose random numbers they take."""

    _fields_ = [
        *((name, c_double) for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
        *((name, c_int64) for name in ("top_k", "greedy", "window")),
        ("random_seed", c_uint64),
        *((name, c_int64) for name in ("session", "fed")),
    ]


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The engine's library with the functions of the loop declared; `native.reason()` must be None."""
    found = native.library()

    def function(name: str, result: object, *arguments: object) -> None:
        declared = getattr(found, name)
        declared.restype = result
        declared.argtypes = list(arguments)

    function("melodia_rules_new", c_void_p, c_void_p, c_int64)
    function("melodia_rules_free", None, c_void_p)
    function("melodia_follower_new", c_void_p, c_void_p)
    function("melodia_follower_free", None, c_void_p)
    function("melodia_follower_places", None, c_void_p, POINTER(StatePlaces))
    function("melodia_follower_mask", c_int, c_void_p, c_void_p)
    function("melodia_follower_advance", c_int, c_void_p, c_int64)
    function("melodia_follower_advance_side", c_int, c_void_p, c_int64, c_void_p)
    function(
        "melodia_follower_set_grammar", c_int, c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_void_p
    )  # fmt: skip
    function("melodia_follower_set_sides", c_int, c_void_p, c_void_p, c_int64)
    function("melodia_follower_sides", c_int64, c_void_p, c_void_p, c_int64)
    function("melodia_loop_new", c_void_p, c_void_p, c_void_p, c_void_p, c_int64)
    function("melodia_loop_free", None, c_void_p)
    function("melodia_loop_facts", POINTER(LaneFacts), c_void_p)
    function("melodia_loop_follower", c_void_p, c_void_p, c_int64)
    function("melodia_loop_logits", c_void_p, c_void_p, c_int64)
    function("melodia_loop_begin", c_int, c_void_p, c_int64, POINTER(BeginNumbers), c_void_p, c_int64)
    function("melodia_loop_bias", c_int, c_void_p, c_int64, c_void_p)
    function("melodia_loop_terms", c_int, c_void_p, c_int64, POINTER(LaneTerms))
    function("melodia_loop_run", c_int64, c_void_p, c_int64, c_int64, c_void_p)
    function("melodia_loop_choose", c_int, c_void_p, c_int64, c_void_p)
    function("melodia_loop_take", c_int, c_void_p, c_int64)
    function("melodia_loop_drain", c_int, c_void_p, c_int64, c_void_p, c_void_p, c_void_p)
    function("melodia_loop_keep", c_int, c_void_p, c_void_p, c_void_p, c_int64)
    return found
