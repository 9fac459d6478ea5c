"""Numbers in words for people, as every report has them."""

from __future__ import annotations


def counted(number: float, what: str) -> str:
    """A number of things.

    >>> counted(1, "bar"), counted(2.5, "bar"), counted(12345, "note")
    ('1 bar', '2.5 bars', '12,345 notes')
    """
    shown = f"{number:,.1f}".removesuffix(".0")
    return f"{shown} {what}{'' if shown == '1' else 's'}"


def clock(seconds: float) -> str:
    """Seconds as "1:02:03" or "2:03".

    >>> clock(123.4), clock(3723)
    ('2:03', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
