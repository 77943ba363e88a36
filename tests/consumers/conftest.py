"""What the tests here share: the program, converted fixtures, the authors' images, and our own features of any image."""

import pathlib
import sys

import pytest

here = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(here), str(here.parent)]
from program import FIXTURES, converted, tec_zoo  # noqa: E402, F401
from stubs import without_compiled_operators  # noqa: E402

without_compiled_operators()

CHECKPOINTS = {
    "mae": ("reference/mae_pretrain_vit_tiny.pth", ["--family", "mae"]),
    "ibot": ("reference/ibot_checkpoint_full.pth", ["--family", "ibot", "--branch", "teacher"]),
    "tec": ("reference/tec_converted.pth", ["--family", "tec"]),
    "dinov2": ("dinov2/vit_tiny14_pretrain.pth", ["--family", "dinov2"]),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return converted(CHECKPOINTS, tmp_path_factory.mktemp("models"))
