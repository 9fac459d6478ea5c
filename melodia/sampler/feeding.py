"""Feeding a seed to the model, at batch speed.

Letters: N tokens, V vocabulary, S side inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from melodia.grammar import Grammar
from melodia.model.network import initial_state
from melodia.sampler.lane import RECENT
from melodia.sampler.progress import Told
from melodia.sampler.runner import Runner
from melodia.sampler.seed import Seed
from melodia.sampler.session import Context, Session, Tail, tail_at
from melodia.side_inputs import SideInputTracker, side_inputs

if TYPE_CHECKING:
    from symusic.core import ScoreTick

CHUNK = 512
"""Tokens of a seed that the model reads at once."""


class Reader(NamedTuple):
    """What reads: whatever runs the model, a grammar without constraints, the fingerprint of sessions, who is told."""

    runner: Runner
    grammar: Grammar
    fingerprint: str
    told: Told | None = None


def feed_from_start(
    reader: Reader,
    ids: NDArray[np.int32],
    context: Context,
    score: ScoreTick | None,
    density: int | None,
) -> tuple[Session, float]:
    """Feed BOS and a seed.

    Args:
        reader: what reads.
        ids: [N], without BOS; may be empty.
        context: what new music keeps.
        score: the seed as a score.
        density: see `melodia.side_inputs`.

    Returns:
        the session behind the seed, and the mean NLL of its tokens in nats.
    """
    vocabulary, config = reader.grammar.vocabulary, reader.runner.config
    specs = config.side_inputs
    session = Session(
        model_state=initial_state(config),
        logits=np.zeros(vocabulary.size, np.float32),
        grammar=reader.grammar.start(),
        side=SideInputTracker(vocabulary, specs, density=density),
        fed=0,
        recent=(),
        tail=Tail(),
        context=context,
        seed=score,
        ids=ids.astype(np.int32),
        fingerprint=reader.fingerprint,
    )
    whole = np.concatenate([[vocabulary.bos], ids]).astype(np.int32)
    return _advance(reader, session, whole, side_inputs(vocabulary, whole, specs, density=density))


def feed_rest(
    reader: Reader, start: Session, seed: Seed, density: int | None = None
) -> tuple[Session, float]:
    """Move a session that stands inside a seed on to its end.

    Args:
        reader: what reads.
        start: the session.
        seed: the whole of it.
        density: from here on; None: as before.

    Returns:
        the session, and the mean NLL of the tokens that were fed, in nats.
    """
    session = start.fork()
    if density is not None:
        session.side.density = density
    whole = np.concatenate([[reader.grammar.vocabulary.bos], seed.ids]).astype(np.int32)
    specs = reader.runner.config.side_inputs
    sides = side_inputs(reader.grammar.vocabulary, whole, specs, density=session.side.density)
    session.context, session.seed, session.ids, session.waiting = seed.context, seed.score, seed.ids, ()
    return _advance(reader, session, whole[start.fed :], sides[start.fed :])


def nll_behind(reader: Reader, sessions: Sequence[Session], ids: NDArray[np.int32]) -> NDArray[np.float64]:
    """How little tokens are expected behind each of B sessions, which stay where they are.

    Args:
        reader: what reads, all sessions at once.
        sessions: B of them.
        ids: int32 [N], the tokens, whatever they are; N at least 1.

    Returns:
        the mean NLL of the tokens in nats, float64 [B].
    """
    stepper = reader.runner.stepper([session.model_state for session in sessions])
    trackers = [session.side.copy() for session in sessions]
    before = np.stack([session.logits for session in sessions])
    total, steps = np.zeros(len(sessions)), max(1, CHUNK // len(sessions))
    for start in range(0, len(ids), steps):
        chunk = ids[start : start + steps]
        tokens = np.repeat(chunk[:, None], len(sessions), axis=1)
        sides = np.stack([[side.advance(token) for side in trackers] for token in chunk.tolist()])
        after = stepper.read(tokens, sides)
        total += _nll(np.concatenate([before[None], after[:-1]]), tokens).sum(axis=0)
        before = after[-1]
    return total / len(ids)


def _advance(
    reader: Reader, session: Session, ids: NDArray[np.int32], sides: NDArray[np.int32]
) -> tuple[Session, float]:
    """Feed tokens [N] with their side inputs [N, S] in chunks; changes the session."""
    stepper = reader.runner.stepper([session.model_state])
    total, before = 0.0, session.logits
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        after = stepper.read(chunk[:, None], sides[start : start + CHUNK, None])[:, 0]
        nll = _nll(np.concatenate([before[None], after[:-1]]), chunk)
        first = 0 if session.fed + start else 1  # nothing foretells BOS
        total += float(nll[first:].sum())
        before = after[-1].copy()
        if reader.told is not None:
            reader.told(start + len(chunk), len(ids), "tokens")
    for token in ids.tolist():
        reader.grammar.advance(session.grammar, token, check=False)
        session.side.advance(token)
    counted = len(ids) - (session.fed == 0)
    session.model_state, session.logits = stepper.state(0), before
    session.fed += len(ids)
    session.recent = (*session.recent, *ids[-RECENT:].tolist())[-RECENT:]
    session.tail = tail_at(reader.grammar.vocabulary, session.grammar) if session.grammar.bar >= 0 else Tail()
    return session, total / counted if counted else 0.0


def _nll(logits: NDArray[np.float32], ids: NDArray[np.int32]) -> NDArray[np.float64]:
    """-log probability of each token [...] under its logits [..., V], in nats."""
    most = logits.max(axis=-1)
    sums = np.exp(logits - most[..., None]).sum(axis=-1, dtype=np.float64)
    return np.log(sums) + most - np.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
