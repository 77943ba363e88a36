"""DINOv2's parts — LayerScale, registers, SwiGLU — in timm's and transformers' own classes, in both directions."""

import pytest
import timm
import torch
from conftest import ROOT, config, tec_zoo
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

# Two blocks of width 24 in float32: a few units in the last place.
TOLERANCE = 2e-6
BLOCKS = ["block0", "block1", "norm"]
# Native, larger, smaller, and both at once.
SIZES = [(70, 70), (98, 98), (42, 42), (28, 126)]

TIMM = {
    "vit": "vit_small_patch14_dinov2",
    "vit_reg4": "vit_small_patch14_reg4_dinov2",
    "vitg": "vit_giant_patch14_dinov2",
    "vitg_reg4": "vit_giant_patch14_reg4_dinov2",
}


def shake(model, seed):
    """Random where a fresh model is ones and zeros: a pass that left it out would not be noticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim == 1 else 0.1 if "weight" in name else 1.0
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return model.eval()


def embedded(directory, images, folder):
    save_file({"images": images}, folder / "images.safetensors")
    out = folder / "features.safetensors"
    tec_zoo("embed", directory, folder / "images.safetensors", "--out", out, "--overwrite", "--outputs", ",".join(BLOCKS))
    return load_file(out)


def assert_alike(found, expected):
    worst = (found - expected).abs().max() / expected.abs().max()
    assert worst <= TOLERANCE, worst


def timm_model(name, **options):
    torch.manual_seed(0)
    sizes = {"img_size": 70, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 0, "dynamic_img_size": True}
    return timm.create_model(TIMM[name], **sizes, **options)


def timm_activations(model, images):
    blocks = []
    hooks = [block.register_forward_hook(lambda _, __, out: blocks.append(out)) for block in model.blocks]
    with torch.no_grad():
        norm = model.forward_features(images)
    for hook in hooks:
        hook.remove()
    return dict(zip(BLOCKS, [*blocks, norm], strict=True))


@pytest.mark.parametrize("name", TIMM)
def test_timms_dinov2_gives_the_same_numbers_at_every_size(name, tmp_path):
    model = shake(timm_model(name), 1)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    tec_zoo("convert", tmp_path / "model.safetensors", "--family", "timm", "--heads", 4, "--out", tmp_path / "ours")
    vit = config(tmp_path / "ours")["tec_zoo"]["vit"]
    assert (vit["layer_scale"], vit.get("registers", 0)) == (True, 4 if "reg4" in name else 0)
    assert vit.get("mlp", "plain") == ("swiglu" if "vitg" in name else "plain")
    for height, width in SIZES:
        images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height * width))
        found = embedded(tmp_path / "ours", images, tmp_path)
        for stage, expected in timm_activations(model, images).items():
            assert_alike(found[stage], expected)


@pytest.mark.parametrize("name", TIMM)
def test_timm_loads_the_model_directory_as_it_stands_and_what_is_written_for_it(name, tmp_path):
    model = shake(timm_model(name), 2)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    tec_zoo("convert", tmp_path / "model.safetensors", "--family", "timm", "--heads", 4, "--out", tmp_path / "ours")
    tec_zoo("convert", tmp_path / "ours", "--to", "timm", "--out", tmp_path / "timm")
    images = torch.randn(2, 3, 70, 70)
    for directory in ("ours", "timm"):
        # create_model loads strictly: a missing or unexpected key raises.
        back = timm.create_model(f"local-dir:{tmp_path / directory}", pretrained=True).eval()
        with torch.no_grad():
            assert torch.equal(back.forward_features(images), model.forward_features(images))
    # Its config.json says what the names do not.
    tec_zoo("convert", tmp_path / "timm", "--out", tmp_path / "back")
    ours, back = (load_file(tmp_path / part / "model.safetensors") for part in ("ours", "back"))
    assert list(ours) == list(back) and all(torch.equal(ours[key], back[key]) for key in ours)


SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 70, "patch_size": 14}


def transformers_model(name):
    swiglu = {"use_swiglu_ffn": "vitg" in name}
    if "reg4" in name:
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SHAPE, **swiglu))
    return Dinov2Model(Dinov2Config(**SHAPE, **swiglu))


def transformers_activations(model, images):
    with torch.no_grad():
        out = model(images, output_hidden_states=True)
    # hidden_states[0] is what enters block 0.
    return dict(zip(BLOCKS, [*out.hidden_states[1:], out.last_hidden_state], strict=True))


@pytest.mark.parametrize("name", TIMM)
def test_transformers_dinov2_gives_the_same_numbers_at_every_size(name, tmp_path):
    model = shake(transformers_model(name), 3)
    model.save_pretrained(tmp_path / "saved")
    # Everything is in the file and the config.json beside it: nothing needs to be said.
    tec_zoo("convert", tmp_path / "saved", "--out", tmp_path / "ours")
    for height, width in SIZES:
        images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height * width))
        found = embedded(tmp_path / "ours", images, tmp_path)
        for stage, expected in transformers_activations(model, images).items():
            assert_alike(found[stage], expected)


@pytest.mark.parametrize("name", TIMM)
def test_transformers_loads_what_is_written_for_it_and_it_comes_back_bit_for_bit(name, tmp_path):
    model = shake(transformers_model(name), 4)
    model.save_pretrained(tmp_path / "saved")
    tec_zoo("convert", tmp_path / "saved", "--out", tmp_path / "ours")
    tec_zoo("convert", tmp_path / "ours", "--to", "hf", "--out", tmp_path / "hf")
    back, info = type(model).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info
    back.eval()
    for height, width in SIZES:
        images = torch.randn(1, 3, height, width)
        expected, found = (transformers_activations(m, images) for m in (model, back))
        # The class token and its position were added before rather than in the pass: the same sum.
        assert all(torch.equal(found[stage], expected[stage]) for stage in BLOCKS)
    back.save_pretrained(tmp_path / "again")
    tec_zoo("convert", tmp_path / "again", "--out", tmp_path / "round")
    ours, again = (load_file(tmp_path / part / "model.safetensors") for part in ("ours", "round"))
    assert list(ours) == list(again) and all(torch.equal(ours[key], again[key]) for key in ours)


@pytest.mark.parametrize("name", ["vit", "vit_reg4", "vitg_reg4"])
def test_the_authors_numbers_come_out_of_transformers(name, tmp_path):
    folder = ROOT / "fixtures" / "dinov2"
    tec_zoo("convert", folder / f"{name}_tiny14_pretrain.pth", "--heads", 4, "--out", tmp_path / "ours")
    tec_zoo("convert", tmp_path / "ours", "--to", "hf", "--out", tmp_path / "hf")
    of = Dinov2WithRegistersModel if "reg4" in name else Dinov2Model
    model, info = of.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info
    expected = load_file(folder / f"{name}_expected.safetensors")
    found = transformers_activations(model.eval(), expected["images"])
    for stage in BLOCKS:
        assert_alike(found[stage], expected[stage])


@pytest.mark.parametrize("name", TIMM)
def test_one_models_weights_are_the_same_tensors_from_either_library(name, tmp_path):
    """transformers -> ours -> timm -> ours: registers' class token and position table included."""
    shake(transformers_model(name), 5).save_pretrained(tmp_path / "saved")
    tec_zoo("convert", tmp_path / "saved", "--out", tmp_path / "a")
    tec_zoo("convert", tmp_path / "a", "--to", "timm", "--out", tmp_path / "timm")
    tec_zoo("convert", tmp_path / "timm", "--out", tmp_path / "b")
    a, b = ((tmp_path / part / "model.safetensors").read_bytes() for part in "ab")
    assert a == b
