"""What lies in the folder of a training already is not lost."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from melodia.errors import TrainingError
from melodia.training.distributed import World
from melodia.training.folder import look
from melodia.training.logs import COLUMNS, EARLIER, Logs
from melodia.training.resume import write_state


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "name", ["training.csv", "tensorboard/events.out.tfevents.1.elsewhere", "tensorboard"]
)
def test_what_others_wrote_is_never_replaced(name: str, resume: bool, force: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine\n1\n")
    with pytest.raises(TrainingError, match=r"no training run wrote it; move it or choose another folder"):
        look(tmp_path, World(), resume, force)
    assert path.read_text() == "mine\n1\n"


@pytest.mark.parametrize("columns", [COLUMNS, EARLIER])
def test_an_older_log_goes_only_if_forced(columns: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "training.csv").write_text(f"{','.join(columns)}\n1{',' * (len(columns) - 1)}\n")
    with pytest.raises(TrainingError, match=r"the log of a training.*`force`"):
        look(tmp_path, World(), False, False)
    assert look(tmp_path, World(), False, True) is None


def test_a_log_with_one_name_for_two_losses_is_gone_on_with(tmp_path: Path) -> None:
    """As melodia wrote it before: the row of a validation has no gradient norm."""
    lines = [",".join(EARLIER), "20,0.1,3,0.01,0.5,900,2.5,8.5,,", "20,0.1,4,0.01,,,3.5,9.5,2.75,8.75"]
    (tmp_path / "training.csv").write_text("\n".join([*lines, "40,0.2,6,0.01,0.5,900,2,7,,", ""]))
    logs = Logs(tmp_path, 20, tensorboard=False)
    logs.write(iteration=40, recent_nats_per_token=2.0)
    logs.close()
    with (tmp_path / "training.csv").open() as file:
        late, validation, new = csv.DictReader(file)
    assert list(new) == list(COLUMNS)
    assert (late["recent_nats_per_token"], late["recent_nats_per_note"]) == ("2.5", "8.5")
    assert (late["train_nats_per_token"], late["seconds"]) == ("", "3")
    assert (validation["train_nats_per_token"], validation["valid_nats_per_note"]) == ("3.5", "8.75")
    assert validation["recent_nats_per_token"] == ""
    assert (new["iteration"], new["recent_nats_per_token"]) == ("40", "2")


def test_what_a_training_left_before_its_first_row_is_replaced(tmp_path: Path) -> None:
    Logs(tmp_path).close()
    (tmp_path / "best").mkdir(exist_ok=True)
    (tmp_path / "best").rmdir()
    for resume in (False, True):
        assert look(tmp_path, World(), resume, False) is None


def test_force_takes_the_logs_and_the_state_of_a_training_and_no_more(tmp_path: Path) -> None:
    Logs(tmp_path).close()
    board = tmp_path / "tensorboard"
    board.mkdir(exist_ok=True)
    (board / "events.out.tfevents.1.here").write_text("ours")
    (board / "notes.txt").write_text("mine")
    write_state(tmp_path / "resume", {"weight": torch.zeros(1)}, {})
    (tmp_path / "resume" / "letter.txt").write_text("mine")
    with pytest.raises(TrainingError, match=r"already holds a training run.*`resume`.*`force`"):
        look(tmp_path, World(), False, False)
    assert (board / "events.out.tfevents.1.here").exists()
    assert look(tmp_path, World(), True, False) is not None
    assert look(tmp_path, World(), False, True) is None
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"training.csv", "tensorboard/notes.txt", "resume/letter.txt"}
