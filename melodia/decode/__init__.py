"""From logits to a token: random numbers, filters, choice.

`philox` holds the counter-based random numbers, `filters` the filters in their fixed order and the choice,
`bias` what is pooled with the logits before them, `config` the settings. Everything here is NumPy, written as the
specification that the compiled engines reproduce token for token.

Names are loaded when they are first used: the command line reads `config` without NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from melodia.lazy import on_demand

if TYPE_CHECKING:
    from melodia.decode.bias import Bias as Bias
    from melodia.decode.bias import Opinion as Opinion
    from melodia.decode.config import SamplingConfig as SamplingConfig
    from melodia.decode.filters import Choice as Choice
    from melodia.decode.filters import apply_filters as apply_filters
    from melodia.decode.filters import choose as choose
    from melodia.decode.filters import token_nll as token_nll
    from melodia.decode.philox import Noise as Noise
    from melodia.decode.philox import gumbel as gumbel
    from melodia.decode.philox import philox4x32_10 as philox4x32_10
    from melodia.decode.philox import uniform as uniform

_HOME = {
    "Bias": "bias",
    "Opinion": "bias",
    "SamplingConfig": "config",
    "Choice": "filters",
    "apply_filters": "filters",
    "choose": "filters",
    "token_nll": "filters",
    "Noise": "philox",
    "gumbel": "philox",
    "philox4x32_10": "philox",
    "uniform": "philox",
}

__all__ = sorted(_HOME)

__getattr__ = on_demand(__name__, _HOME)
