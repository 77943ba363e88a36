"""From `tec-zoo export` to detected things: torchvision's Mask R-CNN on an exported backbone.

    python examples/detection/detect.py MODEL --out detected.png [--tec-zoo PATH] [--steps 160]

MODEL is a directory in the common format, or a name of the zoo. The graph is ViTDet's backbone, without the class token and with
windows, and gives its last map; the pyramid on it
(ViTDet's simple one, smaller) and torchvision's region proposals, boxes and masks are fitted here, on shapes. The picture is of
scenes that were not fitted: what is found, and what is there.
"""

import collections
import json
import pathlib
import sys

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, box_iou

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from backbone import arguments, exported  # noqa: E402
from shapes import CLASSES, PALETTE, scene  # noqa: E402

SIZE = 192
CHANNELS = 48


class Pyramid(nn.Module):
    """Half, the same and twice the backbone's stride, from its last map."""

    out_channels = CHANNELS

    def __init__(self, backbone, width):
        super().__init__()
        # A plain object: the graph has nothing to train.
        self.graph = [backbone]
        stage = lambda first: nn.Sequential(  # noqa: E731
            first, nn.Conv2d(width, CHANNELS, 1), nn.GroupNorm(8, CHANNELS), nn.GELU(), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1))
        self.stages = nn.ModuleList([
            stage(nn.ConvTranspose2d(width, width, 2, 2)), stage(nn.Identity()), stage(nn.MaxPool2d(2))])

    def forward(self, pixels):
        last = self.graph[0](pixels.numpy())[0]
        return collections.OrderedDict((str(at), stage(last)) for at, stage in enumerate(self.stages))


def targets(things):
    return {
        "labels": torch.tensor([kind for kind, _, _ in things]),
        "boxes": torch.tensor(np.array([box for _, box, _ in things]), dtype=torch.float32),
        "masks": torch.from_numpy(np.stack([mask for _, _, mask in things])).to(torch.uint8),
    }


def drawn(image, labels, boxes, masks):
    image = image.copy()
    for label, mask in zip(labels, masks, strict=True):
        image[mask] = image[mask] // 2 + PALETTE[label] // 2
    picture = Image.fromarray(image)
    for label, box in zip(labels, boxes, strict=True):
        ImageDraw.Draw(picture).rectangle([float(side) for side in box], outline=(255, 255, 255))
        ImageDraw.Draw(picture).text((float(box[0]) + 2, float(box[1]) + 1), CLASSES[label], fill=(255, 255, 255))
    return np.asarray(picture)


def main():
    options = arguments(__doc__.splitlines()[0], steps=160)
    torch.manual_seed(0)
    torch.set_num_threads(1)

    backbone = exported(options, "vitdet", SIZE)
    width = backbone.session.get_outputs()[0].shape[1]
    names = ["0", "1", "2"]
    model = MaskRCNN(
        Pyramid(backbone, width),
        # torchvision's heads, as narrow as these pictures need.
        box_head=TwoMLPHead(CHANNELS * 7 * 7, 128), box_predictor=FastRCNNPredictor(128, len(CLASSES)),
        mask_head=MaskRCNNHeads(CHANNELS, (32, 32), 1), mask_predictor=MaskRCNNPredictor(32, 32, len(CLASSES)),
        # The graph's size and normalisation: torchvision's own transform does what the metadata says.
        min_size=SIZE, max_size=SIZE, image_mean=backbone.mean.tolist(), image_std=backbone.std.tolist(),
        rpn_anchor_generator=AnchorGenerator(sizes=((24,), (48,), (72,)), aspect_ratios=((0.75, 1.0, 1.33),) * 3),
        rpn_pre_nms_top_n_train=200, rpn_post_nms_top_n_train=100, rpn_pre_nms_top_n_test=100, rpn_post_nms_top_n_test=50,
        rpn_batch_size_per_image=64, box_batch_size_per_image=32, box_detections_per_img=10, box_score_thresh=0.5,
        box_roi_pool=MultiScaleRoIAlign(names, 7, 2), mask_roi_pool=MultiScaleRoIAlign(names, 14, 2),
    )
    scenes = [scene(SIZE, seed) for seed in range(72)]
    pixels = [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image, _, _ in scenes]

    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=options.steps)
    for step in range(options.steps):
        batch = torch.randint(64, (4,)).tolist()
        losses = model([pixels[at] for at in batch], [targets(scenes[at][2]) for at in batch])
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5)
        optimizer.step()
        schedule.step()
        if step % 20 == 19:
            print(f"step {step + 1}: loss {loss.item():.3f}", file=sys.stderr)

    with torch.no_grad():
        found = model.eval()(pixels[64:])
    hits = total = 0
    rows = []
    for at, detections in zip(range(64, 72), found, strict=True):
        image, _, things = scenes[at]
        wanted = targets(things)
        total += len(things)
        for kind, box in zip(wanted["labels"], wanted["boxes"], strict=True):
            same = detections["boxes"][detections["labels"] == kind]
            hits += bool(len(same)) and bool((box_iou(box[None], same) > 0.5).any())
        if len(rows) < 4:
            ours = drawn(image, detections["labels"].tolist(), detections["boxes"], (detections["masks"][:, 0] > 0.5).numpy())
            theirs = drawn(image, wanted["labels"].tolist(), wanted["boxes"], wanted["masks"].bool().numpy())
            rows.append(np.concatenate([image, ours, theirs], axis=1))
    Image.fromarray(np.concatenate(rows)).save(options.out)
    print(json.dumps({"picture": str(options.out), "recall_at_iou_0.5": round(hits / total, 3), "outputs": backbone.names}))


main()
