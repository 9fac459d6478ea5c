"""The engine on CUDA: a network for the classes of `melodia.engine` over csrc/cuda, loaded when first needed.

`Lanes` and `TokenLoop` take it as they take the CPU's. A launch makes many tokens of all lanes, which do not wait for
one another inside it; `TokenLoop.run` looks at its limits between launches, and a failing device leaves everything as
it was. The rest is as on the CPU, states and followers included. Nothing here needs torch. No GPU has run this yet:
what is known of it comes from the emulator (csrc/cuda/NOTES_decode.md).

    MELODIA_CUDA_CLUSTER=N    sessions in clusters of N blocks, 2 to 16, on sm_90 and newer, for comparisons; 0: none
"""

from __future__ import annotations

import ctypes
import json
import os
from ctypes import POINTER, c_char_p, c_double, c_int, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from melodia.engine import cuda_native, native
from melodia.engine.engine import Engine, Floats
from melodia.errors import BackendError, ConfigError

LIBRARY = Path(__file__).with_name("libmelodia_cuda_engine.so")
CLUSTER_BLOCKS = 16  # of the largest cluster that a device has


class Options(ctypes.Structure):
    """What a test or a measurement may choose; zeros: as the device wants it. See csrc/cuda/decode_device.h."""

    _fields_ = [
        (name, c_int64)
        for name in (
            "threads",
            "least_units",
            "blocks",
            "samplers",
            "counted",
            "apart",
            "launch_steps",
            "limit_us",
            "streamed",
            "cluster",
            "group",
            "ahead",
        )
    ]


def chosen_options() -> Options:
    """What the environment chooses; ConfigError where it is no size of a cluster."""
    word = os.environ.get("MELODIA_CUDA_CLUSTER", "").strip() or "0"
    blocks = int(word) if word.isdecimal() else 1
    if blocks == 1 or blocks > CLUSTER_BLOCKS:
        raise ConfigError(
            f"MELODIA_CUDA_CLUSTER must be 2 to {CLUSTER_BLOCKS} blocks, or 0 for no clusters (received {word!r})"
        )
    return Options(cluster=blocks)


def load(path: Path) -> ctypes.CDLL:
    """A library of the decode engine, its functions declared."""
    found = ctypes.CDLL(str(path))

    def function(name: str, result: object, *arguments: object) -> None:
        declared = getattr(found, name)
        declared.restype = result
        declared.argtypes = list(arguments)

    function("melodia_engine_error", c_char_p)
    function("melodia_cuda_obstacle", c_char_p)
    function("melodia_cuda_options", None, POINTER(Options))
    function("melodia_cuda_fallback", c_char_p, c_void_p)
    function("melodia_engine_new", c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int)
    function("melodia_engine_free", None, c_void_p)
    function("melodia_engine_facts", None, c_void_p, POINTER(cuda_native.Facts))
    function("melodia_lanes_new", c_void_p, c_void_p, c_int64)
    function("melodia_lanes_free", None, c_void_p)
    function("melodia_lanes_advance", c_int, c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_int)
    for name in ("read", "write"):
        function(f"melodia_lanes_{name}", c_int, c_void_p, c_int64, c_void_p)
    function("melodia_loop_new", c_void_p, c_void_p, c_void_p, c_void_p, c_int64)
    function("melodia_loop_free", None, c_void_p)
    function("melodia_loop_facts", POINTER(cuda_native.LaneFacts), c_void_p)
    function("melodia_loop_follower", c_void_p, c_void_p, c_int64)
    function("melodia_loop_logits", c_void_p, c_void_p, c_int64)
    begin = POINTER(cuda_native.BeginNumbers)
    function("melodia_loop_begin", c_int, c_void_p, c_int64, begin, c_void_p, c_int64)
    function("melodia_loop_terms", c_int, c_void_p, c_int64, POINTER(cuda_native.LaneTerms))
    function("melodia_loop_bias", c_int, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p, c_double)
    function("melodia_loop_run", c_int64, c_void_p, c_int64, c_int64, c_void_p)
    function("melodia_loop_choose", c_int, c_void_p, c_int64, c_void_p)
    function("melodia_loop_take", c_int, c_void_p, c_int64)
    function("melodia_loop_drain", c_int, c_void_p, c_int64, c_void_p, c_void_p, c_void_p)
    function("melodia_loop_keep", c_int, c_void_p, c_void_p, c_void_p, c_int64)
    return found


@lru_cache(maxsize=1)
def _loaded() -> tuple[ctypes.CDLL | None, str | None]:
    if os.environ.get("MELODIA_DISABLE_EXT", "0") not in ("", "0"):
        return None, "MELODIA_DISABLE_EXT is set"
    if not LIBRARY.exists():
        try:
            why = json.loads(native.BUILD_FACTS.read_text())["cuda"]["reason"]
        except (OSError, ValueError, KeyError):
            why = None
        return None, f"the CUDA engine was not built: {why or 'melodia was installed without it'}"
    try:
        library = load(LIBRARY)
    except (OSError, AttributeError) as error:
        return None, f"the CUDA engine does not load: {error}"
    obstacle = library.melodia_cuda_obstacle().decode()
    return (None, obstacle) if obstacle else (library, None)


def reason() -> str | None:
    """Why the CUDA engine cannot be used; None if it can.

    >>> isinstance(reason(), str) or reason() is None
    True
    """
    return native.reason() or _loaded()[1]


class CudaEngine(Engine):
    """A network, packed for the blocks of a GPU.

    Args:
        ints, floats: as of `Engine`.
        library: of `load`; None: the one that was installed.
        options: for tests and measurements; None: of `chosen_options`.

    Raises:
        BackendError: there is no library or no GPU.
        ConfigError: the description is wrong, or a variable of the environment.
    """

    def __init__(
        self,
        ints: NDArray[np.int64],
        floats: Floats,
        *,
        library: ctypes.CDLL | None = None,
        options: Options | None = None,
    ) -> None:
        why = reason() if library is None else None
        if why is not None:
            raise BackendError(f"the CUDA engine was asked for, but {why}; use device cpu")
        used = library if library is not None else _loaded()[0]
        assert used is not None
        used.melodia_cuda_options(ctypes.byref(chosen_options() if options is None else options))
        self.native: cuda_native.Engine = cuda_native.Engine(
            used, np.ascontiguousarray(ints, np.int64), np.ascontiguousarray(floats, np.float32)
        )

    def fallback(self) -> str:
        """Why the last launch was run again stage by stage; empty if none was.

        `facts` counts such launches as stalls, and as threads the blocks that compute.
        """
        return self.native.fallback()
