"""What a pretraining writes, in the tools it is written for."""

import json

import numpy
import pytest
import timm
import torch
from conftest import tec_zoo
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SMALL = ["optimizer.batch=8", "optimizer.micro_batch=4", "optimizer.epochs=3", "optimizer.warmup_epochs=1", "run.save_steps=3"]


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    """Nine updates of the nano recipe from the MAE fixture."""
    folder = tmp_path_factory.mktemp("train")
    random = numpy.random.default_rng(0)
    (folder / "photos").mkdir()
    for i in range(26):
        Image.fromarray(random.integers(0, 256, (70, 80, 3), dtype=numpy.uint8)).save(folder / "photos" / f"{i}.jpg")
    sets = [word for setting in SMALL for word in ("--set", setting)]
    tec_zoo("pretrain", "--base", models["mae"], "--data", folder / "photos", "--out", folder / "run", "--recipe", "nano", *sets)
    return folder / "run"


def test_tensorboard_reads_every_scalar_of_every_update(run):
    events = EventAccumulator(str(run)).Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {
        "loss/total": "loss",
        "loss/feature": "feature",
        "loss/attention": "attention",
        "optimizer/lr": "lr",
        "optimizer/grad_norm": "grad_norm",
        "speed/images_per_second": "images_per_second",
        "speed/data_wait": "data_wait",
    }
    assert set(events.Tags()["scalars"]) == set(names)
    for tag, key in names.items():
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        # TensorBoard keeps float32.
        assert found == [(line["step"], float(numpy.float32(line[key]))) for line in lines]


@pytest.mark.parametrize("which", ["model", "checkpoints/step-00000006"])
def test_timm_loads_the_result_and_a_checkpoint_strictly_and_computes_the_same(run, which, tmp_path):
    directory = run / which
    if which != "model":
        directory = tmp_path / "model"
        tec_zoo("convert", run / which, "--out", directory)
    model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    save_file({"images": images}, tmp_path / "images.safetensors")
    tec_zoo("embed", run / which, tmp_path / "images.safetensors", "--out", tmp_path / "out.safetensors", "--outputs", "norm")
    with torch.no_grad():
        theirs = model.forward_features(images)
    ours = load_file(tmp_path / "out.safetensors")["norm"]
    # Three blocks of float32 in two implementations.
    assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-5


def test_the_merged_class_token_is_the_input_adapters_output(run):
    """No residual, exact GELU (models_tec_vit.py:389-397)."""
    adapters = load_file(run / "model" / "adapters.safetensors")
    linear = torch.nn.functional.linear
    hidden = linear(adapters["input_adapter.cls_token"], adapters["input_adapter.fc1.weight"], adapters["input_adapter.fc1.bias"])
    merged = linear(torch.nn.functional.gelu(hidden), adapters["input_adapter.fc2.weight"], adapters["input_adapter.fc2.bias"])
    token = load_file(run / "model" / "model.safetensors")["cls_token"]
    assert (merged - token).abs().max() < 1e-6
