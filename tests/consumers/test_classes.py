"""Each file in the class it is for: no key missing, none unexpected, and the same features as the model's own forward pass."""

import json
import zipfile

import pytest
import timm
import torch
from conftest import tec_zoo
from mmengine.config import Config
from mmpretrain.models.backbones.vision_transformer import VisionTransformer
from mmseg.models.backbones.mae import MAE
from mmseg.models.necks import Feature2Pyramid
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate
from transformers import VitDetBackbone, VitDetConfig

# Four blocks in float32 by two implementations, on values up to 9.
TOLERANCE = 1e-4


def ours(directory, size, levels):
    """The blocks' outputs of `directory` for images of `size`, by this project's forward pass at that native size.

    The table is resized here, by PyTorch, as MAE's, mmseg's and iBOT's loaders do: its values are part of what is compared.
    """
    config = json.loads((directory / "config.json").read_text())
    vit = config["tec_zoo"]["vit"]
    grid = [side // vit["patch_size"] for side in size]
    state = load_file(directory / "model.safetensors")
    native = [side // vit["patch_size"] for side in vit["image_size"]]
    head, table = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    if grid != native:
        table = table.reshape(1, *native, -1).permute(0, 3, 1, 2)
        table = interpolate(table, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    state["pos_embed"] = torch.cat((head, table), 1).contiguous()
    vit["image_size"] = [side * vit["patch_size"] for side in grid]
    vit["position"]["kind"] = {"type": "learned"}
    resized = directory.parent / f"{directory.name}-{size[0]}x{size[1]}"
    if not resized.exists():
        resized.mkdir()
        save_file(state, resized / "model.safetensors", metadata={"format": "pt"})
        (resized / "config.json").write_text(json.dumps(config))
    images = torch.randn(2, 3, *vit["image_size"], generator=torch.Generator().manual_seed(0))
    save_file({"images": images}, resized / "images.safetensors")
    names = [f"block{level}" for level in levels]
    out = resized / "features.safetensors"
    tec_zoo("embed", resized, resized / "images.safetensors", "--out", out, "--overwrite", "--outputs", ",".join(names))
    features = load_file(out)
    return images, [features[name] for name in names], vit


def maps(tokens, grid):
    return tokens[:, 1:].transpose(1, 2).reshape(tokens.shape[0], -1, *grid)


def emitted(model, layout, out, *options):
    """The file's object and its configuration."""
    tec_zoo("convert", model, "--to", layout, "--out", out, *options)
    # A second reader of the container: Python's zip checks every checksum.
    assert zipfile.ZipFile(out).testzip() is None
    whole = torch.load(out, weights_only=True)
    mapped = torch.load(out, weights_only=True, mmap=True)
    for state in (whole, mapped):
        assert list(state) == list(whole)
    return whole


def flat(state):
    return next(iter(state.values())) if not isinstance(next(iter(state.values())), torch.Tensor) else state


def test_what_is_written_is_what_the_model_holds_bit_for_bit_mapped_or_not(models, tmp_path):
    out = tmp_path / "native.pth"
    state = emitted(models["mae"], "mmpretrain", out)
    mapped = torch.load(out, weights_only=True, mmap=True)
    stored = load_file(models["mae"] / "model.safetensors")
    assert all(torch.equal(state[key], mapped[key]) for key in state)
    assert torch.equal(state["patch_embed.projection.weight"], stored["patch_embed.proj.weight"])
    assert torch.equal(mapped["layers.3.ffn.layers.1.weight"], stored["blocks.3.mlp.fc2.weight"])
    assert all(value.data_ptr() % 64 == 0 for value in mapped.values())
    # And as PyTorch writes it again, the same tensors under the same keys.
    torch.save(state, tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert type(again) is type(state) and list(again) == list(state)


@pytest.mark.parametrize("name", ["mae", "ibot", "tec", "dinov2"])
@pytest.mark.parametrize("size", [(512, 512), (96, 160)])
def test_mmseg_loads_it_strictly_and_computes_the_same_levels(models, tmp_path, name, size):
    out = tmp_path / "backbone.pth"
    emitted(models[name], "mmseg", out, "--size", f"{size[0]}x{size[1]}")
    config = Config.fromfile(out.with_suffix(".py"))
    fields = dict(config.model.backbone)
    assert fields.pop("type") == "MAE" and fields.pop("init_cfg").checkpoint.endswith("/backbone.pth")
    model = MAE(**fields)
    model.eval()  # mmseg's returns nothing
    model.load_state_dict(torch.load(out, weights_only=True), strict=True)
    # 36 whole patches of 14 in 512 pixels: the class leaves out the rest, and our images have none.
    images, features, vit = ours(models[name], size, fields["out_indices"])
    with torch.no_grad():
        found = model(images)
    grid = [side // vit["patch_size"] for side in size]
    for level, wanted in zip(found, features, strict=True):
        assert (level - maps(wanted, grid)).abs().max() < TOLERANCE


def test_mmsegs_own_loader_takes_every_key_of_the_file(models, tmp_path):
    """`init_cfg` is loaded without strictness: what it would not find it would say nothing of."""
    out = tmp_path / "backbone.pth"
    emitted(models["mae"], "mmseg", out)
    config = Config.fromfile(out.with_suffix(".py"))
    fields = dict(config.model.backbone)
    fields.pop("type")
    model = MAE(**fields)
    model.init_weights()
    wanted = torch.load(out, weights_only=True)
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())


def test_the_whole_configuration_for_mmseg_runs_from_image_to_classes(models, tmp_path):
    from mmengine.registry import init_default_scope
    from mmseg.models.decode_heads import FCNHead, UPerHead

    init_default_scope("mmseg")
    emitted(models["ibot"], "mmseg", tmp_path / "backbone.pth")
    config = Config.fromfile(tmp_path / "backbone.py").model

    def built(cls, part):
        fields = {key: value for key, value in dict(part).items() if key != "type"}
        # Synchronised norms ask for several GPUs in training only; here nothing trains.
        return cls(**{**fields, "norm_cfg": dict(type="BN")}).eval()

    fields = {key: value for key, value in dict(config.backbone).items() if key not in ("type",)}
    backbone = MAE(**fields)
    backbone.eval()
    backbone.init_weights()
    neck = built(Feature2Pyramid, config.neck)
    heads = built(UPerHead, config.decode_head), built(FCNHead, config.auxiliary_head)
    with torch.no_grad():
        pyramid = neck(backbone(torch.zeros(1, 3, 512, 512)))
        assert [tuple(level.shape[2:]) for level in pyramid] == [(128, 128), (64, 64), (32, 32), (16, 16)]
        assert heads[0](pyramid).shape == (1, 150, 128, 128)
        assert heads[1](pyramid).shape[1] == 150


@pytest.mark.parametrize("name", ["mae", "ibot", "tec", "dinov2"])
@pytest.mark.parametrize("size", [None, (96, 160)])
def test_mmpretrain_loads_it_strictly_and_computes_the_same_tokens(models, tmp_path, name, size):
    out = tmp_path / "backbone.pth"
    emitted(models[name], "mmpretrain", out, *(["--size", f"{size[0]}x{size[1]}"] if size else []))
    config = Config.fromfile(out.with_suffix(".py"))
    fields = dict(config.model.backbone)
    assert fields.pop("type") == "VisionTransformer"
    fields.pop("init_cfg")
    model = VisionTransformer(**{**fields, "out_type": "raw"})
    model.eval()
    model.load_state_dict(torch.load(out, weights_only=True), strict=True)
    # Its patch embedding pads what is left over; images without a rest need none.
    patch = fields["patch_size"]
    size = [-(-side // patch) * patch for side in fields["img_size"]]
    images, _, vit = ours(models[name], size, [0])
    level = "norm" if fields["final_norm"] else f"block{vit['depth'] - 1}"
    resized = models[name].parent / f"{models[name].name}-{size[0]}x{size[1]}"
    tec_zoo("embed", resized, resized / "images.safetensors", "--out", tmp_path / "raw.safetensors", "--outputs", level)
    with torch.no_grad():
        (found,) = model(images)
    assert (found - load_file(tmp_path / "raw.safetensors")[level]).abs().max() < TOLERANCE
    assert vit["heads"] == 4


def vitdet(state, size, native):
    """transformers' `VitDetBackbone` with the tensors of detectron2's `ViT`; both are ViTDet's, block for block."""
    blocks = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    windowed = [at for at in range(blocks) if state[f"blocks.{at}.attn.rel_pos_h"].shape[0] == 27]
    width = state["pos_embed"].shape[2]
    config = VitDetConfig(
        hidden_size=width, num_hidden_layers=blocks, num_attention_heads=4, mlp_ratio=4, image_size=size,
        pretrain_image_size=native, patch_size=16, layer_norm_eps=1e-6, window_size=14, window_block_indices=windowed,
        use_relative_position_embeddings=True, out_features=[f"stage{blocks}"],
    )
    model = VitDetBackbone(config).eval()
    renamed = {}
    for key, value in state.items():
        key = key.replace("patch_embed.proj", "embeddings.projection").replace("pos_embed", "embeddings.position_embeddings")
        renamed[key.replace("blocks.", "encoder.layer.").replace(".attn.", ".attention.")] = value
    model.load_state_dict(renamed, strict=True)
    return model


@pytest.mark.parametrize("layout", ["detectron2", "mmdet"])
def test_vitdet_takes_every_tensor_and_without_windows_computes_what_timms_blocks_do(models, tmp_path, layout):
    """detectron2 and mmdet's project are in no package; transformers has the same network.

    Four blocks are all global ones, and relative positions of zeros change nothing: the network is then the plain ViT without
    its class token, which timm has.
    """
    state = emitted(models["mae"], layout, tmp_path / "backbone.pth", "--size", "256")["model"]
    state = {key.removeprefix("backbone.net."): value for key, value in state.items()}
    images = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    plain = timm.create_model(f"local-dir:{models['mae']}", pretrained=True).eval()
    with torch.no_grad():
        (found,) = vitdet(state, 256, 64)(images).feature_maps
        tokens = plain.patch_embed.proj(images).flatten(2).transpose(1, 2)
        table = plain.pos_embed[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
        tokens = tokens + interpolate(table, size=(16, 16), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
        wanted = plain.blocks(tokens).transpose(1, 2).reshape(2, -1, 16, 16)
    assert (found - wanted).abs().max() < TOLERANCE


def test_mmdets_configuration_is_whole_and_names_the_file(models, tmp_path):
    emitted(models["mae"], "mmdet", tmp_path / "backbone.pth")
    # `projects` is in a checkout, not in the package: it is only named.
    config = Config.fromfile(tmp_path / "backbone.py", import_custom_modules=False)
    assert config.model.type == "CascadeRCNN" and config.model.backbone.init_cfg.checkpoint.endswith("/backbone.pth")
    assert [head.bbox_coder.target_stds[0] for head in config.model.roi_head.bbox_head] == [0.1, 0.05, 0.033]


def test_every_configuration_is_python(models, tmp_path):
    for layout in ("mmseg", "mmpretrain", "mmdet", "detectron2", "ibot"):
        emitted(models["mae"], layout, tmp_path / f"{layout}.pth")
        compile((tmp_path / f"{layout}.py").read_text(), layout, "exec")


def test_a_file_under_another_prefix_is_what_the_strict_load_notices(models, tmp_path):
    """The failure this is against: mmseg's loader would start from random weights and say so in a log."""
    emitted(models["mae"], "mmseg", tmp_path / "backbone.pth", "--size", "64")
    state = {f"backbone.{key}": value for key, value in torch.load(tmp_path / "backbone.pth").items()}
    model = MAE(img_size=(64, 64), embed_dims=16, num_layers=4, num_heads=4)
    assert len(model.load_state_dict(state, strict=False).missing_keys) == len(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)


def test_our_own_reader_takes_every_file_and_a_checkpoint_of_mmpretrain_comes_back(models, tmp_path):
    emitted(models["ibot"], "mmpretrain", tmp_path / "backbone.pth")
    tec_zoo("convert", tmp_path / "backbone.pth", "--family", "mmpretrain", "--heads", 4, "--out", tmp_path / "back")
    there, back = (load_file(path / "model.safetensors") for path in (models["ibot"], tmp_path / "back"))
    assert list(there) == list(back) and all(torch.equal(there[key], back[key]) for key in there)
