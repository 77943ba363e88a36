"""The common format and both ways back, in the libraries whose layouts they are."""

import json
import shutil

import pytest
import timm
import torch
from conftest import REFERENCE, config, tec_zoo
from safetensors.torch import load_file
from transformers import ViTForImageClassification, ViTModel

# Five operators deep in float32, two implementations: the forward pass of four blocks agrees to a few units in the last place
# of values around 3 (9 before the norm).
TOLERANCE = 1e-5
FULL = ["mae", "ibot", "mocov3", "tec", "dino8"]
ALL = [*FULL, "tec-released", "dinov2", "dinov2-reg"]
RECORDS = {"dino8": "../dino/vit8", "dinov2": "../dinov2/vit", "dinov2-reg": "../dinov2/vitg_reg4", "tec-released": "tec"}


def expected(name):
    """The authors' images, and what their encoder makes of them as far as this checkpoint goes."""
    stored = load_file(REFERENCE / f"{RECORDS.get(name, name)}_expected.safetensors")
    return stored["images"], stored["block3" if name == "tec-released" else "norm"]


def in_timm(directory):
    # create_model loads strictly: a missing or unexpected key raises.
    return timm.create_model(f"local-dir:{directory}", pretrained=True).eval()


def assert_features(model, name):
    images, features = expected(name)
    with torch.no_grad():
        found = model(images)
    worst = (found - features).abs().max() / features.abs().max()
    assert worst < TOLERANCE, f"{name}: {worst}"


@pytest.mark.parametrize("name", ALL)
def test_timm_loads_a_model_directory_as_it_stands(models, name):
    model = in_timm(models[name])
    assert model.blocks[0].attn.num_heads == 4
    assert_features(model.forward_features, name)


@pytest.mark.parametrize("name", ALL)
def test_timm_loads_what_is_written_for_it(models, name, tmp_path):
    tec_zoo("convert", models[name], "--to", "timm", "--out", tmp_path / "out")
    assert "tec_zoo" not in config(tmp_path / "out")
    assert_features(in_timm(tmp_path / "out").forward_features, name)


def test_timm_with_its_own_heads_for_the_width_would_be_wrong_without_our_configuration(models, tmp_path):
    """The trap the configuration exists for: same keys, same shapes, other numbers."""
    directory = tmp_path / "model"
    shutil.copytree(models["mocov3"], directory)
    written = config(directory)
    written["model_args"]["num_heads"] = 2
    (directory / "config.json").write_text(json.dumps(written))
    images, features = expected("mocov3")
    with torch.no_grad():
        found = in_timm(directory).forward_features(images)
    assert (found - features).abs().max() > 1e-2


@pytest.mark.parametrize("name", FULL)
def test_transformers_loads_what_is_written_for_it(models, name, tmp_path):
    tec_zoo("convert", models[name], "--to", "hf", "--out", tmp_path / "out")
    model, info = ViTModel.from_pretrained(tmp_path / "out", add_pooling_layer=False, output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.num_attention_heads == 4
    assert_features(lambda images: model.eval()(images).last_hidden_state, name)


@pytest.mark.parametrize("name", FULL)
def test_what_transformers_saves_comes_back_bit_for_bit(models, name, tmp_path):
    tec_zoo("convert", models[name], "--to", "hf", "--out", tmp_path / "hf")
    ViTModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False).save_pretrained(tmp_path / "saved")
    # Heads and epsilon are in its config.json: nothing needs to be said.
    tec_zoo("convert", tmp_path / "saved", "--out", tmp_path / "back")
    ours, back = (load_file(path / "model.safetensors") for path in (models[name], tmp_path / "back"))
    assert list(ours) == list(back)
    assert all(torch.equal(ours[key], back[key]) for key in ours)
    assert config(tmp_path / "back")["tec_zoo"]["vit"]["heads"] == 4


def test_a_classifier_goes_to_both_libraries(models, tmp_path):
    state = torch.load(REFERENCE / "mae_pretrain_vit_tiny.pth", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    state["model"]["head.weight"] = torch.randn(7, 16, generator=generator)
    state["model"]["head.bias"] = torch.randn(7, generator=generator)
    torch.save(state, tmp_path / "classifier.pth")
    tec_zoo("convert", tmp_path / "classifier.pth", "--family", "mae", "--heads", 4, "--out", tmp_path / "model")
    tec_zoo("convert", tmp_path / "model", "--to", "hf", "--out", tmp_path / "hf")
    theirs, info = ViTForImageClassification.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info
    images, features = expected("mae")
    wanted = features[:, 0] @ state["model"]["head.weight"].T + state["model"]["head.bias"]
    with torch.no_grad():
        for logits in (theirs.eval()(images).logits, in_timm(tmp_path / "model")(images)):
            assert (logits - wanted).abs().max() / wanted.abs().max() < TOLERANCE


def test_a_fine_tuned_mae_classifies_alike_in_timm(tmp_path):
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
    pooled = torch.nn.functional.layer_norm(
        stored["block3"][:, 1:].mean(1), (16,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6
    )
    wanted = pooled @ state["head.weight"].T + state["head.bias"]
    with torch.no_grad():
        logits = in_timm(tmp_path / "model")(stored["images"])
    assert (logits - wanted).abs().max() / wanted.abs().max() < TOLERANCE
