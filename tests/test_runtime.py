"""Generating without torch: what is imported, that nothing else is needed, and that the music is the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sampler_helpers import make_seed, scale, tiny_sampler

from melodia import engine
from melodia.model import load_checkpoint, save_checkpoint
from melodia.sampler import Sampler

pytestmark = pytest.mark.skipif(engine.reason() is not None, reason=f"no engine: {engine.reason()}")

HEAVY = ("torch", "miditok", "matplotlib", "pretty_midi", "mido", "rich", "pandas", "tokenizers")

PRELUDE = f"""
import sys
HEAVY = {HEAVY!r}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ImportError(f"{{name}} is not to be imported")
def imported():
    return sorted(set(HEAVY) & set(sys.modules))
"""
BLOCK = "sys.meta_path.insert(0, Blocker())\n"

EMBEDDED = """
from melodia.runtime import Sampler, write_midi
sampler = Sampler.load(sys.argv[1])
sampler.prime(sys.argv[2])
made = sampler.generate(bars=8, random_seed=3)
write_midi(made.joined_score, sys.argv[3])
sampler.save_state(sys.argv[3] + ".session")
sampler.load_state(sys.argv[3] + ".session")
stream = sampler.stream(random_seed=3, bars=8)
assert sorted(e.onset for e in stream) == [e.onset for e in made.events]
sampler.prime(sampler.tokenizer.encode(made.score).ids)
print(imported(), *made.tokens)
"""


def python(code: str, *arguments: object, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | variables,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def save(folder: Path, sampler: Sampler, weights: str = "fp32") -> Path:
    return save_checkpoint(
        folder,
        sampler.model,
        vocabulary=sampler.vocabulary,
        tokenizer_json=sampler.tokenizer.to_dict(),
        weights=weights,
    )


@pytest.fixture(scope="module", params=["parallel", "bidirectional"])
def sampler(request: pytest.FixtureRequest) -> Sampler:
    return tiny_sampler("REMI", request.param, layer_norm=True)


@pytest.fixture(scope="module")
def folder(sampler: Sampler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("runtime") / "model", sampler)


@pytest.fixture
def seed(samples_dir: Path) -> Path:
    return samples_dir / "greensleeves.mid"


@pytest.mark.parametrize("block", [False, True])
def test_a_program_that_embeds_it_needs_no_torch(
    block: bool, sampler: Sampler, folder: Path, seed: Path, tmp_path: Path
) -> None:
    """Neither imports it where it is there, nor misses it where it is not; the tokens are those of a torch model."""
    out = tmp_path / "out.mid"
    said = python(PRELUDE + (BLOCK if block else "") + EMBEDDED, folder, seed, out)
    imported, _, tokens = said.partition("] ")
    assert imported == "["
    assert out.stat().st_size > 100
    sampler.prime(seed)
    assert [int(token) for token in tokens.split()] == sampler.generate(bars=8, random_seed=3).tokens.tolist()


@pytest.mark.parametrize(
    "arguments",
    ["--version", "--help", "generate --help", "generate --seed {seed} --model {folder} --out {out}"],
)
def test_the_command_line_needs_no_torch(arguments: str, folder: Path, seed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mid"
    words = arguments.format(seed=seed, folder=folder, out=out).split()
    code = "from melodia.cli import main\nassert main(sys.argv[1:]) == 0\n"
    code += "print(imported(), 'numpy' in sys.modules)"
    said = python(PRELUDE + BLOCK + code, *words).splitlines()[-1]
    assert said == f"[] {'--out' in words}"
    assert out.exists() == ("--out" in words)


def test_what_needs_torch_says_so_where_there_is_none(folder: Path) -> None:
    code = """
from melodia.errors import BackendError
from melodia.runtime import MelodiaError, Sampler
for settings in {"backend": "reference"}, {"device": "cuda"}:
    try:
        Sampler.load(sys.argv[1], **settings)
    except MelodiaError as error:
        print(isinstance(error, BackendError) and "BackendError", error)
"""
    said = python(PRELUDE + BLOCK + code, folder).splitlines()
    assert said[0].startswith(
        "BackendError without the engine models run in torch, and the reference backend was"
    )
    assert said[1].startswith("BackendError `device` 'cuda' needs torch, which cannot be imported")


@pytest.mark.parametrize("block", [BLOCK, "sys.modules['torch'] = None\n"])
def test_names_that_need_torch_say_so_where_there_is_none(block: str, folder: Path, seed: Path) -> None:
    code = """
import melodia
from melodia.errors import BackendError
from melodia.model import Network
sampler = melodia.Sampler.load(sys.argv[1])
for use in (
    lambda: sampler.model,
    lambda: melodia.train_folder,
    lambda: melodia.compare_kinds,
    lambda: melodia.evaluate_folder(sys.argv[2]),
    lambda: melodia.model.load_checkpoint,
):
    try:
        use()
    except melodia.MelodiaError as error:
        print(isinstance(error, BackendError) and "BackendError", error)
try:
    from melodia import train_folder
except ImportError as error:
    print("ImportError", error)
"""
    *said, imported = python(PRELUDE + block + code, folder, seed).splitlines()
    assert imported.startswith("ImportError `train_folder` needs torch, which cannot be imported (")
    needed_by = ["a torch model", "`train_folder`", "`compare_kinds`", "evaluate", "`load_checkpoint`"]
    for line, what in zip(said, needed_by, strict=True):
        assert line.startswith(f"BackendError {what} needs torch, which cannot be imported (")
        assert line.endswith("); install it")


@pytest.mark.parametrize(
    "command", ["info", "train {folder} --out {out}", "evaluate {folder} --model {folder}"]
)
def test_a_command_without_torch_ends_in_words(command: str, folder: Path, tmp_path: Path) -> None:
    words = command.format(folder=folder, out=tmp_path / "out").split()
    code = "sys.modules['torch'] = None\nsys.stderr = sys.stdout\n"
    code += "from melodia.cli import main\nprint(main(sys.argv[1:]))"
    said = python(PRELUDE + code, *words).splitlines()
    if command == "info":
        assert any(line.startswith("backend: missing: torch cannot be imported") for line in said)
        assert said[-1] == "0"
    else:
        assert said[-2].startswith(f"melodia: {words[0]} needs torch, which cannot be imported (")
        assert said[-1] == "1"


def test_without_the_engine_torch_runs(folder: Path, seed: Path, tmp_path: Path) -> None:
    """A model that was read without torch is handed to it; the tokens are the same."""
    code = "from melodia.runtime import Sampler\nsampler = Sampler.load(sys.argv[1], device='cpu')\n"
    code += "sampler.prime(sys.argv[2])\nmade = sampler.generate(bars=2, random_seed=3)\n"
    code += "print('torch' in sys.modules, made.report.backend, made.tokens.tolist())"
    with_engine = python(PRELUDE + code, folder, seed)
    without = python(PRELUDE + code, folder, seed, MELODIA_DISABLE_EXT="1")
    assert with_engine.startswith("False native on cpu [")
    assert without.startswith("True reference on cpu [")
    assert with_engine.partition("[")[2] == without.partition("[")[2]


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_both_ways_of_loading_are_one_model(weights: str, sampler: Sampler, tmp_path: Path) -> None:
    """The same fingerprint, so that sessions go from one to the other, and the same music."""
    folder = save(tmp_path / "model", sampler, weights)
    light = Sampler.load(folder, device="cpu")
    heavy = Sampler(load_checkpoint(folder).model, light.tokenizer)
    reference = Sampler(load_checkpoint(folder).model, light.tokenizer, backend="reference")
    light.prime(make_seed(scale(3)))
    path = light.save_state(tmp_path / "session")
    made = [
        s.generate(bars=3, random_seed=5, state=s.load_state(path)).tokens for s in (light, heavy, reference)
    ]
    assert len(made[0]) > 10
    assert made[0].tolist() == made[1].tolist() == made[2].tolist()
    for name, part in light.state.model_state.items():
        reference.prime(make_seed(scale(3)))
        np.testing.assert_allclose(part, reference.state.model_state[name], atol=2e-5)


def test_the_torch_model_of_a_light_sampler_is_the_one_that_it_runs(folder: Path) -> None:
    light = Sampler.load(folder, device="cpu")
    before = light.generate(bars=2, random_seed=1).tokens
    assert light.model.config == light.config
    fresh = Sampler.load(folder, device="cpu")
    fresh.model.head.bias.data[fresh.vocabulary.ids_of("Velocity")[0]] += 40  # before the engine packs it
    after = fresh.generate(bars=2, random_seed=1).tokens
    assert before.tolist() != after.tolist()
