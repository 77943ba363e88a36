"""What every module here needs: the program, the fixtures, and converted models."""

import json
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "fixtures" / "reference"
BINARY = os.environ["TEC_ZOO_BIN"]


def tec_zoo(*arguments, code=0):
    """Runs the program; returns its standard output."""
    done = subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == code, f"{arguments} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# One fixture checkpoint of each dialect: file, extra options of `convert`.
CHECKPOINTS = {
    "mae": ("mae_pretrain_vit_tiny.pth", ["--family", "mae"]),
    "ibot": ("ibot_checkpoint_full.pth", ["--family", "ibot", "--branch", "teacher"]),
    "mocov3": ("mocov3_vit_tiny.pth.tar", ["--family", "moco-v3", "--branch", "base"]),
    "tec": ("tec_checkpoint-299.pth", ["--family", "tec"]),
    "tec-released": ("tec_converted.pth", ["--family", "tec"]),
    "dino8": ("../dino/vit8_pretrain.pth", ["--family", "dino"]),
    "dinov2": ("../dinov2/vit_tiny14_pretrain.pth", ["--family", "dinov2"]),
    "dinov2-reg": ("../dinov2/vitg_reg4_tiny14_pretrain.pth", ["--family", "dinov2"]),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Every checkpoint of `CHECKPOINTS`, converted: name -> directory."""
    folder = tmp_path_factory.mktemp("models")
    out = {}
    for name, (file, options) in CHECKPOINTS.items():
        out[name] = folder / name
        tec_zoo("convert", REFERENCE / file, "--out", out[name], "--heads", 4, *options)
    return out


def config(directory):
    return json.loads((directory / "config.json").read_text())
