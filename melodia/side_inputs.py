"""What stands beside the tokens: place in the bar, bars left, the same place a bar ago. NumPy only.

A side input is a small integer per step that a model adds to its input as one more embedding row. Row t is
computed from the tokens up to t (and from what the caller says of the whole piece), so it is known when
token t + 1 is predicted. Two forms give the same numbers: `side_inputs` for a whole piece at once,
`SideInputTracker` token by token.
Letters: T = tokens, S = side inputs, V = vocabulary size.

They are defined for sequences that the grammar accepts, from their beginning, with or without BOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.checks import whole_number
from melodia.errors import ConfigError
from melodia.grammar.tables import Op, Tables, compile_tables
from melodia.key_finding import FADE, KEYS, NOTE, find_key
from melodia.vocabulary import Vocabulary

NAMES = ("position", "bars_left", "lookback1", "lookback2", "density", "key")
DEFAULTS = NAMES[:5]
"""What models get if nothing else is asked for. The key made held-out NLL worse by 0.025 nats/token after 500
iterations (sequential, H = 128, twice), so it has to be asked for."""
DENSITY_EDGES = (4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0)
"""Notes a bar at which the density bucket goes up by one, from 1 to 8."""

DENSITIES = len(DENSITY_EDGES) + 1
"""So many buckets of density there are."""


@dataclass(frozen=True)
class SideInputSpec:
    """A side input and how many values it takes.

    Attributes:
        name: "position": place in the bar, in grid units;
            "bars_left": 0 if the length is not given, else how many bars are left with this one;
            "lookback1", "lookback2": 1 + the token that came next at the same place one (two) bars ago, 0 if
            that bar had no such place. A place is a position and how many tokens stood there already;
            "density": 0 if not given, else the piece's notes a bar as a bucket, 1 to 8;
            "key": 1 + the key that the bars before this one are in (`melodia.key_finding`), 0 if none.
        size: values lie in 0 to size - 1; larger ones are clipped ("position", "bars_left"). Lookbacks need
            V + 1.

    Raises:
        ConfigError: an unknown name, or a size that is too small.
    """

    name: str
    size: int

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ConfigError(f"side input must be one of {', '.join(NAMES)} (received {self.name!r})")
        least = {"density": 9, "key": KEYS + 1}.get(self.name, 2)
        limits = f", at least {least} for side input {self.name}"
        object.__setattr__(self, "size", whole_number("size", self.size, least, limits=limits))


def default_specs(vocabulary: Vocabulary, names: Sequence[str] = NAMES) -> tuple[SideInputSpec, ...]:
    """Side inputs with sizes that fit a vocabulary."""
    tables = compile_tables(vocabulary)
    units = [bar // unit for bar, unit in zip(tables.bar_lengths, tables.units, strict=True) if unit]
    bar = max(units, default=tables.default_bar // tables.default_unit)
    sizes = {"position": bar, "bars_left": 33, "density": 9, "key": KEYS + 1}
    return tuple(SideInputSpec(name, sizes.get(name, vocabulary.size + 1)) for name in names)


def side_inputs(
    vocabulary: Vocabulary,
    ids: NDArray[np.integer[Any]] | Sequence[int],
    specs: Sequence[SideInputSpec],
    *,
    bars_total: int | None = None,
    density: int | None = None,
) -> NDArray[np.int32]:
    """The side inputs of a whole piece.

    Args:
        vocabulary: what the ids stand for.
        ids: [T] tokens, from the beginning of the piece.
        specs: which side inputs, S of them.
        bars_total: bars of the whole piece, for "bars_left"; None for not given.
        density: bucket of the whole piece, 1 to 8 (see `density_bucket`); None for not given.

    Returns:
        int32 [T, S]; row t says what is known when token t + 1 is predicted.

    Raises:
        ConfigError: a spec does not fit the vocabulary, or a value lies outside its limits.
    """
    _check(vocabulary, specs, bars_total, density)
    tokens = np.asarray(ids, dtype=np.int64).reshape(-1)
    bars, positions = bars_and_positions(vocabulary, tokens)
    out = np.zeros((len(tokens), len(specs)), dtype=np.int32)
    for column, spec in enumerate(specs):
        if spec.name == "position":
            out[:, column] = np.minimum(positions, spec.size - 1)
        elif spec.name == "bars_left" and bars_total is not None:
            out[:, column] = np.clip(bars_total - np.maximum(bars, 0), 1, spec.size - 1)
        elif spec.name == "density" and density is not None:
            out[:, column] = density
        elif spec.name.startswith("lookback"):
            out[:, column] = _lookback(tokens, bars, positions, int(spec.name[-1]))
        elif spec.name == "key":
            out[:, column] = _keys(vocabulary, tokens)[np.maximum(bars, 0)]
    return out


def _keys(vocabulary: Vocabulary, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each bar, 1 + the key of the bars before it, 0 if there is none: int64 [bars]."""
    base = _base(vocabulary, tokens)[0]
    tables = compile_tables(vocabulary)
    bars = np.maximum(_follow(tables, base)[0], 0)
    struck = np.array(tables.ops)[base] == Op.PITCH
    count = int(bars[-1]) + 1 if len(bars) else 1
    classes = np.zeros((count, 12), dtype=np.int64)
    np.add.at(classes, (bars[struck], np.array(tables.values)[base[struck]] % 12), NOTE)
    keys = np.zeros(count, dtype=np.int64)
    weights = np.zeros(12, dtype=np.int64)
    for bar in range(1, count):
        weights = (weights + classes[bar - 1]) * FADE[0] // FADE[1]
        keys[bar] = find_key(weights.tolist()) + 1
    return keys


def _base(vocabulary: Vocabulary, tokens: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The base tokens of tokens, and where each token's last part stands among them."""
    if not vocabulary.expansions:
        return tokens, np.arange(len(tokens))
    parts = [vocabulary.expansions.get(token, (token,)) for token in tokens.tolist()]
    last = np.cumsum([len(part) for part in parts], dtype=np.int64) - 1
    return np.array([token for part in parts for token in part], dtype=np.int64), last


def _lookback(
    tokens: NDArray[np.int64], bars: NDArray[np.int64], positions: NDArray[np.int64], distance: int
) -> NDArray[np.int64]:
    """1 + the token that came next at the same place some bars ago, 0 if there was none: [T]."""
    count = len(tokens)
    if not count:
        return np.zeros(0, dtype=np.int64)
    steps = np.arange(count)
    fresh = np.ones(count, dtype=bool)
    fresh[1:] = (bars[1:] != bars[:-1]) | (positions[1:] != positions[:-1])
    ordinal = steps - np.maximum.accumulate(np.where(fresh, steps, 0))
    deep, wide = int(ordinal.max()) + 1, int(positions.max()) + 1
    places = ((bars + 1) * wide + positions) * deep + ordinal  # ascending: bars and positions only go forward
    wanted = places - distance * wide * deep
    found = np.minimum(np.searchsorted(places, wanted), count - 1)
    hit = (places[found] == wanted) & (found + 1 < count) & (bars >= distance)
    return np.where(hit, tokens[np.minimum(found + 1, count - 1)] + 1, 0)


def bars_and_positions(
    vocabulary: Vocabulary, ids: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The bar (-1 before the first) and the place in it (grid units) behind each token: two int64 [T]."""
    tokens = np.asarray(ids, dtype=np.int64).reshape(-1)
    base, last = _base(vocabulary, tokens)
    bars, positions = _follow(compile_tables(vocabulary), base)
    return bars[last], positions[last]


def _follow(tables: Tables, tokens: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`bars_and_positions` of base tokens."""
    ops, values = np.array(tables.ops)[tokens], np.array(tables.values)[tokens]
    steps = np.arange(len(tokens))
    if tables.has_bars:
        bar = ops == Op.BAR
        bars = np.cumsum(bar) - 1
        places = ops == Op.POSITION
        if Op.TIME_SHIFT in tables.ops:  # PerTok: shifts since the bar line
            moved = np.cumsum(np.where(ops == Op.TIME_SHIFT, values, 0))
            since = np.maximum.accumulate(np.where(bar, steps, -1))
            return bars, moved - np.where(since >= 0, moved[np.maximum(since, 0)], 0)
        set_at = np.maximum.accumulate(np.where(bar | places, steps, -1))
        return bars, np.where((set_at >= 0) & places[set_at], values[set_at], 0)
    return _follow_time(tables, tokens, ops, values)


def _follow_time(
    tables: Tables, tokens: NDArray[np.int64], ops: NDArray[np.int64], values: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The same without Bar tokens: from time and metre, one section per TimeSig token."""
    steps = np.arange(len(tokens))
    metres = np.flatnonzero(ops == Op.TIME_SIGNATURE)
    section = np.searchsorted(metres, steps, side="right")  # 0: before any TimeSig token
    units = np.array([tables.default_unit] + [tables.units[tokens[i]] for i in metres])
    lengths = np.array([tables.default_bar] + [tables.bar_lengths[tokens[i]] for i in metres])
    now = np.cumsum(np.where(ops == Op.TIME_SHIFT, values * units[section], 0))
    starts = np.concatenate([[0], now[metres]]).astype(np.int64)
    first = np.concatenate([[0], np.cumsum(-(-np.diff(starts) // lengths[:-1]))]).astype(np.int64)
    gone = now - starts[section]
    bars = first[section] + gone // lengths[section]
    begun = np.cumsum((ops == Op.TIME_SHIFT) | (ops == Op.TIME_SIGNATURE)) > 0
    return np.where(begun, bars, -1), gone % lengths[section] // units[section]


_REGISTERS = ("bar", "position", "_unit", "_bar_length", "_gone", "_ordinal", "_key")


class SideInputTracker:
    """Side inputs token by token; the rows are those of `side_inputs`.

    Attributes:
        bars_total, density: as in `side_inputs`; they may be changed between tokens.
        bar, position: where the last token led.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        specs: Sequence[SideInputSpec],
        *,
        bars_total: int | None = None,
        density: int | None = None,
    ) -> None:
        _check(vocabulary, specs, bars_total, density)
        self.vocabulary = vocabulary
        self.specs = tuple(specs)
        self.bars_total = bars_total
        self.density = density
        self.bar = -1
        self.position = 0
        self._tables = compile_tables(vocabulary)
        self._unit = self._tables.default_unit
        self._bar_length = self._tables.default_bar
        self._gone = 0  # grid ticks since the bar line
        self._ordinal = -1
        self._next: dict[int, dict[tuple[int, int], int]] = {}
        self._weights = [0] * 12  # of the pitch classes
        self._key = 0

    def copy(self) -> SideInputTracker:
        """An independent copy."""
        new = object.__new__(SideInputTracker)
        new.__dict__.update(self.__dict__)
        new._next = {bar: dict(places) for bar, places in self._next.items()}
        new._weights = list(self._weights)
        return new

    def to_array(self) -> NDArray[np.int64]:
        """The registers as one flat array, then (bar, position, ordinal, token) of each place looked back at."""
        flat = [int(getattr(self, name)) for name in _REGISTERS]
        flat += [self.bars_total or 0, self.density or 0, *self._weights]
        for bar, places in self._next.items():
            for (position, ordinal), token in places.items():
                flat += [bar, position, ordinal, token]
        return np.array(flat, dtype=np.int64)

    @classmethod
    def from_array(
        cls, vocabulary: Vocabulary, specs: Sequence[SideInputSpec], array: NDArray[np.integer[Any]]
    ) -> SideInputTracker:
        """The inverse of `to_array`; raises ConfigError on an array of another form."""
        flat = np.asarray(array, dtype=np.int64).reshape(-1).tolist()
        count = len(_REGISTERS)
        header = count + 2 + 12
        if len(flat) < header or (len(flat) - header) % 4:
            raise ConfigError(f"not the state of side inputs: {len(flat)} numbers; save it again")
        bars_total, density = flat[count : count + 2]
        side = cls(vocabulary, specs, bars_total=bars_total or None, density=density or None)
        for name, value in zip(_REGISTERS, flat, strict=False):
            setattr(side, name, value)
        side._weights = flat[count + 2 : header]
        positive = (side.bar + 1, side.position, side._gone, side._ordinal + 1, side._key, *side._weights)
        if min(positive) < 0 or not 0 < side._unit <= side._bar_length or side._key > KEYS:
            raise ConfigError("not the state of side inputs: a number is out of range; save it again")
        for i in range(header, len(flat), 4):
            bar, position, ordinal, token = flat[i : i + 4]
            if not 0 <= token < vocabulary.size:
                raise ConfigError("not the state of side inputs: it names no token; save it again")
            side._next.setdefault(bar, {})[position, ordinal] = token
        return side

    def advance(self, token: int) -> NDArray[np.int32]:
        """Take one more token; the side inputs for predicting the next: int32 [S]."""
        if self._ordinal >= 0:
            self._next.setdefault(self.bar, {})[self.position, self._ordinal] = token
        before = (self.bar, self.position)
        for part in self.vocabulary.expansions.get(token, (token,)):
            self._step(part)
        self._ordinal = self._ordinal + 1 if before == (self.bar, self.position) else 0
        if self.bar != before[0]:
            self._next = {bar: places for bar, places in self._next.items() if bar >= self.bar - 2}
        return np.array([self._value(spec) for spec in self.specs], dtype=np.int32)

    def _value(self, spec: SideInputSpec) -> int:
        if spec.name == "position":
            return min(self.position, spec.size - 1)
        if spec.name == "bars_left":
            if self.bars_total is None:
                return 0
            return min(max(self.bars_total - max(self.bar, 0), 1), spec.size - 1)
        if spec.name == "density":
            return self.density or 0
        if spec.name == "key":
            return self._key
        distance = int(spec.name[-1])
        if self.bar < distance:
            return 0
        places = self._next.get(self.bar - distance, {})
        return places.get((self.position, self._ordinal), -1) + 1

    def _step(self, token: int) -> None:
        tables = self._tables
        op, value = tables.ops[token], tables.values[token]
        if op == Op.BAR:
            self._next_bar()
            self.position = self._gone = 0
        elif op == Op.PITCH:
            self._weights[value % 12] += NOTE
        elif op == Op.TIME_SIGNATURE:
            self._unit, self._bar_length = tables.units[token], tables.bar_lengths[token]
            self.bar = max(self.bar, 0)
        elif op == Op.POSITION:
            self.position = value
        elif op == Op.TIME_SHIFT:
            self._gone += value * self._unit
            self.bar = max(self.bar, 0)
            while not tables.has_bars and self._gone >= self._bar_length:
                self._gone -= self._bar_length
                self._next_bar()
            self.position = self._gone // self._unit

    def _next_bar(self) -> None:
        self.bar += 1
        if self.bar > 0:
            self._weights = [weight * FADE[0] // FADE[1] for weight in self._weights]
            self._key = find_key(self._weights) + 1


def bars_total(ids: NDArray[np.integer[Any]] | Sequence[int], vocabulary: Vocabulary) -> int:
    """How many bars a piece has. Without Bar tokens, a bar line that time has only reached begins none."""
    tokens = np.asarray(ids, dtype=np.int64).reshape(-1)
    if not len(tokens):
        return 0
    bars, positions = bars_and_positions(vocabulary, tokens)
    last = int(bars[-1])
    if compile_tables(vocabulary).has_bars:
        return last + 1
    return max(0, last + int(positions[-1] > 0))


def density_bucket(ids: NDArray[np.integer[Any]] | Sequence[int], vocabulary: Vocabulary) -> int:
    """The notes a bar of a piece as a bucket, 1 to 8 (see `DENSITY_EDGES`)."""
    tokens = np.asarray(ids, dtype=np.int64).reshape(-1)
    notes = int(vocabulary.notes_of_token[tokens].sum())
    return 1 + int(
        np.searchsorted(DENSITY_EDGES, notes / max(1, bars_total(tokens, vocabulary)), side="right")
    )


def _check(
    vocabulary: Vocabulary, specs: Sequence[SideInputSpec], bars_total: int | None, density: int | None
) -> None:
    for spec in specs:
        if spec.name.startswith("lookback") and spec.size < vocabulary.size + 1:
            raise ConfigError(
                f"side input {spec.name} needs a size of V + 1 = {vocabulary.size + 1} (received {spec.size})"
            )
    if bars_total is not None and bars_total < 1:
        raise ConfigError(f"bars_total must be at least 1 (received {bars_total})")
    if density is not None and not 1 <= density <= DENSITIES:
        raise ConfigError(f"density must be between 1 and {DENSITIES} (received {density})")
