"""Two ways to give a frame of pitches a probability, each a head of melodia's models, of any kind.

- `Bernoulli`: a step is a frame; the head says of each of the 88 pitches, independently of the others in its frame, how
  probable it is (Chung et al. 2014, Bai et al. 2018).
- `Notes`: a step is a note; a frame is its notes, ascending, and an end. A note that is not above the one before it has
  no probability. The chain rule makes the frame's probability, exactly (what RNN-NADE is compared with).

Letters: B lanes, T steps, V tokens, F different frames, H hidden, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.frames import (
    LOWEST,
    MATCH_LENGTHS,
    MAX_NOTES,
    PITCHES,
    Frame,
    Sequences,
    match_bucket,
    matches,
)
from melodia.model import Model, ModelConfig
from melodia.model.inputs import TokenInput
from melodia.side_inputs import SideInputSpec
from melodia.training.streams import IGNORED, Passage

LOOKBACK1, LOOKBACK2, MATCH = 1, 2, 4  # their places among the side inputs of `Notes`
INTERVALS = 2 * PITCHES  # 87 down to 87 up, and none
MOTION = 12  # semitones told apart
REACH = 12  # semitones within which a note of the next frame is drawn to one of this frame


@dataclass(frozen=True)
class Example:
    """A sequence made ready.

    Attributes:
        passage: inputs and targets of every step [N], side inputs [N, S].
        frame: int64 [N], the frame that a step's target belongs to.
    """

    passage: Passage
    frame: NDArray[np.int64]


class NoteInput(SideInputSpec):
    """A side input that the grammar of melodia's tokens does not know."""

    def __post_init__(self) -> None:
        """Any name will do."""


class Bernoulli:
    """Independent pitches.

    Side inputs stand beside each frame, functions of the frames before: which frame follows where the piece was last as
    it is now (the longest run of equal frames that ends here), and how long that run is.

    Args:
        sequences: all that will be read; a step's input is the number of its frame among the different ones.
    """

    name = "Bernoulli"
    block_length = 8

    def __init__(self, sequences: Sequences) -> None:
        different = dict.fromkeys(frame for sequence in sequences for frame in sequence)
        self.index = {
            frame: 2 + i for i, frame in enumerate(different)
        }  # 0: padding; 1: before the first frame
        self.rolls = torch.zeros(2 + len(different), PITCHES + 1)
        self.rolls[1, PITCHES] = 1.0
        for frame, i in self.index.items():
            self.rolls[i, [pitch - LOWEST for pitch in frame]] = 1.0

    @property
    def size(self) -> int:
        """V: the frames, and two more."""
        return len(self.rolls)

    def example(self, sequence: list[Frame]) -> Example:
        """One step a frame."""
        ids = np.array([self.index[frame] for frame in sequence], np.int64)
        inputs = np.concatenate([[1], ids[:-1]])
        side = [
            (0, 0) if match is None else (self.index[sequence[match.frame]], match_bucket(match.length))
            for match in matches(sequence)
        ]
        return Example(Passage(inputs, ids, np.array(side, np.int32)), np.arange(len(ids)))

    def model(self, config: ModelConfig, random_seed: int) -> Model:
        """The model of a configuration whose vocabulary is the frames."""
        return FrameModel(config, self.rolls, random_seed)

    def nll(self, logits: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
        """Nats of each step [B, T], 0 where it is not scored: logits [B, T, 88]."""
        scored = targets != IGNORED
        wanted = self.rolls[targets.clamp(min=0)][..., :PITCHES]
        nats = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(-1)
        return nats * scored


class FrameInput(TokenInput):
    """The embedding of a frame is the sum of its pitches' embeddings: rows [F, 89] x pitches [89, D].

    So is that of the frame that followed last time, with embeddings of its own; one row says how long the run is.
    """

    def __init__(self, rolls: Tensor, embedding_size: int) -> None:
        nn.Module.__init__(self)
        self.register_buffer("rolls", rolls, persistent=False)

        def table(rows: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(rows, embedding_size, device=rolls.device))

        self.pitches, self.match_pitches = table(rolls.shape[1]), table(rolls.shape[1])
        self.match_length = table(len(MATCH_LENGTHS) + 1)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """What tells the embedding's width, type and place: the frames' own rows are made as a batch needs them."""
        return self.pitches

    @property
    def rows(self) -> int:
        """More than any batch has steps, so that every batch is embedded step by step."""
        return 1 << 62

    def embed(self, tokens: Tensor, side: Tensor | None, token_rows: Tensor | None = None) -> Tensor:
        """As `TokenInput.embed`; frames have no rows that could be dropped."""
        assert side is not None
        x = self.rolls[tokens] @ self.pitches + self.rolls[side[..., 0]] @ self.match_pitches
        return x + F.embedding(side[..., 1], self.match_length)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, variance: float) -> None:
        """Such that the rows' sum has the given variance where frames have four pitches."""
        for pitches in (self.pitches, self.match_pitches):
            pitches.normal_(0, (variance / 12) ** 0.5, generator=generator)
        self.match_length.normal_(0, (variance / 3) ** 0.5, generator=generator)


class PitchHead(nn.Module):
    """Logits of the 88 pitches; what it returns still lies apart, see `FrameModel`.

    Weights [88 + 2 REACH + 1 + 2, H]: the pitches themselves; by how much a note of the frame before draws those so
    many semitones away, which holds in every key; what a pitch gains by being in the frame that followed last time,
    and by not being in it.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(PITCHES + 2 * REACH + 3, hidden_size))
        self.bias = nn.Parameter(torch.empty(len(self.weight)))
        self.projection = None

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, scale: float) -> None:
        """As `melodia.model.model.Head`, but that most pitches are silent."""
        bound = scale * self.weight.shape[1] ** -0.5
        self.weight.uniform_(-bound, bound, generator=generator)
        self.bias.zero_()
        self.bias[:PITCHES] = -3.0

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Logits that still lie apart: x [..., H] -> [..., 88 + 2 REACH + 3]."""
        return F.linear(x, self.weight, self.bias)


class FrameModel(Model):
    """A melodia model whose tokens are frames: another input and another head, the same stack."""

    def __init__(self, config: ModelConfig, rolls: Tensor, random_seed: int) -> None:
        count = len(rolls)
        specs = (NoteInput("match", count), NoteInput("match_length", len(MATCH_LENGTHS) + 1))
        super().__init__(replace(config, vocab_size=count, side_inputs=specs), random_seed=None)
        self.input = FrameInput(rolls, config.embedding_size)
        self.head = PitchHead(config.hidden_size)  # type: ignore[assignment]
        if not rolls.is_meta:
            self.initialise(random_seed)

    def forward(self, tokens: Tensor, side: Tensor | None = None, *rest: Any, **more: Any) -> Any:
        """As `Model.forward`: logits [B, T, 88] and the state."""
        assert side is not None
        assert isinstance(self.input, FrameInput)
        apart, state = super().forward(tokens, side, *rest, **more)
        pitches, draw, match = apart.split([PITCHES, 2 * REACH + 1, 2], dim=-1)
        before, after = (self.input.rolls[ids][..., :PITCHES] for ids in (tokens, side[..., 0]))
        near = F.pad(before, (REACH, REACH)).unfold(-1, 2 * REACH + 1, 1)  # [B, T, 88, 2 REACH + 1]
        drawn = (near @ draw.unsqueeze(-1)).squeeze(-1)
        again = after * match[..., :1] + (1.0 - after) * match[..., 1:]
        return pitches + drawn + again * (side[..., :1] > 0), state


class RelativeHead(nn.Module):
    """Logits of the next note by pitch and by interval; what it returns still lies apart, see `NoteModel`.

    Weights [V + 2 I + 2, H]: V tokens, and I intervals to each of two notes that are known: the one that stood at this
    place of the frame before, and the one just said. Intervals let what is learned in one key hold in all. The last two
    say what a token gains that stood here two frames before, and that followed last time.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(Notes.size + 2 * INTERVALS + 2, hidden_size))
        self.bias = nn.Parameter(torch.empty(len(self.weight)))
        self.projection = None

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, scale: float) -> None:
        """As `melodia.model.model.Head`."""
        bound = scale * (3 * self.weight.shape[1]) ** -0.5
        self.weight.uniform_(-bound, bound, generator=generator)
        self.bias.zero_()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Logits that still lie apart: x [..., H] -> [..., V + 2 I + 2]."""
        return F.linear(x, self.weight, self.bias)


class NoteModel(Model):
    """A melodia model of notes: the same input and stack, and `RelativeHead`."""

    def __init__(self, config: ModelConfig, random_seed: int) -> None:
        super().__init__(config, random_seed=None)
        self.head = RelativeHead(config.hidden_size)  # type: ignore[assignment]
        if not self.input.weight.is_meta:
            self.initialise(random_seed)

    def forward(self, tokens: Tensor, side: Tensor | None = None, *rest: Any, **more: Any) -> Any:
        """As `Model.forward`: logits [B, T, V] and the state."""
        assert side is not None
        apart, state = super().forward(tokens, side, *rest, **more)
        logits = apart[..., : Notes.size]
        for part, reference in enumerate((side[..., LOOKBACK1] - 1, tokens)):
            # Interval of token p to reference r: p - r, and the last column where either is no note.
            ids = torch.arange(Notes.size, device=tokens.device)
            interval = ids - reference.unsqueeze(-1) + PITCHES - 1
            known = (ids > 0) & (reference > 0).unsqueeze(-1)
            column = torch.where(known, interval, INTERVALS - 1)
            start = Notes.size + part * INTERVALS
            logits = logits + apart[..., start : start + INTERVALS].gather(-1, column)
        for gain, place in zip(apart[..., -2:].unbind(-1), (LOOKBACK2, MATCH), strict=True):
            stood = side[..., place] - 1
            given = (gain * (stood >= 0)).unsqueeze(-1)
            logits = logits.scatter_add(-1, stood.clamp(min=0).long().unsqueeze(-1), given)
        return logits, state


class Notes:
    """A frame note by note: token 0 ends a frame, token p is the pitch LOWEST + p - 1.

    Side inputs stand beside each token, all of them functions of the notes before, so that voices can be led without
    counting and a tune that comes back is known: how many notes of the frame have been said; which tokens came next
    at this place in the frame before and two frames before; by how much the note just said moved from the one in its
    place; which token follows where the piece was last as it is now (the longest run of equal frames that ends here,
    and as much of this frame as has been said), and how long that run is.
    """

    name = "Notes"
    block_length = 32
    size = 1 + PITCHES
    specs = (
        NoteInput("position", MAX_NOTES + 1),
        NoteInput("lookback1", 2 + PITCHES),
        NoteInput("lookback2", 2 + PITCHES),
        NoteInput("motion", 2 * MOTION + 2),
        NoteInput("match", 2 + PITCHES),
        NoteInput("match_length", len(MATCH_LENGTHS) + 1),
    )

    def __init__(self, sequences: Sequences) -> None:
        del sequences  # every frame can be said

    def example(self, sequence: list[Frame]) -> Example:
        """A step for every note and for the end of every frame."""
        targets: list[int] = []
        frames: list[int] = []
        side: list[tuple[int, ...]] = []
        before: list[list[int]] = [[], []]  # what one and two frames ago said
        for number, (frame, match) in enumerate(zip(sequence, matches(sequence), strict=True)):
            said = [pitch - LOWEST + 1 for pitch in frame] + [0]
            again = [] if match is None else [pitch - LOWEST + 1 for pitch in sequence[match.frame]] + [0]
            moved = 0
            for place, token in enumerate(said):
                back = [1 + old[place] if place < len(old) else 0 for old in before]
                going = place < len(again) and again[:place] == said[:place]
                follows = 1 + again[place] if going else 0
                length = match_bucket(match.length) if going and match else 0
                side.append((place, back[0], back[1], moved, follows, length))
                targets.append(token)
                frames.append(number)
                moved = 0
                if back[0] > 1 and token:
                    moved = 1 + MOTION + max(-MOTION, min(MOTION, token - (back[0] - 1)))
            before = [said, before[0]]
        inputs = [0, *targets[:-1]]
        return Example(
            Passage(np.array(inputs, np.int64), np.array(targets, np.int64), np.array(side, np.int32)),
            np.array(frames, np.int64),
        )

    def model(self, config: ModelConfig, random_seed: int) -> Model:
        """The model of a configuration."""
        return NoteModel(replace(config, vocab_size=self.size, side_inputs=self.specs), random_seed)

    def nll(self, logits: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
        """Nats of each step [B, T], 0 where it is not scored: logits [B, T, V].

        A note must be above the one before it in its frame, which is the input where that is a note.
        """
        ids = torch.arange(self.size, device=logits.device)
        low = ids[1:] <= tokens[..., None]  # token 0 ends a frame: all notes may begin the next
        logits = logits.float().masked_fill(F.pad(low, (1, 0), value=False), -torch.inf)
        flat = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return flat.view_as(targets)


HEADS = {"bernoulli": Bernoulli, "notes": Notes}
Head = Bernoulli | Notes


class Pieces:
    """The examples of a part, as `melodia.training.streams.LaneStream` reads them: N steps, N - 1 tokens and an end."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = list(examples)
        self.lengths = np.array([len(e.passage.inputs) - 1 for e in self.examples], np.int64)

    @property
    def originals(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """All: none stands here in other keys."""
        return np.arange(len(self.examples))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Any:
        return self.examples[i]


VOCABULARY = SimpleNamespace(pad=0, notes_of_token=np.zeros(1 << 20, np.int64))
"""What `stack_windows` asks of a vocabulary."""


def build(
    head: Head, settings: dict[str, Any], hidden: int, random_seed: int, *, meta: bool = False
) -> Model:
    """The model of a head, of a kind and options, with so many hidden units.

    Args:
        head: one of `HEADS`, made of the sequences.
        settings: fields of `ModelConfig`; with `embedding_size` None the embedding is as wide as the stack.
        hidden: H.
        random_seed: of the weights.
        meta: count only, allocate nothing.
    """
    fields = {"vocab_size": head.size, "hidden_size": hidden, **settings}
    if fields["kind"] == "bidirectional":
        fields["block_length"] = head.block_length
    config = ModelConfig(**fields)
    if not meta:
        return head.model(config, random_seed)
    with torch.device("meta"):
        if isinstance(head, Bernoulli):
            return FrameModel(config, torch.empty(head.rolls.shape, device="meta"), random_seed)
        return head.model(config, random_seed)


def hidden_for(head: Head, settings: dict[str, Any], parameters: int) -> int:
    """H such that the model has nearly so many parameters."""

    def count(hidden: int) -> int:
        return build(head, settings, hidden, 0, meta=True).parameter_count()

    low, high = 1, 4096
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(middle) <= parameters else (low, middle - 1)
    return min((low, low + 1), key=lambda hidden: abs(count(hidden) - parameters))
