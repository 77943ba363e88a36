"""The evaluation transform against torchvision's, through `embed`."""

import numpy as np
import torch
from conftest import tec_zoo
from PIL import Image
from safetensors.numpy import load_file, save_file
from torchvision import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(width, height, seed):
    """Smooth shapes plus noise, so that a wrong filter, offset or channel order shows."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    channels = [127 + 90 * np.sin(x / (7 + c) + seed) * np.cos(y / (11 - c)) for c in range(3)]
    noise = random.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(channels, -1) + noise, 0, 255).astype(np.uint8))


def test_images_become_what_torchvision_makes_of_them(models, tmp_path):
    sizes = [(91, 64), (64, 91), (200, 333), (73, 73), (640, 480), (65, 400)]
    folder = tmp_path / "images"
    folder.mkdir()
    transform = transforms.Compose([
        transforms.Resize(int(64 / 0.875), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(64),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])
    tensors = []
    for i, (width, height) in enumerate(sizes):
        image = picture(width, height, i)
        image.save(folder / f"{i}.png")
        tensors.append(transform(image))
    # PNG is lossless, so both see the same pixels.
    save_file({"images": torch.stack(tensors).numpy()}, tmp_path / "images.safetensors")
    tec_zoo("embed", models["mae"], folder, "--out", tmp_path / "a.safetensors", "--outputs", "norm")
    tec_zoo("embed", models["mae"], tmp_path / "images.safetensors", "--out", tmp_path / "b.safetensors", "--outputs", "norm")
    a, b = load_file(tmp_path / "a.safetensors")["norm"], load_file(tmp_path / "b.safetensors")["norm"]
    # One grey level is 0.017 after normalisation and may differ by rounding; a wrong crop or filter differs by more than 0.1.
    assert np.abs(a - b).max() < 0.02, np.abs(a - b).max()
