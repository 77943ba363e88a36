"""Conversion of a ViT-L-size .pth (1.2 GB, random weights) against `cp` and against PyTorch + safetensors.

    just peers        or        python benches/peers/convert.py [--folder DIR] [--rounds N]

Takes the program from TEC_ZOO_BIN (default target/release/tec-zoo). In each round every contender runs once, on the same file,
on the same disk; what is printed is medians, and ratios to `cp`. Peak memory is of anonymous pages: mapped pages of the file
belong to the page cache.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("TEC_ZOO_BIN", ROOT / "target/release/tec-zoo")
WIDTH, DEPTH, GRID, PATCH = 1024, 24, 14, 16

PYTORCH = """
import sys, torch
from safetensors.torch import save_file
state = torch.load(sys.argv[1], mmap=True, map_location="cpu", weights_only=True)["model"]
save_file({key: value.contiguous() for key, value in state.items()}, sys.argv[2])
"""


def position_table():
    """MAE's fixed table: the converter checks it."""
    rates = 1 / 10000 ** (np.arange(WIDTH // 4) / (WIDTH / 4))

    def half(positions):
        angles = np.outer(positions, rates)
        return np.concatenate([np.sin(angles), np.cos(angles)], 1)

    rows, columns = np.divmod(np.arange(GRID * GRID), GRID)
    table = np.concatenate([half(columns), half(rows)], 1)
    return torch.tensor(np.concatenate([np.zeros((1, WIDTH)), table]), dtype=torch.float32)[None]


def write_checkpoint(path):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator) * 0.02

    state = {"cls_token": random(1, 1, WIDTH), "pos_embed": position_table()}
    linears = {"patch_embed.proj": (WIDTH, 3, PATCH, PATCH)}
    for i in range(DEPTH):
        linears |= {
            f"blocks.{i}.norm1": (WIDTH,),
            f"blocks.{i}.attn.qkv": (3 * WIDTH, WIDTH),
            f"blocks.{i}.attn.proj": (WIDTH, WIDTH),
            f"blocks.{i}.norm2": (WIDTH,),
            f"blocks.{i}.mlp.fc1": (4 * WIDTH, WIDTH),
            f"blocks.{i}.mlp.fc2": (WIDTH, 4 * WIDTH),
        }
    linears["norm"] = (WIDTH,)
    for name, shape in linears.items():
        state[f"{name}.weight"], state[f"{name}.bias"] = random(*shape), random(shape[0])
    torch.save({"model": state}, path)


def anonymous_kib(pid):
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def run(command):
    """Seconds, seconds until it is on the disk, and the peak of anonymous memory in MiB, sampled every few milliseconds."""
    started = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    peak = 0

    def watch():
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, anonymous_kib(process.pid))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - started
    watcher.join()
    if code:
        sys.exit(f"{command} ended with {code}")
    os.sync()
    return seconds, time.perf_counter() - started, peak / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to put 4 GB for a while")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        folder = pathlib.Path(folder)
        source = folder / "vit-l.pth"
        write_checkpoint(source)
        contenders = {
            "cp": (["cp", source, folder / "copy.pth"], folder / "copy.pth"),
            "tec-zoo convert": (
                [BINARY, "convert", source, "--family", "mae", "--out", folder / "model"],
                folder / "model",
            ),
            "torch.load(mmap) + save_file": (
                [sys.executable, "-c", PYTORCH, source, folder / "model.safetensors"],
                folder / "model.safetensors",
            ),
            "tec-zoo inspect": ([BINARY, "inspect", source], None),
        }
        seconds = {name: [] for name in contenders}
        synced = {name: [] for name in contenders}
        memory = {name: [] for name in contenders}
        for _ in range(arguments.rounds):
            for name, (command, made) in contenders.items():
                # What the contender before left to write back is not this one's to wait for.
                os.sync()
                took, on_disk, peak = run(command)
                seconds[name].append(took)
                synced[name].append(on_disk)
                memory[name].append(peak)
                if made is not None:
                    shutil.rmtree(made) if made.is_dir() else made.unlink()
        print(f"{source.stat().st_size / 1e9:.2f} GB, median of {arguments.rounds}")
        print(f"{'':<30} {'seconds':>8} {'x cp':>6} {'on disk':>8} {'x cp':>6} {'MiB':>6}")
        for name in contenders:
            cells = []
            for times in (seconds, synced):
                median = statistics.median(times[name])
                cells.append(f"{median:8.3f} {median / statistics.median(times['cp']):6.2f}")
            print(f"{name:<30} {cells[0]} {cells[1]} {max(memory[name]):6.0f}")


if __name__ == "__main__":
    main()
