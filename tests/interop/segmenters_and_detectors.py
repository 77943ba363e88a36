"""Plain PyTorch modules of what the maps of an export feed, and the checkpoints their frameworks would save."""

import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import VitDetBackbone, VitDetConfig


def up(inner, out):
    return nn.ConvTranspose2d(inner, out, 2, 2)


class Segmenter(nn.Module):
    """timm's ViT, its blocks at `levels` through iBOT's `fpn1` to `fpn4`."""

    def __init__(self, size=512, width=768, heads=12, levels=(3, 5, 7, 11), normed=False):
        super().__init__()
        self.levels, self.normed, self.grid, self.width = levels, normed, size // 16, width
        self.vit = timm.create_model(
            "vit_base_patch16_224", img_size=size, embed_dim=width, num_heads=heads, num_classes=0, global_pool=""
        )
        self.fpn1 = nn.Sequential(up(width, width), nn.BatchNorm2d(width), nn.GELU(), up(width, width))
        self.fpn2, self.fpn4 = nn.Sequential(up(width, width)), nn.MaxPool2d(2, 2)

    def forward(self, x):
        vit = self.vit
        x = vit.patch_embed(x)
        x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1) + vit.pos_embed
        maps = []
        for i, block in enumerate(vit.blocks):
            x = block(x)
            if i in self.levels:
                level = vit.norm(x) if self.normed else x
                maps.append(level[:, 1:].transpose(1, 2).reshape(-1, self.width, self.grid, self.grid))
        return self.fpn1(maps[0]), self.fpn2(maps[1]), maps[2], self.fpn4(maps[3])

    def checkpoint(self):
        state = {f"backbone.{key.removeprefix('vit.')}": value for key, value in self.state_dict().items()}
        if not self.normed:
            state = {key: value for key, value in state.items() if not key.startswith("backbone.norm.")}
        return {"state_dict": state}


class ChannelNorm(nn.Module):
    """detectron2's LayerNorm over the channels of a map."""

    def __init__(self, wide):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(wide)), nn.Parameter(torch.zeros(wide))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class NormedConv(nn.Conv2d):
    def __init__(self, inner, out, side):
        super().__init__(inner, out, side, padding=side // 2, bias=False)
        self.norm = ChannelNorm(out)

    def forward(self, x):
        return self.norm(super().forward(x))


class Detector(nn.Module):
    """transformers' ViTDet backbone with relative positions, and the simple feature pyramid."""

    def __init__(self, size=1024, width=768, heads=12, out=256):
        super().__init__()
        self.net = VitDetBackbone(
            VitDetConfig(
                hidden_size=width,
                num_attention_heads=heads,
                image_size=size,
                window_size=14,
                window_block_indices=[0, 1, 3, 4, 6, 7, 9, 10],
                use_relative_position_embeddings=True,
                out_features=["stage12"],
            )
        )
        half, quarter = width // 2, width // 4
        ends = lambda wide: [NormedConv(wide, out, 1), NormedConv(out, out, 3)]
        self.simfp_2 = nn.Sequential(up(width, half), ChannelNorm(half), nn.GELU(), up(half, quarter), *ends(quarter))
        self.simfp_3 = nn.Sequential(up(width, half), *ends(half))
        self.simfp_4 = nn.Sequential(*ends(width))
        self.simfp_5 = nn.Sequential(nn.MaxPool2d(2, 2), *ends(width))

    def forward(self, x):
        last = self.net(x).feature_maps[0]
        maps = [simfp(last) for simfp in (self.simfp_2, self.simfp_3, self.simfp_4, self.simfp_5)]
        return last, *maps, F.max_pool2d(maps[-1], 1, 2)

    def checkpoint(self):
        out = {}
        for key, value in self.state_dict().items():
            for theirs, ours in [
                ("net.embeddings.position_embeddings", "net.pos_embed"),
                ("net.embeddings.projection", "net.patch_embed.proj"),
                ("net.encoder.layer.", "net.blocks."),
                (".attention.", ".attn."),
            ]:
                key = key.replace(theirs, ours)
            out[f"backbone.{key}"] = value
        return {"model": out}


def shaken(module):
    """Norms, biases, positions and statistics away from what they begin as: what is left out would be noticed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            noise = lambda: torch.randn(value.shape, generator=generator)
            if "rel_pos" in name or "pos" in name.rsplit(".", 1)[-1]:
                value.copy_(noise() * 0.2)
            elif name.endswith("running_var"):
                value.copy_(1 + 0.5 * noise().tanh())
            elif value.ndim == 1 and value.is_floating_point():
                value.add_(noise() * 0.1)
    return module.eval()
