"""Our `--for upernet` and `--for vitdet` of a ViT-B, for one size and for any, beside torch.onnx's export of the same PyTorch module, after onnxslim.

    TEC_ZOO_BIN=target/release/tec-zoo python benches/peers/maps.py [--rounds N] [--threads 2] [--only upernet,vitdet]

Needs tests/interop/requirements.txt. UperNet: 512 × 512, the four levels through iBOT's `fpn1` to `fpn4`. ViTDet: 1024 × 1024,
transformers' `VitDetBackbone` with relative positions and the simple feature pyramid. As in export.py the files take turns and
ratios are medians over rounds. Peak memory is that of a process which loads a file and runs it twice.
"""

import argparse
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import onnx

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEER = "torch.onnx + onnxslim"


def session(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def images(size):
    return np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)


def run_alone(path, size, threads):
    """What the child process does: prints its peak memory in MiB."""
    alone = session(path, threads)
    for _ in range(2):
        alone.run(None, {alone.get_inputs()[0].name: images(size)})
    # Not getrusage, whose peak includes the parent's pages before exec.
    status = pathlib.Path("/proc/self/status").read_text()
    print(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024)


def compare(purpose, options, folder):
    import onnxslim
    import torch

    binary = os.environ.get("TEC_ZOO_BIN", ROOT / "target" / "release" / "tec-zoo")
    sys.path.insert(0, str(ROOT / "tests" / "interop"))
    from segmenters_and_detectors import Detector, Segmenter, shaken

    make, size, flags = {"upernet": (Segmenter, 512, ["--heads", "12"]), "vitdet": (Detector, 1024, [])}[purpose]
    torch.manual_seed(0)
    module = shaken(make())
    torch.save(module.checkpoint(), folder / "tuned.pth")
    directory = folder / purpose
    quiet = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run([binary, "convert", folder / "tuned.pth", "--out", directory, "--quiet", *flags], **quiet)
    paths = {PEER: folder / "peer.onnx"}
    with torch.no_grad():
        sample = (torch.from_numpy(images(size)),)
        torch.onnx.export(module, sample, folder / "raw.onnx", dynamo=False, opset_version=17, input_names=["pixel_values"])
    onnx.save(onnxslim.slim(onnx.load(folder / "raw.onnx")), paths[PEER])
    del module
    fixed = ["--size", f"{size}x{size}"]
    for name, flags in {
        "ort": ["--target", "ort", *fixed],
        "portable": fixed,
        "ort dynamic": ["--target", "ort", "--dynamic"],
    }.items():
        path = paths[f"tec-zoo {name}"] = folder / f"{name.replace(' ', '-')}.onnx"
        export = [binary, "export", directory, "--for", purpose, "--out", path, "--no-check", "--quiet", *flags]
        subprocess.run(export, **quiet)
    print(f"\n{purpose} at {size} × {size}, batch 1, {options.threads} threads")
    print("nodes      ", {name: len(onnx.load(path).graph.node) for name, path in paths.items()})
    peaks = {}
    for name, path in paths.items():
        command = [sys.executable, __file__, "--alone", path, "--size", str(size), "--threads", str(options.threads)]
        peaks[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print("peak memory", {name: f"{peak:.0f} MiB, {peak / peaks[PEER]:.2f} ×" for name, peak in peaks.items()})
    sessions = {name: session(path, options.threads) for name, path in paths.items()}
    batch = images(size)
    outputs = {name: session.run(None, {"pixel_values": batch}) for name, session in sessions.items()}
    for name in list(paths)[1:]:
        # The two files name their outputs differently and order them alike.
        worst = max(float(np.abs(a - b).max()) for a, b in zip(outputs[name], outputs[PEER], strict=True))
        print(f"largest |Δ| of {name}: {worst:.1e}")
    seconds = {name: [] for name in paths}
    for _ in range(options.rounds):
        for name in random.sample(list(paths), len(paths)):
            start = time.perf_counter()
            sessions[name].run(None, {"pixel_values": batch})
            seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds[PEER], strict=True))
        print(f"  {name:22} median {statistics.median(values) * 1e3:9.1f} ms   {ratio:5.2f} × {PEER}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="upernet,vitdet")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        return run_alone(options.alone, options.size, options.threads)
    warnings.filterwarnings("ignore")
    for purpose in options.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            compare(purpose, options, pathlib.Path(folder))


if __name__ == "__main__":
    main()
