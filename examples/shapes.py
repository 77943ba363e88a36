"""Pictures to learn from in seconds: discs, squares and triangles on a grey background, with what is where."""

import math

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ["background", "disc", "square", "triangle"]
# A tone for each class in pictures of results.
PALETTE = np.array([[40, 40, 40], [230, 80, 70], [80, 180, 90], [80, 110, 230]], dtype=np.uint8)


def scene(size, seed):
    """An RGB image (H, W, 3) uint8, its classes (H, W), and for each shape its class, box and mask."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 6, (size, size, 3))
    canvas = Image.new("RGB", (size, size), tuple(int(v) for v in rng.integers(90, 160, 3)))
    classes = np.zeros((size, size), dtype=np.int64)
    things = []
    for quarter in rng.permutation(4)[: rng.integers(2, 5)]:
        kind = int(rng.integers(1, 4))
        radius = rng.uniform(0.14, 0.2) * size
        centre = (np.array([quarter % 2, quarter // 2]) + 0.5) * size / 2 + rng.uniform(-0.03, 0.03, 2) * size
        colour = rng.integers(0, 90, 3)
        colour[kind - 1] = rng.integers(170, 256)
        mask = Image.new("L", (size, size))
        for target, fill in ((ImageDraw.Draw(canvas), tuple(int(v) for v in colour)), (ImageDraw.Draw(mask), 1)):
            if kind == 1:
                target.ellipse([*(centre - radius), *(centre + radius)], fill=fill)
            else:
                corners = 4 if kind == 2 else 3
                turn = math.pi / 4 if kind == 2 else -math.pi / 2
                angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
                target.polygon([tuple(centre + radius * np.array([math.cos(a), math.sin(a)])) for a in angles], fill=fill)
        mask = np.asarray(mask, dtype=bool)
        classes[mask] = kind
        rows, columns = np.nonzero(mask)
        things.append((kind, [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], mask))
    image = np.clip(np.asarray(canvas, dtype=np.float64) + noise, 0, 255).astype(np.uint8)
    return image, classes, things
