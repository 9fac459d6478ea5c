"""Whoever waits is told how far reading and making music have come."""

from __future__ import annotations

import io
from typing import Any

import pytest
from sampler_helpers import make_seed, scale, tiny_sampler

from melodia.cli.late_bar import LateBar
from melodia.sampler import Sampler
from melodia.sampler.feeding import CHUNK

Heard = list[tuple[int, int, str]]


class Terminal(io.StringIO):
    """Takes what is written to a terminal."""

    def isatty(self) -> bool:
        return True


class Gone(Terminal):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("scheme", ["REMI", "TSD"])
@pytest.mark.parametrize(
    ("length", "unit"),
    [
        ({"bars": 5}, "bars"),
        ({"bars": 5, "branches": 3}, "bars"),
        ({"bars": 3, "metre": (7, 8)}, "bars"),
        ({"tokens": 90}, "tokens"),
        ({"seconds": 9.0}, "bars"),
    ],
)
def test_progress_rises_to_what_was_asked_for_and_changes_nothing(
    scheme: str, length: dict[str, Any], unit: str
) -> None:
    sampler = tiny_sampler(scheme)
    sampler.prime(make_seed(scale(3)))
    heard: Heard = []
    made = sampler.generate_many(2, random_seed=3, progress=lambda *told: heard.append(told), **length)
    again = sampler.generate_many(2, random_seed=3, **length)
    assert [c.tokens.tolist() for c in made] == [c.tokens.tolist() for c in again]
    totals = {total for _, total, _ in heard}
    assert totals == {90 if unit == "tokens" else made[0].report.bars}
    assert {told[2] for told in heard} == {unit}
    done = [told[0] for told in heard]
    assert done == sorted(set(done)), "each is told once"
    assert 0 <= done[0] <= 1
    assert done[-1] == max(totals), "the last bar is told, too"


@pytest.mark.parametrize("branches", [1, 2])
def test_many_samples_run_group_after_group(branches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples are the same, no more lanes than that run side by side, and progress is that of all of them."""
    sampler = tiny_sampler()
    sampler.prime(make_seed(scale(3)))
    wishes: dict[str, Any] = {"bars": 4, "random_seed": 3, "branches": branches}
    whole = [one.tokens.tolist() for one in sampler.generate_many(5, **wishes)]
    monkeypatch.setattr("melodia.sampler.sampler.AT_ONCE", 2 if branches == 1 else 33)
    lanes: list[int] = []
    run = Sampler._run
    monkeypatch.setattr(
        Sampler, "_run", lambda self, them, teller: (lanes.append(len(them)), run(self, them, teller))
    )
    heard: Heard = []
    made = sampler.generate_many(5, progress=lambda *told: heard.append(told), **wishes)
    assert [one.tokens.tolist() for one in made] == whole
    assert max(lanes) <= (2 if branches == 1 else 32)
    groups = 3
    assert {total for _, total, _ in heard} == {4 * groups}
    done = [told[0] for told in heard]
    assert done == sorted(set(done))
    assert done[-1] == 4 * groups


def test_a_long_seed_is_told_in_parts() -> None:
    sampler, heard = tiny_sampler(), []
    report = sampler.prime(make_seed(scale(80)), progress=lambda *told: heard.append(told))
    whole = report.tokens + 1  # with the token for the beginning
    assert whole > 2 * CHUNK
    assert heard == [(min(done, whole), whole, "tokens") for done in range(CHUNK, whole + CHUNK, CHUNK)]


def test_a_bar_appears_on_a_terminal_after_a_while() -> None:
    terminal, quick, file = Terminal(), Terminal(), io.StringIO()
    with (
        LateBar(terminal, patience=0.0) as late,
        LateBar(quick) as early,
        LateBar(file, patience=0.0) as plain,
    ):
        for bar in (late, early, plain):
            bar.show("reading the seed", 512, 900, "tokens")
            bar.show("making music", 3, 2000, "bars")
    assert "making music" in terminal.getvalue()
    assert "3 of 2000 bars" in terminal.getvalue()
    assert quick.getvalue() == file.getvalue() == ""


def test_a_terminal_that_is_closed_ends_no_work() -> None:
    with LateBar(Gone(), patience=0.0) as bar:
        bar.show("making music", 3, 2000, "bars")
        bar.show("making music", 4, 2000, "bars")
