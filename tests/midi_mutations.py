"""Structure-aware damage for MIDI files."""

from __future__ import annotations

import random
from collections.abc import Callable


def _places(data: bytes, word: bytes) -> list[int]:
    found, at = [], data.find(word)
    while at >= 0 and len(found) < 100:
        found.append(at)
        at = data.find(word, at + 1)
    return found


def _bytes(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        at = rng.randrange(len(data))
        data[at] = rng.choice(
            (0, 0x7F, 0x80, 0xFF, 0xF0, 0xF7, rng.randrange(256), data[at] ^ (1 << rng.randrange(8)))
        )


def _delete(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 1, 2, 3, 10, 500))]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.choice((1, 1, 2, 3, 10, 500)))


def _copy(data: bytearray, rng: random.Random) -> None:
    start, at = rng.randrange(len(data)), rng.randrange(len(data))
    data[at:at] = data[start : start + rng.choice((3, 20, 1000))]


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _lie_about_length(data: bytearray, rng: random.Random) -> None:
    places = _places(bytes(data), b"MTrk") + _places(bytes(data), b"MThd")
    if places:
        at = rng.choice(places) + 4
        value = int.from_bytes(data[at : at + 4], "big")
        value = rng.choice(
            (0, 1, value - 1, value + 1, value + 7, value * 2, 0xFFFFFFFF, rng.randrange(1 << 32))
        )
        data[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, "big")


def _header(data: bytearray, rng: random.Random) -> None:
    if len(data) > 14:
        at = rng.choice((8, 10, 12))
        data[at : at + 2] = rng.choice((b"\0\0", b"\xff\xff", b"\0\1", b"\x80\0", rng.randbytes(2)))


def _event(data: bytearray, rng: random.Random) -> None:
    """Put an odd event behind a track's header or somewhere else."""
    places = [at + 8 for at in _places(bytes(data), b"MTrk")] or [0]
    at = rng.choice((rng.choice(places), rng.randrange(len(data))))
    delta = rng.choice((b"\0", b"\xff\xff\xff\x7f", b"\x8f\xff\xff\xff\x7f", b"\xff" * 12, rng.randbytes(1)))
    kind = rng.choice((1, 3, 0x2F, 0x51, 0x54, 0x58, 0x59, 0x7F, rng.randrange(256)))
    event = rng.choice(
        (
            bytes([0xFF, kind, 4]) + rng.randbytes(4),
            bytes([0xFF, kind]) + rng.randbytes(3),
            bytes([0xFF, kind, 0x8F, 0xFF, 0xFF, 0x7F]),
            b"\xf0" + rng.randbytes(rng.randrange(20)),
            bytes([rng.randrange(0x80, 0x100)]) + rng.randbytes(rng.randrange(3)),
            rng.randbytes(2),
            bytes([0x90 | rng.randrange(16), rng.randrange(128), 100]),
        )
    )
    data[at:at] = delta + event


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.randrange(1, 12)] * rng.choice((10, 1000, 5000))


def _seven_bits(data: bytearray, rng: random.Random) -> None:
    data[:] = bytes(byte & 0x7F for byte in data)


def _text_mode(data: bytearray, rng: random.Random) -> None:
    old, new = rng.choice(((b"\n", b"\r\n"), (b"\r\n", b"\n"), (b"\r", b""), (b"\0", b""), (b"\0", b" ")))
    data[:] = bytes(data).replace(old, new)


def _wrap(data: bytearray, rng: random.Random) -> None:
    data[:0] = rng.choice((b"RIFF\0\0\0\0RMIDdata\xff\0\0\0", bytes(128), rng.randbytes(rng.randrange(300))))


def _chunks(data: bytearray, rng: random.Random) -> None:
    """Shuffle, drop or repeat whole chunks."""
    places = _places(bytes(data), b"MTrk")
    if len(places) > 1:
        parts = [bytes(data[a:b]) for a, b in zip(places, [*places[1:], len(data)], strict=True)]
        rng.shuffle(parts)
        data[places[0] :] = b"".join(parts[: rng.randrange(1, len(parts) + 1)] * rng.choice((1, 1, 3)))


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    _bytes, _bytes, _delete, _insert, _copy, _cut, _lie_about_length, _header, _event, _event, _repeat, _text_mode,
    _wrap, _chunks,
]  # fmt: skip
RARE = [_seven_bits]


def mutate(data: bytes, rng: random.Random, most: int = 4) -> bytes:
    """Damage a file in one to `most` ways."""
    damaged = bytearray(data)
    for _ in range(rng.randint(1, most)):
        if not damaged:
            break
        rng.choice(RARE if rng.random() < 0.01 else MUTATIONS)(damaged, rng)
    return bytes(damaged)
