"""One dynamic file at every size people detect and segment at, against PyTorch: each family's own interpolation."""

import json
import math

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F

from conftest import tec_zoo

# Height × width; 800×1333 is no whole number of patches and is padded with zeros, as detectors pad.
SIZES = [(224, 224), (384, 384), (512, 512), (480, 640), (640, 480), (800, 1333), (1024, 1024), (976, 976)]
# Options of `export`, and who interpolates that way.
FLAVOURS = ["size", "scale-offset", "antialias"]
WIDTH, DEPTH, HEADS, PATCH, GRID = 48, 2, 3, 16, 14


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """A ViT of released ViTs' grid, and the same converted."""
    folder = tmp_path_factory.mktemp("nano")
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_base_patch16_224", num_classes=0, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, dynamic_img_size=True
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        # Learned tables have entries of this order; timm starts them fifty times smaller.
        model.pos_embed.normal_(std=0.5)
    weights = folder / "nano.safetensors"
    safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
    directory = folder / "nano"
    tec_zoo("convert", weights, "--family", "timm", "--heads", HEADS, "--out", directory)
    return model, directory


def positions(model, flavour, rows, columns):
    """The table for a grid, as the flavour's authors interpolate it."""
    table = model.pos_embed
    if flavour == "scale-offset":
        # DINO and iBOT (vision_transformer.py, interpolate_pos_encoding): as it is for a square of as many patches.
        if rows == columns and rows * columns == table.shape[1] - 1:
            return table
    patches = table[:, 1:].reshape(1, GRID, GRID, -1).permute(0, 3, 1, 2)
    if flavour == "size":
        patches = F.interpolate(patches, size=(rows, columns), mode="bicubic", align_corners=False)
    elif flavour == "scale-offset":
        factors = ((rows + 0.1) / math.sqrt(GRID * GRID), (columns + 0.1) / math.sqrt(GRID * GRID))
        patches = F.interpolate(patches, scale_factor=factors, mode="bicubic")
        assert patches.shape[-2:] == (rows, columns)
    else:
        patches = F.interpolate(patches, size=(rows, columns), mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([table[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


@torch.no_grad()
def expected(model, flavour, images):
    height, width = images.shape[-2:]
    images = F.pad(images, (0, -width % PATCH, 0, -height % PATCH))
    if flavour == "antialias":
        return model.forward_features(images).numpy()
    rows, columns = images.shape[-2] // PATCH, images.shape[-1] // PATCH
    patches = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
    x = torch.cat([model.cls_token.expand(len(images), -1, -1), patches], dim=1)
    x = x + positions(model, flavour, rows, columns)
    return model.norm(model.blocks(x)).numpy()


def images(height, width, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height + width))


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("target", ["portable", "ort"])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_one_dynamic_file_agrees_with_pytorch_at_every_size(nano, tmp_path, flavour, target):
    model, directory = nano
    path = tmp_path / "any.onnx"
    tec_zoo("export", directory, "--out", path, "--dynamic", "--pad", "--resample", flavour, "--target", target, "--no-check")
    onnx.checker.check_model(str(path), full_check=True)
    loaded = session(path)
    assert [i.shape for i in loaded.get_inputs()] == [["batch", 3, "height", "width"]]
    for height, width in SIZES:
        batch = images(height, width)
        [tokens] = loaded.run(None, {"pixel_values": batch.numpy()})
        theirs = expected(model, flavour, batch)
        assert tokens.shape == theirs.shape
        worst = np.abs(tokens - theirs).max()
        assert worst <= 1e-4, f"{height}×{width}: max |Δ| {worst:.1e}"
    # Several images at once, of a size not seen before.
    batch = images(208, 336, batch=3)
    [tokens] = loaded.run(None, {"pixel_values": batch.numpy()})
    assert np.abs(tokens - expected(model, flavour, batch)).max() <= 1e-4


@pytest.mark.parametrize("size", [(384, 384), (480, 640), (800, 1333)])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_file_for_one_size_agrees_with_pytorch_there(nano, tmp_path, flavour, size):
    model, directory = nano
    height, width = size
    path = tmp_path / "fixed.onnx"
    tec_zoo("export", directory, "--out", path, "--size", f"{height}x{width}", "--pad", "--resample", flavour, "--no-check")
    batch = images(height, width, batch=2)
    [tokens] = session(path).run(None, {"pixel_values": batch.numpy()})
    assert np.abs(tokens - expected(model, flavour, batch)).max() <= 1e-4


def test_tract_and_candle_agree_with_pytorch_at_every_size(nano, tmp_path):
    """By way of the eager pass, which `check` compares every runtime with."""
    model, directory = nano
    for flavour in FLAVOURS:
        path = tmp_path / "any.onnx"
        tec_zoo("export", directory, "--out", path, "--overwrite", "--dynamic", "--pad", "--resample", flavour, "--no-check")
        sizes = ",".join(f"{height}x{width}" for height, width in SIZES)
        report = tec_zoo("check", path, "--against", directory, "--size", sizes, "--json")
        report = json.loads(report)
        seen = {(entry["runtime"], tuple(entry["size"])) for entry in report["runtimes"]}
        assert seen == {(runtime, size) for runtime in ("ort", "tract", "candle") for size in SIZES}
        for entry in report["runtimes"]:
            assert entry["verdict"] == "ran", entry
            for output in entry["outputs"]:
                assert output["max_abs_diff"] <= 1e-4, entry


def test_the_graph_normalises_pixels_as_torchvision_does(nano, tmp_path):
    model, directory = nano
    path = tmp_path / "pixels.onnx"
    tec_zoo("export", directory, "--out", path, "--dynamic", "--pad", "--normalize-input", "--resample", "antialias")
    loaded = session(path)
    assert [(i.name, i.type, i.shape) for i in loaded.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", "height", "width", 3])
    ]
    metadata = loaded.get_modelmeta().custom_metadata_map
    mean, std = (torch.tensor(json.loads(metadata[key])).view(3, 1, 1) for key in ("mean", "std"))
    for height, width in [(224, 224), (333, 250)]:
        pixels = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        normalised = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
        [tokens] = loaded.run(None, {"images": pixels.numpy()})
        # Zeros are padded to the normalised image.
        assert np.abs(tokens - expected(model, "antialias", normalised)).max() <= 1e-4


def test_without_padding_a_rest_is_cut_off_as_the_patch_convolution_does(nano, tmp_path):
    model, directory = nano
    path = tmp_path / "cut.onnx"
    tec_zoo("export", directory, "--out", path, "--dynamic", "--resample", "size", "--no-check")
    batch = images(230, 250)
    [tokens] = session(path).run(None, {"pixel_values": batch.numpy()})
    assert np.abs(tokens - expected(model, "size", batch[..., :224, :240])).max() <= 1e-4
    refused = tec_zoo("export", directory, "--out", path, "--overwrite", "--size", "230x250", code=2)
    assert refused == ""


def test_padding_reaches_multiples_of_more_than_a_patch(nano, tmp_path):
    model, directory = nano
    for options in (["--dynamic"], ["--size", "230x250"]):
        path = tmp_path / "padded.onnx"
        tec_zoo("export", directory, "--out", path, "--overwrite", "--pad=32", "--resample", "size", "--no-check", *options)
        batch = images(230, 250)
        [tokens] = session(path).run(None, {"pixel_values": batch.numpy()})
        whole = F.pad(batch, (0, 6, 0, 26))
        assert np.abs(tokens - expected(model, "size", whole)).max() <= 1e-4
