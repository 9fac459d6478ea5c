"""The engine: generating on the CPU with packed weights and threads of its own (csrc/engine).

`Engine` and `Lanes` need NumPy and the library only; `describe` makes their input from a model. Where the library
was not built `reason()` says why, and the sampler falls back to the reference.
"""

from melodia.engine.choice import choose
from melodia.engine.engine import Engine, Lanes
from melodia.engine.native import cores, instruction_set, reason

__all__ = ["Engine", "Lanes", "choose", "cores", "instruction_set", "reason"]
