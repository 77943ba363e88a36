"""What a pretraining sees, against PIL: the crops it says it made, cut and resized by Pillow, are its pixels.

A learning rate that makes the second update's loss no number leaves its images in a dump. Which crop and mirroring a sample
has follows from (seed, epoch, sample) by ChaCha8 and torchvision's arithmetic, written here once more.
"""

import json
import math
import struct
import subprocess

import numpy
import pytest
from conftest import tec_zoo
from PIL import Image
from program import BINARY
from safetensors.numpy import load_file

CROP, FLIP = 1, 2
MEAN, STD = numpy.float32([0.485, 0.456, 0.406]), numpy.float32([0.229, 0.224, 0.225])


class ChaCha8:
    """The words of rand_chacha's generator with this key, from the start."""

    def __init__(self, *key):
        self.key, self.block, self.words = struct.unpack("<8I", struct.pack("<4Q", *key)), 0, []

    def word(self):
        if not self.words:
            start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *self.key, self.block, 0, 0, 0]
            self.words, self.block = self.rounds(start), self.block + 1
        return self.words.pop(0)

    @staticmethod
    def rounds(start):
        state = list(start)

        def quarter(a, b, c, d):
            for x, y, z, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                state[x] = (state[x] + state[y]) & 0xFFFFFFFF
                mixed = state[z] ^ state[x]
                state[z] = (mixed << bits | mixed >> (32 - bits)) & 0xFFFFFFFF

        for _ in range(4):
            for column in range(4):
                quarter(column, column + 4, column + 8, column + 12)
            for diagonal in range(4):
                quarter(diagonal, 4 + (diagonal + 1) % 4, 8 + (diagonal + 2) % 4, 12 + (diagonal + 3) % 4)
        return [(a + b) & 0xFFFFFFFF for a, b in zip(start, state, strict=True)]

    def unit(self):
        return numpy.float32(self.word() >> 8) * numpy.float32(2**-24)

    def below(self, bound):
        while True:
            product = self.word() * bound
            if product % 2**32 >= 2**32 % bound:
                return product >> 32


def crop(width, height, draws, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3)):
    """RandomResizedCrop.get_params: left, top, right, bottom; the box of nearly every image is the first that fits."""
    low, high = (numpy.log(numpy.float32(bound)) for bound in ratio)
    for _ in range(10):
        target = width * height * float(draws.unit() * numpy.float32(scale[1] - numpy.float32(scale[0])) + numpy.float32(scale[0]))
        aspect = float(numpy.exp(draws.unit() * (high - low) + low))
        wide, tall = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            top, left = draws.below(height - tall + 1), draws.below(width - wide + 1)
            return left, top, left + wide, top + tall
    return None


@pytest.fixture(scope="module")
def dump(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixels")
    random = numpy.random.default_rng(0)
    (folder / "photos").mkdir()
    for i in range(24):
        width, height = random.integers(40, 300, 2)
        noise = random.integers(0, 256, (height, width, 3), dtype=numpy.uint8)
        extreme = random.random(noise.shape) < 0.3
        noise[extreme] = 255 * random.integers(0, 2, int(extreme.sum()), dtype=numpy.uint8)
        ending = ("jpg", "png", "bmp", "tif")[i % 4]
        Image.fromarray(noise).save(folder / "photos" / f"{i:02}.{ending}", **({"quality": 95} if ending == "jpg" else {}))
    sets = ["optimizer.batch=8", "optimizer.micro_batch=4", "optimizer.warmup_epochs=0", "optimizer.base_lr=1e30"]
    sets += ["optimizer.epochs=3", "data.exact_decode=true", "run.seed=5"]
    arguments = ["pretrain", "--base", models["mae"], "--data", folder / "photos", "--out", folder / "run", "--recipe", "nano"]
    done = subprocess.run([BINARY, *arguments, *(word for setting in sets for word in ("--set", setting))], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    return next((folder / "run").glob("nonfinite-step-*")), folder / "photos"


def test_the_pixels_of_a_run_are_pils_to_the_bit(dump):
    folder, photos = dump
    about = json.loads((folder / "dump.json").read_text())
    files = sorted(photos.iterdir())
    seen = 0
    for at, samples in enumerate(about["samples"]):
        images = load_file(folder / f"batch.{at}.safetensors")["images"]
        side = math.isqrt(images.shape[1] // 3)
        for sample, values in zip(samples, images, strict=True):
            image = Image.open(files[sample]).convert("RGB")
            box = crop(*image.size, ChaCha8(5, about["epoch"], sample, CROP))
            if box is None:
                continue
            theirs = numpy.asarray(image.crop(box).resize((side, side), Image.Resampling.BICUBIC))
            if ChaCha8(5, about["epoch"], sample, FLIP).unit() < 0.5:
                theirs = theirs[:, ::-1]
            ours = values.reshape(3, side, side).transpose(1, 2, 0) * STD + MEAN
            levels = numpy.rint(ours * 255).astype(int)
            assert (levels == theirs).all(), f"{files[sample].name} {box}: up to {abs(levels - theirs).max()} levels"
            seen += 1
    assert seen >= 6
