"""From `tec-zoo export` to a segmented picture: transformers' UperNet head on an exported backbone.

    python examples/upernet/segment.py MODEL --out segmented.png [--tec-zoo PATH] [--steps 60]

MODEL is a directory in the common format, or a name of the zoo. The graph gives four blocks as maps (as `p2` to `p5`,
where the model carries a fine-tuned neck); the neck that makes a pyramid of them, and UperNet's head, are fitted here, on shapes. The picture is of scenes that were not fitted: image, found, true.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy, interpolate
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetHead

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from backbone import arguments, exported  # noqa: E402
from shapes import CLASSES, PALETTE, scene  # noqa: E402

SIZE = 192


class Segmenter(nn.Module):
    """mmseg's Feature2Pyramid, then UperNet's head: four maps of one stride in, classes at a quarter of that stride out."""

    def __init__(self, names, width):
        super().__init__()
        up = lambda: nn.ConvTranspose2d(width, width, 2, 2)  # noqa: E731
        self.neck = nn.ModuleList([
            nn.Sequential(up(), nn.BatchNorm2d(width), nn.GELU(), up()), up(), nn.Identity(), nn.MaxPool2d(2)])
        if names == ["p2", "p3", "p4", "p5"]:
            self.neck = nn.ModuleList([nn.Identity()] * 4)
        config = UperNetConfig(hidden_size=48, num_labels=len(CLASSES), pool_scales=(1, 2, 3, 6))
        self.head = UperNetHead(config, [width] * 4)

    def forward(self, levels):
        return self.head([stage(level) for stage, level in zip(self.neck, levels, strict=True)])


def mean_iou(found, wanted):
    both = [((found == kind) & (wanted == kind)).sum() / ((found == kind) | (wanted == kind)).sum() for kind in range(len(CLASSES))]
    return float(np.mean(both))


def main():
    options = arguments(__doc__.splitlines()[0], steps=60)
    torch.manual_seed(0)
    torch.set_num_threads(1)

    backbone = exported(options, "upernet", SIZE)
    scenes = [scene(SIZE, seed) for seed in range(56)]
    # The backbone is frozen: each scene's maps are computed once.
    levels = backbone(backbone.normalised([image for image, _, _ in scenes]))
    classes = torch.from_numpy(np.stack([classes for _, classes, _ in scenes]))

    model = Segmenter(backbone.names, levels[0].shape[1]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=options.steps)
    for step in range(options.steps):
        batch = torch.randint(48, (8,))
        logits = interpolate(model([level[batch] for level in levels]), size=(SIZE, SIZE), mode="bilinear")
        loss = cross_entropy(logits, classes[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 19:
            print(f"step {step + 1}: loss {loss.item():.3f}", file=sys.stderr)

    with torch.no_grad():
        logits = interpolate(model.eval()([level[48:] for level in levels]), size=(SIZE, SIZE), mode="bilinear")
    found, wanted = logits.argmax(1).numpy(), classes[48:].numpy()
    rows = [np.concatenate([scenes[48 + at][0], PALETTE[found[at]], PALETTE[wanted[at]]], axis=1) for at in range(4)]
    Image.fromarray(np.concatenate(rows)).save(options.out)
    print(json.dumps({"picture": str(options.out), "mean_iou": round(mean_iou(found, wanted), 3), "outputs": backbone.names}))


main()
