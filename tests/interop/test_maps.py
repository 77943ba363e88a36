"""Exports for segmenters and detectors against PyTorch's numbers, at sizes people use."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from conftest import REFERENCE, tec_zoo
from segmenters_and_detectors import Detector, Segmenter, shaken
from test_onnx import TARGETS, run

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["raw", "normed"])
def segmenter(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    module = shaken(Segmenter(size=512, width=192, heads=3, normed=request.param == "normed"))
    torch.save(module.checkpoint(), folder / "tuned.pth")
    tec_zoo("convert", folder / "tuned.pth", "--heads", 3, "--out", folder / "model")
    return module, folder / "model"


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    module = shaken(Detector(size=512, width=192, heads=3, out=64))
    torch.save(module.checkpoint(), folder / "tuned.pth")
    tec_zoo("convert", folder / "tuned.pth", "--out", folder / "model")
    return module, folder / "model"


def images(*size):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))


def agree(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == tuple(b.shape)
        assert np.abs(a - b.numpy()).max() <= TOLERANCE


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("purpose", ["upernet", "cascade-mask-rcnn"])
def test_a_segmenters_pyramid_is_pytorchs(segmenter, tmp_path, purpose, target):
    module, directory = segmenter
    path = tmp_path / "x.onnx"
    tec_zoo("export", directory, "--out", path, "--for", purpose, "--target", target, "--no-check")
    batch = images(512, 512)
    with torch.no_grad():
        agree(run(path, batch.numpy()), module(batch))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [(512, 512), (448, 448), (320, 640)])
def test_a_detectors_maps_are_pytorchs_at_its_own_size_and_at_others(detector, tmp_path, size, target):
    module, directory = detector
    path = tmp_path / "x.onnx"
    text = "x".join(map(str, size))
    tec_zoo("export", directory, "--out", path, "--for", "vitdet", "--size", text, "--target", target, "--no-check")
    batch = images(*size)
    with torch.no_grad():
        agree(run(path, batch.numpy()), module(batch))


def test_every_runtime_runs_them_and_says_the_same(segmenter, detector, tmp_path):
    for directory, purpose, size in [(segmenter[1], "upernet", "512x512"), (detector[1], "vitdet", "320x640")]:
        path = tmp_path / "x.onnx"
        checked = tec_zoo("export", directory, "--out", path, "--overwrite", "--for", purpose, "--size", size, "--json")
        runtimes = json.loads(checked)["check"]["runtimes"]
        assert {runtime["runtime"]: runtime["verdict"] for runtime in runtimes} == dict.fromkeys(
            ["ort", "tract", "candle"], "ran"
        )


def test_a_plain_models_levels_are_the_blocks_of_timm(tmp_path):
    """No neck: four maps at stride 16, raw for MAE and through the norm for iBOT."""
    torch.manual_seed(0)
    module = shaken(Segmenter(size=224, width=192, heads=3, normed=True))
    state = {key: value.contiguous() for key, value in module.vit.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "vit.safetensors")
    tec_zoo("convert", tmp_path / "vit.safetensors", "--family", "timm", "--heads", 3, "--out", tmp_path / "model")
    batch = images(224, 224)
    for norm, normed in [("raw", False), ("final", True)]:
        path = tmp_path / f"{norm}.onnx"
        options = ["--for", "upernet", "--norm", norm, "--size", "224x224", "--no-check"]
        tec_zoo("export", tmp_path / "model", "--out", path, *options)
        with torch.no_grad():
            theirs = module.vit.forward_intermediates(
                batch, indices=[3, 5, 7, 11], norm=normed, output_fmt="NCHW", intermediates_only=True
            )
        agree(run(path, batch.numpy()), theirs)


def test_a_fine_tuned_mae_gives_its_feature_and_its_logits(tmp_path):
    """`fc_norm` over the mean of the patches, and no final norm, as MAE fine-tunes."""
    state = torch.load(REFERENCE / "mae_pretrain_vit_tiny.pth", weights_only=True)["model"]
    generator = torch.Generator().manual_seed(0)
    for leaf in ("weight", "bias"):
        state[f"fc_norm.{leaf}"] = state.pop(f"norm.{leaf}")
    state["head.weight"] = torch.randn(7, 16, generator=generator)
    state["head.bias"] = torch.randn(7, generator=generator)
    torch.save({"model": state}, tmp_path / "finetuned.pth")
    tec_zoo("convert", tmp_path / "finetuned.pth", "--family", "mae", "--heads", 4, "--out", tmp_path / "model")
    stored = load_file(REFERENCE / "mae_expected.safetensors")
    feature = stored["block3"][:, 1:].mean(1)
    norm = torch.nn.functional.layer_norm(feature, (16,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6)
    logits = norm @ state["head.weight"].T + state["head.bias"]
    for target in TARGETS:
        path = tmp_path / f"{target}.onnx"
        tec_zoo("export", tmp_path / "model", "--out", path, "--for", "classification", "--target", target)
        agree(run(path, stored["images"].numpy()), [feature, logits])
