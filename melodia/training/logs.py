"""Logs of a training: `training.csv` always, TensorBoard's files where it is installed."""

from __future__ import annotations

import csv
import importlib.util
import math
import warnings
from pathlib import Path
from typing import Any, TextIO

from melodia.errors import TrainingError, show_path
from melodia.files import whole_file

LOG, BOARD = "training.csv", "tensorboard"
COLUMNS = (
    "iteration",
    "epoch",
    "seconds",
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
    "recent_nats_per_token",
    "recent_nats_per_note",
    "train_nats_per_token",
    "train_nats_per_note",
    "valid_nats_per_token",
    "valid_nats_per_note",
)
"""A row every 20 iterations has the training loss of late (`recent_`, a fading mean). Each validation has its own: the
mean training loss since the one before (`train_`) and the held-out pieces' (`valid_`)."""
RENAMED = {name.replace("recent", "train"): name for name in COLUMNS if name.startswith("recent")}
EARLIER = tuple(name for name in COLUMNS if name not in RENAMED.values())
"""The columns of an earlier melodia, which had both training losses under one name."""


class Logs:
    """Rows of `COLUMNS`; what has no value in a row stays empty.

    Args:
        folder: of the training.
        iteration: rows after it are dropped: they belong to a run that was cut off there, and come again.
        tensorboard: whether to write TensorBoard's files too, if it is installed.

    Raises:
        TrainingError: the folder cannot be written.
    """

    def __init__(self, folder: Path, iteration: int = 0, *, tensorboard: bool = True) -> None:
        self.path = folder / LOG
        try:
            folder.mkdir(parents=True, exist_ok=True)
            kept = self._kept_rows(iteration) if iteration else []
            with (
                whole_file(self.path, own=True) as part,
                part.open("w", newline="", encoding="utf-8") as file,
            ):
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(kept)
            self._file: TextIO = self.path.open("a", newline="", encoding="utf-8")
            self._writer = csv.DictWriter(self._file, COLUMNS)
        except OSError as error:
            raise self._error(error) from error
        self._board = self._open_board(folder / BOARD, iteration) if tensorboard else None

    def _kept_rows(self, iteration: int) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8", errors="replace") as source:
            known = set(COLUMNS), set(EARLIER)
            rows = [row for row in csv.DictReader(source) if set(row) in known and None not in row.values()]
        for row in rows:
            if row.keys() == set(EARLIER) and row["gradient_norm"]:  # no row of a validation
                row.update({name: row.pop(old) for old, name in RENAMED.items()})
        return [row for row in rows if row["iteration"].isdigit() and int(row["iteration"]) <= iteration]

    @staticmethod
    def _open_board(folder: Path, iteration: int) -> Any:
        if importlib.util.find_spec("tensorboard") is None:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                from torch.utils.tensorboard import SummaryWriter

                return SummaryWriter(str(folder), purge_step=iteration or None)
            except Exception:  # an installation of TensorBoard that does not start must not stop a training
                return None

    def write(self, **values: float) -> None:
        """Write a row; the iteration is needed, values that are nan are left out."""
        known = {name: value for name, value in values.items() if not math.isnan(value)}
        try:
            self._writer.writerow({name: f"{value:.10g}" for name, value in known.items()})
            self._file.flush()
            if self._board is not None:
                for name, value in known.items():
                    if name != "iteration":
                        self._board.add_scalar(name, value, int(values["iteration"]))
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        """Close the files."""
        try:
            self._file.close()
            if self._board is not None:
                self._board.close()
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> TrainingError:
        reason = error.strerror or str(error)
        return TrainingError(
            f"cannot write {show_path(self.path)}: {reason}; free some space or choose another folder"
        )
