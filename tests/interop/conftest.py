"""What every module here needs: the program, the fixtures, and converted models."""

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from program import FIXTURES, ROOT, converted, tec_zoo  # noqa: E402, F401

REFERENCE = FIXTURES / "reference"

# One fixture checkpoint of each dialect: file, extra options of `convert`.
CHECKPOINTS = {
    "mae": ("reference/mae_pretrain_vit_tiny.pth", ["--family", "mae"]),
    "ibot": ("reference/ibot_checkpoint_full.pth", ["--family", "ibot", "--branch", "teacher"]),
    "mocov3": ("reference/mocov3_vit_tiny.pth.tar", ["--family", "moco-v3", "--branch", "base"]),
    "tec": ("reference/tec_checkpoint-299.pth", ["--family", "tec"]),
    "tec-released": ("reference/tec_converted.pth", ["--family", "tec"]),
    "dino8": ("dino/vit8_pretrain.pth", ["--family", "dino"]),
    "dinov2": ("dinov2/vit_tiny14_pretrain.pth", ["--family", "dinov2"]),
    "dinov2-reg": ("dinov2/vitg_reg4_tiny14_pretrain.pth", ["--family", "dinov2"]),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Every checkpoint of `CHECKPOINTS`, converted: name -> directory."""
    return converted(CHECKPOINTS, tmp_path_factory.mktemp("models"))


def config(directory):
    return json.loads((directory / "config.json").read_text())
