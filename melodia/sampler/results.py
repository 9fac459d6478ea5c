"""What comes of a generation and of a seed, with the reports on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from melodia.notes import notes_of_events
from melodia.sampler.continuation import Continuation
from melodia.sampler.lane import Lane
from melodia.sampler.report import GenerationReport, PrimeReport
from melodia.sampler.runner import Runner
from melodia.sampler.seed import Seed

if TYPE_CHECKING:
    from melodia.originality import Index


def continuations_of(
    lanes: Sequence[Lane], runner: Runner, index: Index | None, wall: float, drawn: int
) -> list[Continuation]:
    """The continuations of lanes that have ended.

    Args:
        lanes: made side by side.
        runner: what made them.
        index: of the training music; None where the checkpoint has none.
        wall: seconds that it took.
        drawn: tokens that were drawn, those of branches that were not kept among them.
    """
    results = [(lane, *lane.result()) for lane in lanes]
    origin = lanes[0].session.context.origin
    lengths = [times.seconds(times.end) - times.seconds(lane.begun - origin) for lane, _, times in results]
    made = []
    for (lane, notes, times), seconds in zip(results, lengths, strict=True):
        report = GenerationReport(
            tokens=len(lane.tokens),
            bars=lane.plan.bars_done(lane.ended),
            completed=lane.plan.completes,
            notes=len(notes),
            seconds=seconds,
            wall_seconds=wall,
            batch=len(lanes),
            tokens_per_second=drawn / wall,
            times_real_time=sum(lengths) / wall,
            nll=float(np.mean(lane.nll)) if lane.nll else 0.0,
            entropy=float(np.mean(lane.entropy)) if lane.entropy else 0.0,
            tempo=[tempo for tick, tempo in times.tempi if tick <= max(0, lane.begun - origin)][-1],
            metre=lane.metre,
            programs=tuple(sorted({note.program for note in notes})),
            ended=lane.ended,
            random_seed=lane.request.random_seed,
            session=lane.request.session,
            branches=lane.request.branches,
            stretches=lane.chosen,
            closing=lane.chosen_from,
            widened=lane.widened,
            recalled=sum(part.bars for part in lane.plan.recalled),
            chords=lane.plan.keeps_chords(lane.session.grammar, notes_of_events(lane.notes)),
            backend=f"{runner.runs} on {runner.device}",
            backend_reason=runner.why,
            sampling=lane.request.sampling,
            findings=lane.findings(),
        )
        made.append(
            Continuation(
                tokens=np.array(lane.tokens, np.int32),
                nll=np.array(lane.nll, np.float32),
                entropy=np.array(lane.entropy, np.float32),
                events=tuple(times.event(note) for note in notes),
                report=report,
                seed=lane.session.seed,
                _notes=notes,
                _map=times,
                _session=lane.final_session(),
                _index=index,
                _recalled=tuple((part.begin - origin, part.end - origin) for part in lane.plan.recalled),
            )
        )
    return made


def prime_report(seed: Seed, nll: float, wall: float) -> PrimeReport:
    """The report on a seed that was fed in `wall` seconds, of which a token had `nll` nats."""
    context = seed.context
    assert context.tempo is not None
    assert context.metre is not None
    assert context.programs is not None
    return PrimeReport(
        source=context.source,
        bars=seed.bars,
        notes=seed.notes,
        seconds=seed.seconds,
        tokens=len(seed.ids),
        nll=nll,
        tempo=context.tempo,
        tempo_at_end=seed.tempo_at_end,
        metre=context.metre,
        programs=context.programs,
        completes=context.join > context.origin,
        wall_seconds=wall,
        findings=seed.findings,
        unseen=seed.unseen,
    )
