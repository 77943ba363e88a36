"""What every Python suite needs: the program, the fixtures, and converted models."""

import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "fixtures"
BINARY = os.environ["TEC_ZOO_BIN"]


def tec_zoo(*arguments, code=0):
    """Runs the program; returns its standard output."""
    done = subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == code, f"{arguments} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def converted(checkpoints, folder):
    """Every checkpoint (file of the fixtures, extra options of `convert`), converted: name -> directory."""
    out = {}
    for name, (file, options) in checkpoints.items():
        out[name] = folder / name
        tec_zoo("convert", FIXTURES / file, "--out", out[name], "--heads", 4, *options)
    return out
