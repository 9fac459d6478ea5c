"""Arguments of the wrong kind are refused here; NumPy's numbers are as good as Python's."""

from __future__ import annotations

import errno
import math
import operator
import os
import re
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from melodia.errors import ConfigError, MelodiaError, show_path


def whole_number(
    name: str, value: object, low: int, high: int | None = None, *, limits: str = "", remedy: str = ""
) -> int:
    """A whole number within limits, as Python's own.

    Args:
        name: of the argument.
        value: what was received; anything with `__index__`, but no truth value.
        low, high: the limits; None for no upper one.
        limits: the limits in words, where their digits say less.
        remedy: what else may be done.

    Raises:
        ConfigError: it is something else.

    >>> whole_number("bars", 8, 1)
    8
    >>> whole_number("branches", 2.5, 1, 64)
    Traceback (most recent call last):
    ...
    melodia.errors.ConfigError: `branches` must be a whole number between 1 and 64 (received 2.5)
    """
    try:
        found = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        found = None
    if found is None or found < low or (high is not None and found > high):
        limits = limits or (f", at least {low}" if high is None else f" between {low} and {high}")
        remedy = remedy and f"; {remedy}"
        raise ConfigError(f"`{name}` must be a whole number{limits} (received {value!r}){remedy}")
    return found


def real_number(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    unit: str = "",
    remedy: str = "",
) -> float:
    """A finite number within limits, as Python's own float.

    Args:
        name: of the argument.
        value: what was received.
        low, high: the limits.
        unit: of the limits, in words.
        remedy: what else may be done.

    Raises:
        ConfigError: it is something else.

    >>> real_number("temperature", "hot")
    Traceback (most recent call last):
    ...
    melodia.errors.ConfigError: `temperature` must be a number (received 'hot')
    >>> real_number("pitch_bias", 2, 0, 1)
    Traceback (most recent call last):
    ...
    melodia.errors.ConfigError: `pitch_bias` must be between 0 and 1 (received 2.0)
    >>> real_number("weight_decay", -1, 0)
    Traceback (most recent call last):
    ...
    melodia.errors.ConfigError: `weight_decay` must be at least 0 (received -1.0)
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"`{name}` must be a number (received {value!r})")
    try:
        found = float(value)
    except OverflowError:  # a whole number past every float
        found = math.inf
    if not math.isfinite(found):
        raise ConfigError(f"`{name}` must be finite (received {value!r})")
    if not low <= found <= high:
        unit, remedy = unit and f" {unit}", remedy and f"; {remedy}"
        limits = f"between {low} and {high}"
        if math.isinf(low) or math.isinf(high):
            limits = f"at least {low}" if math.isinf(high) else f"at most {high}"
        raise ConfigError(f"`{name}` must be {limits}{unit} (received {found}){remedy}")
    return found


def truth_value(name: str, value: object) -> bool:
    """True or False, as Python's own; 1 and 0 are as good.

    Raises:
        ConfigError: it is something else.

    >>> truth_value("greedy", "no")
    Traceback (most recent call last):
    ...
    melodia.errors.ConfigError: `greedy` must be True or False (received 'no')
    """
    if type(value).__name__ not in ("bool", "bool_", "int") or value not in (0, 1):
        raise ConfigError(f"`{name}` must be True or False (received {value!r})")
    return bool(value)


def named_values(name: str, value: object) -> dict[str, Any]:
    """Settings by name, as a dictionary of its own; None: no settings.

    Raises:
        ConfigError: it is something else.

    >>> named_values("training", 5)
    Traceback (most recent call last):
    ...
    melodia.errors.ConfigError: `training` must be a dictionary with names as keys (received 5)
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"`{name}` must be a dictionary with names as keys (received {value!r})")
    return dict(value)


def device_name(name: str, value: object) -> str:
    """The name of a device to compute on, which need not be there.

    Raises:
        ConfigError: it is something else.

    >>> device_name("device", "cuda:1")
    'cuda:1'
    >>> device_name("device", "meta")
    Traceback (most recent call last):
    ...
    melodia.errors.ConfigError: `device` must be auto, cpu, cuda or cuda:N (received 'meta')
    """
    if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", value):
        raise ConfigError(f"`{name}` must be auto, cpu, cuda or cuda:N (received {value!r})")
    return value


def file_path(name: str, value: object, error: type[MelodiaError] = ConfigError) -> Path:
    """A path, of text, of bytes or of an object that is one.

    Raises:
        ConfigError: it is something else.
        error: it is a name that no file can have.

    >>> file_path("model", 5)
    Traceback (most recent call last):
    ...
    melodia.errors.ConfigError: `model` must be a path (received 5)
    """
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise ConfigError(f"`{name}` must be a path (received {value!r})")
    path = Path(os.fsdecode(value))
    try:
        os.lstat(path)
    except (OSError, ValueError) as problem:  # ValueError: a null character
        if getattr(problem, "errno", errno.EINVAL) in (errno.ENAMETOOLONG, errno.EINVAL):
            reason = getattr(problem, "strerror", problem)
            raise error(f"{show_path(path)}: no file can have this name ({reason}); choose another") from None
    return path


def listener(name: str, value: object) -> None:
    """Raise ConfigError for a listener that cannot be called; None is nobody."""
    if value is not None and not callable(value):
        raise ConfigError(f"`{name}` must be callable (received {value!r})")
