"""What the tests here share: the program, converted fixtures, the authors' images, and our own features of any image."""

import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from stubs import without_compiled_operators  # noqa: E402

without_compiled_operators()

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"
BINARY = os.environ["TEC_ZOO_BIN"]

CHECKPOINTS = {
    "mae": ("reference/mae_pretrain_vit_tiny.pth", ["--family", "mae"]),
    "ibot": ("reference/ibot_checkpoint_full.pth", ["--family", "ibot", "--branch", "teacher"]),
    "tec": ("reference/tec_converted.pth", ["--family", "tec"]),
    "dinov2": ("dinov2/vit_tiny14_pretrain.pth", ["--family", "dinov2"]),
}


def tec_zoo(*arguments):
    done = subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    out = {}
    for name, (file, options) in CHECKPOINTS.items():
        out[name] = folder / name
        tec_zoo("convert", FIXTURES / file, "--out", out[name], "--heads", 4, *options)
    return out
