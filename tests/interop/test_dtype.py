"""f16 and int8 files: onnx's checker, the stored numbers against numpy's rounding, and levels against PyTorch with outliers."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
from onnx import numpy_helper

from conftest import tec_zoo

FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}


def weights(path):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("target", ["portable", "ort"])
@pytest.mark.parametrize("dtype", ["f16", "int8"])
@pytest.mark.parametrize("options", [[], ["--dynamic"], ["--for", "vitdet"], ["--adapters", "keep"]], ids=" ".join)
def test_onnx_finds_every_type_in_order(models, tmp_path, target, dtype, options):
    path = tmp_path / "model.onnx"
    tec_zoo("export", models["tec"], "--out", path, "--target", target, "--dtype", dtype, "--no-check", *options)
    onnx.checker.check_model(str(path), full_check=True)
    # Strict inference refuses a node whose inputs differ in type.
    onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True)


@pytest.mark.parametrize("target", ["portable", "ort"])
def test_numbers_are_rounded_as_numpy_rounds_them(models, tmp_path, target):
    for dtype in ["f32", "f16", "int8"]:
        tec_zoo("export", models["mae"], "--out", tmp_path / dtype, "--target", target, "--dtype", dtype, "--no-check")
    full, half, eighth = (weights(tmp_path / dtype) for dtype in ["f32", "f16", "int8"])
    halved = {name for name, value in half.items() if value.dtype == np.float16}
    assert {"blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias", "patch_embed.proj.weight"} <= halved
    assert not any("norm" in name or name == "pos_embed" for name in halved)
    for name in halved & full.keys():
        np.testing.assert_array_equal(half[name], full[name].astype(np.float16), err_msg=name)
    for name in full.keys() - halved:
        np.testing.assert_array_equal(half[name], full[name], err_msg=name)

    quantized = {name for name in full if eighth[name].dtype != full[name].dtype}
    assert len(quantized) == 4 * len([name for name in full if name.endswith("norm1.weight")])
    for name in quantized:
        scale = np.abs(full[name]).max(axis=0) / np.float32(127)
        np.testing.assert_array_equal(eighth[f"{name}_scale"], scale, err_msg=name)
        steps = np.rint(full[name] / scale).astype(np.int32)
        zero = 128 if target == "portable" else 0
        np.testing.assert_array_equal(eighth[name].astype(np.int32) - zero, steps, err_msg=name)


@pytest.fixture(scope="module")
def with_outliers(tmp_path_factory):
    """timm's ViT-S with random weights and values as large as trained ViTs have, and the same converted."""
    folder = tmp_path_factory.mktemp("outliers")
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", num_classes=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05 + (parameter.ndim == 1) * parameter)
        # Everywhere, and in single tokens; logits of some dozens.
        model.blocks[2].mlp.fc2.bias[100] = -2500
        model.blocks[4].mlp.fc2.weight[33] *= 300
        for block in model.blocks:
            block.attn.qkv.weight[: 2 * 384] *= 2
    safetensors.torch.save_file(model.state_dict(), folder / "vit_s.safetensors")
    tec_zoo("convert", folder / "vit_s.safetensors", "--family", "timm", "--heads", 6, "--out", folder / "zoo")
    return model, folder / "zoo"


def test_ranges_are_those_of_pytorchs_linears(with_outliers, tmp_path):
    model, folder = with_outliers
    images = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    safetensors.torch.save_file({"images": images}, tmp_path / "images.safetensors")
    path = tmp_path / "model.onnx"
    options = ["--dtype", "int8", "--calibrate", tmp_path / "images.safetensors", "--target", "ort"]
    tec_zoo("export", folder, "--out", path, *options)
    seen = {}

    def watch(name):
        def hook(_, inputs):
            values = inputs[0].detach()
            seen[name] = (min(0.0, values.min().item()), max(0.0, values.max().item()))

        return hook

    hooks = [
        module.register_forward_pre_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.no_grad():
        model.forward_features(images)
    for hook in hooks:
        hook.remove()
    found = weights(path)
    assert len(seen) == 4 * 12
    for name, (low, high) in seen.items():
        scale, zero = found[f"{name}.input_scale"], found[f"{name}.input_zero_point"]
        # Extremes of f32 passes in another order.
        assert scale == pytest.approx((high - low) / 255, rel=1e-4), name
        assert abs(int(zero) + low / scale) <= 0.51, name
    onnx.checker.check_model(str(path), full_check=True)
    assert {p.key: p.value for p in onnx.load(path).metadata_props}["calibration"] == "3 images"


def cosine(a, b):
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    return a @ b / np.sqrt((a @ a) * (b @ b))


@pytest.mark.parametrize("target", ["portable", "ort"])
@pytest.mark.parametrize("dtype,least", [("f16", 0.9995), ("int8", 0.999)])
def test_every_level_is_pytorchs_in_spite_of_outliers(with_outliers, tmp_path, target, dtype, least):
    model, folder = with_outliers
    path = tmp_path / "model.onnx"
    levels = [0, 2, 4, 7, 11]
    options = ["--for", "levels", "--levels", ",".join(map(str, levels)), "--target", target, "--dtype", dtype]
    report = json.loads(tec_zoo("export", folder, "--out", path, "--json", *options))
    for runtime in report["check"]["runtimes"]:
        for output in runtime.get("outputs", []):
            assert output["passed"] and output["cosine_of_bulk"] >= least, output

    images = np.random.default_rng(0).standard_normal((2, 3, 224, 224), dtype=np.float32)
    with torch.no_grad():
        expected = model.forward_intermediates(torch.from_numpy(images), indices=levels, intermediates_only=True)
    found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"pixel_values": images})
    largest = [np.abs(level.numpy()).max() for level in expected]
    assert largest[0] < 100 and min(largest[1:]) > 2000, largest
    for level, ours in zip(expected, found, strict=True):
        level = level.numpy()
        # Of all values, and of all but the outliers.
        bulk = np.abs(level) < 100
        assert bulk.mean() > 0.98
        assert cosine(level, ours) >= least
        assert cosine(level[bulk], ours[bulk]) >= least
