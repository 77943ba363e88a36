"""Exported graphs: onnx's own checker, the Python ONNX Runtime, PyTorch's numbers, and onnxslim's opinion."""

import itertools
import json

import numpy as np
import onnx
import onnxruntime
import onnxslim
import pytest
import safetensors.torch
import timm
import torch

from conftest import tec_zoo

TARGETS = ["portable", "ort"]
# Options of `export`, and the models (of the fixture `models`) they are tried on.
VARIANTS = {
    "tokens": (["--for", "tokens"], ["mae", "ibot", "mocov3", "tec", "tec-released"]),
    "tokens-other-size": (["--for", "tokens", "--size", "48x80"], ["ibot"]),
    "adapted": (["--for", "tokens", "--adapters", "keep"], ["tec"]),
    "levels": (["--for", "levels", "--levels", "0,1,3"], ["mae"]),
    "classification": (["--for", "classification"], ["mae", "mocov3"]),
    "dinov2-tokens": (["--for", "tokens"], ["dinov2", "dinov2-reg"]),
    "dinov2-other-size": (["--for", "tokens", "--size", "28x70"], ["dinov2", "dinov2-reg"]),
    "dinov2-levels": (["--for", "levels", "--levels", "0,1"], ["dinov2-reg"]),
    "dinov2-classification": (["--for", "classification"], ["dinov2-reg"]),
}
CASES = [
    (name, model, target)
    for (name, (_, models)), target in itertools.product(VARIANTS.items(), TARGETS)
    for model in models
]


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path, images):
    return session(path).run(None, {"pixel_values": images})


def operators(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("variant,model,target", CASES)
def test_checker_runtime_and_slimmer_have_nothing_to_add(models, tmp_path, variant, model, target):
    options, _ = VARIANTS[variant]
    path = tmp_path / "model.onnx"
    report = json.loads(tec_zoo("export", models[model], "--out", path, "--target", target, "--json", *options))
    onnx.checker.check_model(str(path), full_check=True)
    exported = onnx.load(path)
    assert len(exported.graph.node) == report["export"]["nodes"]
    # Nothing to fold, no identity to remove, no two nodes that compute the same.
    slimmed = onnxslim.slim(onnx.load(path), skip_fusion_patterns=None, no_shape_infer=False)
    assert len(operators(slimmed)) == len(operators(exported)), (
        set(operators(exported)) ^ set(operators(slimmed)),
        len(operators(exported)),
        len(operators(slimmed)),
    )
    inputs = session(path).get_inputs()
    assert [(i.name, i.type, i.shape[0]) for i in inputs] == [("pixel_values", "tensor(float)", "batch")]
    for batch in (1, 3):
        images = np.random.default_rng(batch).standard_normal((batch, *inputs[0].shape[1:]), dtype=np.float32)
        for output, info in zip(run(path, images), report["export"]["outputs"], strict=True):
            assert output.shape == (batch, *map(int, info["shape"][1:]))
            assert np.isfinite(output).all()


@pytest.fixture(scope="session")
def vit_b(tmp_path_factory):
    """timm's ViT-B with random weights, and the same converted."""
    folder = tmp_path_factory.mktemp("vit-b")
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224", num_classes=0).eval()
    with torch.no_grad():
        # Fresh norms and biases are ones and zeros: a graph that left them out would not be noticed.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "vit_b.safetensors")
    directory = folder / "vit_b"
    tec_zoo("convert", folder / "vit_b.safetensors", "--family", "timm", "--heads", 12, "--out", directory)
    return model, directory


@pytest.mark.parametrize("target", TARGETS)
def test_vit_b_gives_pytorchs_numbers(vit_b, tmp_path, target):
    model, directory = vit_b
    path = tmp_path / "vit_b.onnx"
    tec_zoo("export", directory, "--out", path, "--target", target, "--no-check")
    for batch in (1, 3):
        images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = model.forward_features(images).numpy()
        [tokens] = run(path, images.numpy())
        assert np.abs(tokens - expected).max() <= 1e-4
