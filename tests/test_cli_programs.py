"""Programs on the command line, by number and by name."""

from __future__ import annotations

import pytest
import typer

from melodia.cli.choice import program_numbers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("violin,CELLO, Drums ", (40, 42, -1)),
        ("127", (127,)),
        ("acoustic  bass,32", (32,)),
        ("pizz,harpsi", (45, 6)),
    ],
)
def test_programs_by_name(text: str, numbers: tuple[int, ...]) -> None:
    assert program_numbers(text) == numbers


def test_every_program_has_the_name_that_pictures_have() -> None:
    from pretty_midi import program_to_instrument_name

    for number in range(128):
        assert program_numbers(program_to_instrument_name(number)) == (number,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pianoo", r"did you mean piano, .*\?"),
        ("0,violn", r"received 'violn'\); did you mean violin, viola\?"),
        ("string", r"did you mean tremolo strings, pizzicato strings, .*\?"),
        ("synth", r"did you mean synth bass 1, synth bass 2, .*\?"),
        ("", r"received ''\)$"),
        ("-1", r"received '-1'\)$"),
    ],
)
def test_programs_that_are_none(text: str, said: str) -> None:
    with pytest.raises(typer.BadParameter, match=said):
        program_numbers(text)
