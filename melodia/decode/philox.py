"""Philox4x32-10: random numbers from a key and a counter, with no state (Salmon et al. 2011).

A number depends only on (random seed, session, position, lane), so a song is the same in one call or in many,
alone or in a batch, on one device or another. Lane = token id, position = index of the token in its session.

The definition that every backend shares:

- key = (low 32 bits of the random seed, high 32 bits);
- counter = (lane // 4, low 32 bits of the position, high 32 bits of the position, session);
- lane takes word lane % 4 of the four 32-bit words x that come out;
- u = (x + 0.5) * 2**-32, exact in a double, strictly between 0 and 1;
- gumbel = -log(-log(u)), in double.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.checks import whole_number
from melodia.errors import ConfigError

ROUNDS = 10
MULTIPLIER_0 = np.uint64(0xD2511F53)
MULTIPLIER_1 = np.uint64(0xCD9E8D57)
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32_10(counter: NDArray[np.integer[Any]], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Encrypt counters to random words.

    Args:
        counter: [..., 4], each value below 2**32.
        key: two values below 2**32.

    Returns:
        Four words for each counter, uint32 [..., 4].

    >>> [hex(word) for word in philox4x32_10(np.zeros(4, dtype=np.uint32), (0, 0)).tolist()]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    x0, x1, x2, x3 = np.moveaxis(np.asarray(counter).astype(np.uint64), -1, 0)
    k0, k1 = key
    for _ in range(ROUNDS):
        product_0, product_1 = MULTIPLIER_0 * x0, MULTIPLIER_1 * x2  # 32 x 32 bits: no overflow in 64
        x0, x1, x2, x3 = (
            (product_1 >> _HALF) ^ x1 ^ np.uint64(k0),
            product_1 & _LOW,
            (product_0 >> _HALF) ^ x3 ^ np.uint64(k1),
            product_0 & _LOW,
        )
        k0, k1 = (k0 + WEYL_0) & 0xFFFFFFFF, (k1 + WEYL_1) & 0xFFFFFFFF
    return np.stack([x0, x1, x2, x3], axis=-1).astype(np.uint32)


def uniform(random_seed: int, session: int, position: int, lanes: int, count: int = 1) -> NDArray[np.float64]:
    """Uniform numbers, one for each lane of `count` positions in a row, strictly between 0 and 1.

    Args:
        random_seed: 0 <= random_seed < 2**64.
        session: 0 <= session < 2**32; independent streams of one random seed.
        position: 0 <= position < 2**64; the index of the first token in its session.
        lanes: how many numbers; lane i gets the same number whatever `lanes` is.
        count: positions.

    Returns:
        float64 [count, lanes].

    Raises:
        ConfigError: a value lies outside its limits.
    """
    random_seed = check_random_seed(random_seed)
    if not 0 <= session < 2**32:
        raise ConfigError(f"`session` must be between 0 and 2**32 - 1 (received {session})")
    if not 0 <= position <= 2**64 - count:
        raise ConfigError(f"`position` must be between 0 and 2**64 - 1 (received {position})")
    counter = np.empty((count, (lanes + 3) // 4, 4), dtype=np.uint32)
    counter[:, :, 0] = np.arange(counter.shape[1])
    positions = np.array([(place & 0xFFFFFFFF, place >> 32) for place in range(position, position + count)])
    counter[:, :, 1:3] = positions[:, None]
    counter[:, :, 3] = session
    words = philox4x32_10(counter, (random_seed & 0xFFFFFFFF, random_seed >> 32))
    return (words.reshape(count, -1)[:, :lanes].astype(np.float64) + 0.5) * 2.0**-32


def gumbel(random_seed: int, session: int, position: int, lanes: int, count: int = 1) -> NDArray[np.float64]:
    """Gumbel noise: argmax(logits + noise) draws from softmax(logits). Arguments and result as of `uniform`.

    Raises:
        ConfigError: as in `uniform`.
    """
    return -np.log(-np.log(uniform(random_seed, session, position, lanes, count)))


class Noise:
    """The Gumbel noise of one stream, made for many positions at a time. It holds numbers, not a state.

    Args:
        random_seed, session, lanes: as in `uniform`.

    >>> bool((Noise(5, 0, 7).at(100) == gumbel(5, 0, 100, 7)[0]).all())
    True
    """

    AHEAD = 32

    def __init__(self, random_seed: int, session: int, lanes: int) -> None:
        self._of = (random_seed, session)
        self._lanes = lanes
        self._first = -1
        self._block = np.zeros((0, lanes))

    def at(self, position: int) -> NDArray[np.float64]:
        """The noise of a position, float64 [lanes]."""
        if not 0 <= position - self._first < len(self._block):
            count = min(self.AHEAD, 2**64 - position)
            self._block = gumbel(*self._of, position, self._lanes, count)
            self._first = position
        return self._block[position - self._first]


def check_random_seed(random_seed: object) -> int:
    """A random seed as Python's own number; raises ConfigError unless 0 <= random_seed < 2**64."""
    return whole_number("random_seed", random_seed, 0, 2**64 - 1, limits=" between 0 and 2**64 - 1")
