"""The order in which training reads a corpus: lanes that walk whole pieces, window by window.

B lanes stand side by side in a batch. A lane takes a piece, walks it from BOS to EOS in windows of at most T
steps that never cross into another piece, then takes the next piece of the epoch's order. At a piece's first
window the lane's recurrent state starts anew, otherwise it is carried over. A piece that the corpus stores in
several keys is read in one of them an epoch, each in turn. Everything random (the order of an epoch, how a piece
is transposed on this pass, whether it is played twice, what it conceals) is a pure function of the random seed,
the epoch and the piece, so a few integers say where the stream stands and nothing else needs saving.
Letters: B lanes, T steps, S side inputs, N tokens of a piece, or of both times that it is played; it has N + 1 steps
(BOS in … EOS out).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from melodia.corpus.shards import Piece, Pieces
from melodia.errors import ConfigError, TrainingError
from melodia.grammar.tables import compile_tables
from melodia.side_inputs import SideInputSpec, bars_total, density_bucket, side_inputs
from melodia.training.config import TrainingConfig
from melodia.transpose import transposition_permutation
from melodia.vocabulary import Vocabulary

IGNORED = -100
"""The target of a step that is not scored."""

_ORDER, _PASS, _PROGRAMS, _KEYS = 1, 2, 3, 4


@dataclass(frozen=True)
class Batch:
    """One window of every lane.

    Attributes:
        tokens: int64 [B, T], the inputs; PAD behind a lane's length.
        targets: int64 [B, T], the tokens that follow; `IGNORED` where a step is not scored.
        side: int64 [B, T, S], or None for a model without side inputs.
        lengths: int64 [B], steps of each lane.
        starts: bool [B], lanes that begin a piece.
        scored: how many targets are scored.
        notes: how many notes the targets begin.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    side: NDArray[np.int64] | None
    lengths: NDArray[np.int64]
    starts: NDArray[np.bool_]
    scored: int
    notes: int


@dataclass(frozen=True)
class Passage:
    """A piece made ready for one pass.

    Attributes:
        inputs: int64 [N + 1], BOS and the tokens.
        targets: int64 [N + 1], the tokens and EOS; `IGNORED` where not scored.
        side: int32 [N + 1, S] or None.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    side: NDArray[np.int32] | None


class Preparer:
    """Makes pieces ready: BOS and EOS, transposition, side inputs, targets that are not scored.

    Args:
        vocabulary: of the corpus.
        specs: the model's side inputs.
        config: augmentation; None reads every piece as it is and conceals bars left and density, which is how
            held-out pieces are scored.

    Raises:
        ConfigError: pieces are to be repeated, but these tokens have no bar lines or are byte pairs; or instruments
            are to be exchanged, but these tokens have no programs or are byte pairs.
    """

    def __init__(
        self, vocabulary: Vocabulary, specs: Sequence[SideInputSpec], config: TrainingConfig | None = None
    ) -> None:
        self.vocabulary, self.specs, self.config = vocabulary, tuple(specs), config
        self._programs = np.array(
            [i for i in vocabulary.ids_of("Program") if vocabulary.value(i) != "-1"], np.int64
        )
        bars, programs = compile_tables(vocabulary).has_bars, bool(self._programs.size)
        for name, needs, there in (
            ("repeat_probability", "bar lines and without byte pairs, REMI or PerTok", bars),
            ("program_probability", "programs and without byte pairs", programs),
        ):
            if config is not None and getattr(config, name) and (vocabulary.expansions or not there):
                received = f"{vocabulary.scheme}{' with byte pairs' if vocabulary.expansions else ''}"
                raise ConfigError(f"{name} needs tokens with {needs} (received {received}); leave it at 0")
        self._types = np.array(vocabulary.types)
        self._is_velocity = self._types == "Velocity"
        self._names = {spec.name for spec in self.specs}
        self._moves: NDArray[np.int32] | None = None
        if (
            config is not None
            and config.transpose_probability > 0
            and config.transpose_up > config.transpose_down
        ):
            shifts = range(config.transpose_down, config.transpose_up + 1)
            self._moves = np.stack([transposition_permutation(vocabulary, shift) for shift in shifts])

    def __call__(self, piece: Piece, epoch: int = 0, number: int = 0) -> Passage:
        """The passage of piece `number` in `epoch`."""
        v, config = self.vocabulary, self.config
        ids = np.asarray(piece.tokens, np.int64)
        bars: int | None = None
        density: int | None = None
        if config is not None:
            draws = _uniform(config.random_seed, _PASS, epoch, number, 4)
            if self.repeats(epoch, number):
                ids = np.concatenate((ids, self.again(ids)))
            if self._moves is not None and draws[0] < config.transpose_probability:
                ids = self._transpose(ids, float(draws[1]))
            if config.program_probability:
                ids = self._exchange(ids, epoch, number)
            if "bars_left" in self._names and draws[2] >= config.hide_bars_left:
                bars = max(1, bars_total(ids, v))
            if "density" in self._names and draws[3] >= config.hide_density:
                density = density_bucket(ids, v)
        inputs = np.concatenate(([v.bos], ids))
        targets = np.concatenate((ids, [v.eos]))
        if piece.constant_velocity:
            targets[self._is_velocity[targets]] = IGNORED
        side = side_inputs(v, inputs, self.specs, bars_total=bars, density=density) if self.specs else None
        return Passage(inputs, targets, side)

    def again(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens of a piece behind itself: without the tempo and the program at its beginning that hold still."""
        kinds = self._types[ids]
        places = {kind: np.flatnonzero(kinds == kind) for kind in ("Tempo", "Program")}
        left_out = [at[0] for at in places.values() if at.size and ids[at[0]] == ids[at[-1]]]
        for at in list(left_out):  # a position at which nothing is left
            if kinds[at] == "Tempo" and kinds[at - 1] == "Position" and kinds[at + 1] in ("Position", "Bar"):
                left_out.append(at - 1)
        return np.delete(ids, left_out)

    def repeats(self, epoch: int, number: int) -> bool:
        """Whether piece `number` is played twice in `epoch`, nothing between: what ends may begin again."""
        config = self.config
        if config is None or not config.repeat_probability:
            return False
        return bool(_uniform(config.random_seed, _PASS, epoch, number, 5)[4] < config.repeat_probability)

    def _exchange(self, ids: NDArray[np.int64], epoch: int, number: int) -> NDArray[np.int64]:
        """Give a piece other programs in `epoch`, or not; in their order, as notes at one place stand in it."""
        assert self.config is not None
        draws = _uniform(self.config.random_seed, _PROGRAMS, epoch, number, 1 + self._programs.size)
        if draws[0] >= self.config.program_probability:
            return ids
        present = np.intersect1d(ids, self._programs)
        chosen = np.sort(self._programs[np.argsort(draws[1:])[: present.size]])
        exchanged = np.arange(self.vocabulary.size)
        exchanged[present] = chosen
        return exchanged[ids]

    def _transpose(self, ids: NDArray[np.int64], draw: float) -> NDArray[np.int64]:
        """Move a piece by one of the intervals that leave every token inside the vocabulary."""
        assert self._moves is not None
        present = np.unique(ids)
        possible = np.flatnonzero((self._moves[:, present] >= 0).all(axis=1))
        return self._moves[possible[int(draw * possible.size)]][ids].astype(np.int64)


class LaneStream:
    """Endless batches of training windows.

    Args:
        pieces: of the training split.
        preparer: makes a piece ready for a pass.
        lanes: B of all processes together.
        window: T.
        random_seed: of the order of the pieces.
        rank: which process this is.
        world_size: how many there are; B must be a multiple.

    Attributes:
        pieces_per_epoch: how many pieces there are, transposed copies not counted.
        tokens_per_epoch: how many tokens they have.
        keys: in how many keys, at most, a piece is stored.
        windows_per_epoch: how many windows all pieces make, each played once in its own key.
        steps_per_epoch: how many steps all pieces have, each played once in its own key.

    Raises:
        TrainingError: there is nothing to train on, or the lanes cannot be shared out.
    """

    def __init__(
        self,
        pieces: Pieces,
        preparer: Preparer,
        *,
        lanes: int,
        window: int,
        random_seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if lanes % world_size:
            raise TrainingError(
                f"`batch_size` must be a multiple of the number of processes (received {lanes} for "
                f"{world_size})"
            )
        self.pieces, self.preparer, self.lanes, self.window = pieces, preparer, lanes, window
        self.random_seed = random_seed
        once = pieces.originals
        copies = np.diff(once, append=len(pieces))  # in how many keys each is stored, one behind the other
        inside = pieces.lengths[once] > 0
        self._usable, self._keys = once[inside], copies[inside]
        if not self._usable.size:
            raise TrainingError(
                "the corpus has no piece to train on; see its manifest for what became of the files"
            )
        self.pieces_per_epoch, self.keys = len(once), int(copies.max())
        self.tokens_per_epoch = int(pieces.lengths[once].sum())
        steps = pieces.lengths[self._usable] + 1
        self.windows_per_epoch = int((-(-steps // window)).sum())
        self.steps_per_epoch = int(steps.sum())
        self._own = range(rank * lanes // world_size, (rank + 1) * lanes // world_size)
        self._taken = 0
        self._place = np.zeros((lanes, 3), np.int64)  # epoch, piece, offset; offset -1: needs a piece
        self._place[:, 2] = -1
        self._steps = np.zeros(lanes, np.int64)  # of each lane's piece
        draws = np.random.Philox(key=_key(random_seed, _KEYS)).random_raw(len(self._keys))
        self._first = (draws >> np.uint64(11)).astype(
            np.int64
        )  # the key that each piece begins with, modulo its keys
        self._order: tuple[int, NDArray[np.int64]] = (-1, self._usable)
        self._passages: dict[int, Passage] = {}

    def position(self) -> dict[str, Any]:
        """Where the stream stands, as a JSON-ready value: before the next batch."""
        return {"taken": self._taken, "lanes": self._place.tolist()}

    def seek(self, position: dict[str, Any]) -> None:
        """Go to a saved position."""
        place = np.array(position["lanes"], np.int64)
        if place.shape != self._place.shape:
            raise TrainingError(
                f"the saved training has {len(place)} lanes, this one {self.lanes}; give the same `batch_size`"
            )
        self._taken, self._place = int(position["taken"]), place
        self._steps = np.array([self._count(*lane) for lane in self._place[:, :2].tolist()])
        self._passages.clear()

    def _take(self, lane: int) -> None:
        """Give the lane the next piece of the order."""
        epoch, turn = divmod(self._taken, len(self._usable))
        if self._order[0] != epoch:
            keys = np.random.Philox(key=_key(self.random_seed, _ORDER), counter=[epoch, 0, 0, 0])
            order = np.argsort(keys.random_raw(len(self._usable)), kind="stable")
            key = (self._first + epoch) % self._keys
            self._order = (epoch, (self._usable + key)[order])
        number = int(self._order[1][turn])
        self._place[lane] = (epoch, number, 0)
        self._steps[lane] = self._count(epoch, number)
        self._taken += 1
        self._passages.pop(lane, None)

    def _count(self, epoch: int, number: int) -> int:
        """Steps of a piece in an epoch."""
        steps = int(self.pieces.lengths[number]) + 1
        if self.preparer.repeats(epoch, number):
            steps += self.preparer.again(np.asarray(self.pieces[number].tokens, np.int64)).size
        return steps

    def next(self) -> Batch:
        """The next window of this process's lanes; T is the longest of them."""
        for lane in np.flatnonzero(self._place[:, 2] < 0).tolist():
            self._take(lane)
        lengths = np.minimum(self.window, self._steps - self._place[:, 2])
        own = list(self._own)
        batch = self._gather(own, lengths[own])
        self._place[:, 2] += lengths
        self._place[self._place[:, 2] >= self._steps, 2] = -1
        return batch

    def _gather(self, own: list[int], lengths: NDArray[np.int64]) -> Batch:
        passages = []
        for lane in own:
            if lane not in self._passages:
                epoch, number, _ = self._place[lane].tolist()
                self._passages[lane] = self.preparer(self.pieces[number], epoch, number)
            passages.append(self._passages[lane])
        offsets = self._place[own, 2]
        return stack_windows(passages, offsets, lengths, self.preparer.vocabulary)


def stack_windows(
    passages: Sequence[Passage],
    offsets: NDArray[np.int64],
    lengths: NDArray[np.int64],
    vocabulary: Vocabulary,
) -> Batch:
    """Cut one window from each passage, at its offset and of its length, and lay them side by side."""
    shape = (len(passages), int(lengths.max()))
    tokens = np.full(shape, vocabulary.pad, np.int64)
    targets = np.full(shape, IGNORED, np.int64)
    first = passages[0].side
    side = None if first is None else np.zeros((*shape, first.shape[1]), np.int64)
    for b, (passage, offset, length) in enumerate(
        zip(passages, offsets.tolist(), lengths.tolist(), strict=True)
    ):
        tokens[b, :length] = passage.inputs[offset : offset + length]
        targets[b, :length] = passage.targets[offset : offset + length]
        if side is not None and passage.side is not None:
            side[b, :length] = passage.side[offset : offset + length]
    scored = targets[targets != IGNORED]
    notes = int(vocabulary.notes_of_token[scored].sum())
    return Batch(tokens, targets, side, lengths.astype(np.int64), offsets == 0, int(scored.size), notes)


def _key(random_seed: int, purpose: int) -> NDArray[np.uint64]:
    return np.array([random_seed, purpose], np.uint64)


def _uniform(random_seed: int, purpose: int, epoch: int, number: int, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) that depend on the arguments alone [count]."""
    bits = np.random.Philox(key=_key(random_seed, purpose), counter=[0, epoch, number, 0])
    return (bits.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
