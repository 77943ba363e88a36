"""Our training loader beside torchvision's in a DataLoader: images a second from the same JPEGs, as a ratio, and memory.

    python benches/peers/loader.py [--rounds N] [--workers 2]

Needs cargo and tests/interop/requirements.txt. Both read the same folders (pictures with structure at all scales, as
photographs have: 500 × 375 as ImageNet's, and 2000 × 1500 as a camera's; JPEG 4:2:0, quality 90), make the same
augmentation (RandomResizedCrop 0.2–1 to 224 bicubic, flip, normalise), in batches of 64, with as many threads as the other
has processes. Rates count from the first batch on. The contestants take turns, in random order, and what is printed is the
median of the rounds' ratios: machines differ, and so does one machine from minute to minute.

Then one thread decodes a random crop of each JPEG, from memory: with our decoder, with zune-jpeg (all of the image, then the
crop), and with PIL (libjpeg-turbo; likewise); and the pixels of ours and zune-jpeg's are compared with PIL's.
"""

import argparse
import io
import json
import os
import pathlib
import random
import resource
import statistics
import subprocess
import tempfile
import time

import numpy as np
import torch
from PIL import Image
from torchvision import datasets, transforms

ROOT = pathlib.Path(__file__).resolve().parents[2]
BATCH = 64


def picture(width, height, seed):
    numbers = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128.0)
    for octave in range(2, int(np.log2(width * 0.6)) + 1):
        grid = numbers.random((2**octave * height // width + 1, 2**octave, 3)) - 0.5
        for channel in range(3):
            plane = Image.fromarray(grid[..., channel].astype(np.float32))
            pixels[..., channel] += 160 / 1.5 ** (octave - 2) * np.asarray(plane.resize((width, height), Image.BILINEAR))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write(folder, width, height, count, different=16, subsampling="4:2:0"):
    folder = folder / "class"
    folder.mkdir(parents=True)
    encoded = []
    for seed in range(different):
        path = folder / f"{seed:05}.jpg"
        picture(width, height, seed).save(path, quality=90, subsampling=subsampling)
        encoded.append(path.read_bytes())
    for i in range(different, count):
        (folder / f"{i:05}.jpg").write_bytes(encoded[i % different])
    return sum(map(len, encoded)) / different


def memory(pid):
    """Proportional share of a process's memory and its children's, in MiB: what forked workers share counts once."""
    total = 0
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            total += int(line.split()[1]) / 1024
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            total += memory(child)
    return total


def theirs(folder, workers, epochs):
    transform = transforms.Compose([
        transforms.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(folder, transform),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
    )
    start, images, before = None, 0, memory(os.getpid())
    for _ in range(epochs):
        for batch, _ in loader:
            if start is None:
                start = time.perf_counter()
            else:
                images += len(batch)
    seconds = time.perf_counter() - start
    return {"images_per_second": images / seconds, "peak_mib": memory(os.getpid()) - before}


def ours(folder, workers, epochs, exact):
    environment = {**os.environ, "TEC_ZOO_LOADER_FOLDER": str(folder), "TEC_ZOO_LOADER_WORKERS": str(workers), "TEC_ZOO_LOADER_EPOCHS": str(epochs)}
    if exact:
        environment["TEC_ZOO_LOADER_EXACT"] = "1"
    command = os.environ.get("TEC_ZOO_LOADER_BENCH", "cargo bench --quiet --bench loader").split()
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout.decode().strip().splitlines()[-1])


def decoded(folder, decoder, pixels=None):
    environment = {**os.environ, "TEC_ZOO_LOADER_FOLDER": str(folder), "TEC_ZOO_LOADER_DECODER": decoder}
    if pixels:
        environment["TEC_ZOO_LOADER_PIXELS"] = str(pixels)
    command = os.environ.get("TEC_ZOO_LOADER_BENCH", "cargo bench --quiet --bench loader").split()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def pil_decoded(folder):
    encoded = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
    crop = transforms.RandomResizedCrop.get_params
    for data in encoded:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        top, left, height, width = crop(image, (0.2, 1.0), (3 / 4, 4 / 3))
        image.crop((left, top, left + width, top + height)).tobytes()


def processor_time(work, who):
    """Seconds, of this process or of those it started: what else runs on the machine matters least to it."""
    before = resource.getrusage(who).ru_utime
    work()
    return resource.getrusage(who).ru_utime - before


def differences(folder, decoder, different=16):
    """Largest and mean difference from PIL, in grey levels."""
    with tempfile.TemporaryDirectory() as pixels:
        decoded(folder, decoder, pixels)
        levels = []
        for at, path in enumerate(sorted(folder.rglob("*.jpg"))[:different]):
            theirs = np.asarray(Image.open(path).convert("RGB")).astype(int)
            ours = np.fromfile(pathlib.Path(pixels) / f"{at:05}", np.uint8).reshape(theirs.shape)
            levels.append(np.abs(ours - theirs))
        return max(int(level.max()) for level in levels), float(np.mean([level.mean() for level in levels]))


def decoders(folder, rounds):
    count = len(list(folder.rglob("*.jpg")))
    contestants = {
        "zune-jpeg": lambda: processor_time(lambda: decoded(folder, "zune"), resource.RUSAGE_CHILDREN),
        "PIL": lambda: processor_time(lambda: pil_decoded(folder), resource.RUSAGE_SELF),
        "tec-zoo": lambda: processor_time(lambda: decoded(folder, "own"), resource.RUSAGE_CHILDREN),
    }
    results = {contestant: [] for contestant in contestants}
    for _ in range(rounds):
        for contestant in random.sample(list(contestants), len(contestants)):
            results[contestant].append(contestants[contestant]())
    print("  decoding a random crop, one thread, processor time")
    for contestant, seconds in results.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, results["zune-jpeg"], strict=True))
        exact = {"zune-jpeg": "zune", "tec-zoo": "own"}.get(contestant)
        worst, mean = differences(folder, exact) if exact else (0, 0.0)
        each = 1000 * statistics.median(seconds) / count
        print(f"  {contestant:24} {each:8.2f} ms an image  {ratio:5.2f} ×   {worst:3} levels at most, {mean:.4f} on average")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name, width, height, count, epochs in [("500 × 375", 500, 375, 512, 3), ("2000 × 1500", 2000, 1500, 256, 1)]:
            images = folder / name.replace(" ", "")
            size = write(images, width, height, count)
            contestants = {
                "torchvision, DataLoader": lambda: theirs(images, options.workers, epochs),
                "tec-zoo": lambda: ours(images, options.workers, epochs, False),
                "tec-zoo, exact decoding": lambda: ours(images, options.workers, epochs, True),
            }
            rounds = {contestant: [] for contestant in contestants}
            contestants["tec-zoo"]()
            for _ in range(options.rounds):
                for contestant in random.sample(list(contestants), len(contestants)):
                    rounds[contestant].append(contestants[contestant]())
            print(f"\n{name}, {size / 1024:.0f} KiB each, {options.workers} workers")
            baseline = rounds["torchvision, DataLoader"]
            for contestant, results in rounds.items():
                rate = lambda result: result["images_per_second"]
                ratio = statistics.median(rate(a) / rate(b) for a, b in zip(results, baseline, strict=True))
                peak = statistics.median(result["peak_mib"] for result in results)
                print(f"  {contestant:24} {statistics.median(map(rate, results)):8.1f} images/s  {ratio:5.2f} ×   {peak:6.0f} MiB")
            decoders(images, options.rounds)
        write(folder / "444", 500, 375, 256, subsampling="4:4:4")
        print("\n500 × 375, 4:4:4")
        decoders(folder / "444", options.rounds)


if __name__ == "__main__":
    main()
