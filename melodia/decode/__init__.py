"""From logits to a token: random numbers, filters, choice.

`philox` holds the counter-based random numbers, `filters` the filters in their fixed order and the choice,
`config` the settings of both. Everything here is NumPy, written as the specification that the compiled
engines reproduce token for token.
"""

from melodia.decode.config import SamplingConfig
from melodia.decode.filters import Choice, apply_filters, choose, token_nll
from melodia.decode.philox import Noise, gumbel, philox4x32_10, uniform

__all__ = [
    "Choice",
    "Noise",
    "SamplingConfig",
    "apply_filters",
    "choose",
    "gumbel",
    "philox4x32_10",
    "token_nll",
    "uniform",
]
