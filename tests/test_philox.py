"""Random numbers: the published known answers, and independence of batch and chunk."""

from __future__ import annotations

import numpy as np
import pytest

from melodia.decode import Noise, gumbel, philox4x32_10, uniform
from melodia.errors import ConfigError

# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, answer.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    assert tuple(philox4x32_10(np.array(counter, dtype=np.uint32), key).tolist()) == answer


def test_a_batch_of_counters_is_the_counters_one_by_one() -> None:
    counters = np.random.default_rng(0).integers(0, 2**32, (3, 5, 4), dtype=np.uint32)
    together = philox4x32_10(counters, (7, 9))
    for index in np.ndindex(3, 5):
        assert (philox4x32_10(counters[index], (7, 9)) == together[index]).all()


def test_the_counter_is_laid_out_as_documented() -> None:
    seed, session, position = 0x0123456789ABCDEF, 0xFFFFFFFE, 0xFEDCBA9876543210
    numbers = uniform(seed, session, position, 11)[0]
    for lane in range(11):
        counter = np.array([lane // 4, 0x76543210, 0xFEDCBA98, session], dtype=np.uint32)
        word = int(philox4x32_10(counter, (0x89ABCDEF, 0x01234567))[lane % 4])
        assert numbers[lane] == (word + 0.5) / 2**32


def test_lanes_do_not_depend_on_how_many_there_are() -> None:
    assert (uniform(5, 1, 2, 1000)[:, :7] == uniform(5, 1, 2, 7)).all()


@pytest.mark.parametrize("other", [(6, 1, 2), (5, 2, 2), (5, 1, 3), (5 + 2**32, 1, 2), (5, 1, 2 + 2**32)])
def test_seed_session_and_position_all_count(other: tuple[int, int, int]) -> None:
    assert (uniform(5, 1, 2, 64) != uniform(*other, 64)).all()


def test_uniform_numbers_are_uniform_and_open() -> None:
    numbers = uniform(3, 0, 0, 200_000)
    assert numbers.min() > 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert ((counts - 2000.0) ** 2 / 2000.0).sum() < 160  # chi-square, 99 degrees: p < 0.0001 at 160
    words = np.array([0, 2**32 - 1], dtype=np.float64)
    extremes = (words + 0.5) * 2.0**-32
    assert np.isfinite(-np.log(-np.log(extremes))).all()


def test_gumbel_noise_has_the_mean_and_variance_of_its_law() -> None:
    noise = gumbel(11, 0, 4, 200_000)
    assert abs(noise.mean() - 0.5772156649) < 0.012
    assert abs(noise.var() - np.pi**2 / 6) < 0.03


@pytest.mark.parametrize("random_seed", [-1, 2**64, 1.5, True, "7"])
def test_bad_random_seeds_are_refused(random_seed: int) -> None:
    with pytest.raises(ConfigError, match="`random_seed` must be"):
        uniform(random_seed, 0, 0, 4)


def test_bad_sessions_and_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match="`session`"):
        uniform(1, 2**32, 0, 4)
    with pytest.raises(ConfigError, match="`position`"):
        uniform(1, 0, -1, 4)


def test_positions_in_a_row_are_the_positions_one_by_one() -> None:
    together = uniform(9, 4, 2**32 - 2, 10, count=5)  # across the low word's end
    for i in range(5):
        assert (uniform(9, 4, 2**32 - 2 + i, 10)[0] == together[i]).all()
    noise = Noise(9, 4, 10)
    for position in (0, 1, 31, 32, 500, 3, 2**64 - 1):
        assert (noise.at(position) == gumbel(9, 4, position, 10)[0]).all()
