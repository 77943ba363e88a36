"""Our ONNX export of a ViT-B beside torch.onnx's of the same model: time to export, file, nodes, load and inference.

    TEC_ZOO_BIN=target/release/tec-zoo python benches/peers/export.py [--rounds N] [--batches 1,8] [--threads 2] [--only dynamic]

Needs tests/interop/requirements.txt and onnxscript (for torch.onnx's dynamo export; left out when it is missing). Every
figure is a ratio to torch.onnx's export as well: machines differ, and so does one machine from minute to minute, which is
why the files take turns, in random order, and the median of the rounds' ratios is what is printed.
"""

import argparse
import importlib.util
import os
import pathlib
import random
import statistics
import subprocess
import tempfile
import time
import warnings

import numpy as np
import onnx
import onnxruntime
import safetensors.torch
import timm
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("TEC_ZOO_BIN", ROOT / "target" / "release" / "tec-zoo")


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ours(directory, path, target, *options):
    command = [BINARY, "export", directory, "--out", path, "--target", target, "--no-check", "--quiet", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def legacy(model, path):
    torch.onnx.export(
        model,
        (torch.randn(2, 3, 224, 224),),
        path,
        dynamo=False,
        opset_version=17,
        input_names=["pixel_values"],
        dynamic_axes={"pixel_values": {0: "batch"}},
    )


def dynamo(model, path):
    torch.onnx.export(
        model,
        (torch.randn(2, 3, 224, 224),),
        path,
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=["pixel_values"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
    )


def session(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def rounds(names, count, work):
    """Seconds of each round, every name once a round, in random order."""
    seconds = {name: [] for name in names}
    for _ in range(count):
        for name in random.sample(names, len(names)):
            seconds[name].append(timed(lambda: work(name)))
    return seconds


def table(title, seconds, baseline):
    print(f"\n{title}")
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds[baseline], strict=True))
        print(f"  {name:22} median {statistics.median(values) * 1e3:9.1f} ms   {ratio:5.2f} × {baseline}")


def dynamic_beside_fixed(directory, folder, options):
    """One file for every size beside one for 512×512, at 512×512."""
    side = 512
    images = np.random.default_rng(0).standard_normal((1, 3, side, side), dtype=np.float32)
    for target in ("portable", "ort"):
        for purpose in (["--for", "tokens"], ["--for", "levels", "--levels", "3,5,7,11"]):
            sizes = {"fixed": ["--size", f"{side}x{side}"], "dynamic": ["--dynamic"]}
            sessions, outputs = {}, {}
            for name, size in sizes.items():
                path = folder / f"{name}.onnx"
                ours(directory, path, target, *purpose, *size)
                sessions[name] = session(path, options.threads)
                outputs[name] = sessions[name].run(None, {"pixel_values": images})
            worst = max(float(np.abs(a - b).max()) for a, b in zip(*outputs.values(), strict=True))
            table(
                f"{purpose[1]} at {side}×{side}, --target {target} (largest |Δ| {worst:.1e})",
                rounds(list(sizes), options.rounds, lambda name: sessions[name].run(None, {"pixel_values": images})),
                "fixed",
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["dynamic"], help="leave torch.onnx out, and compare our own files")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    model = timm.create_model("vit_base_patch16_224", num_classes=0, global_pool="").eval()

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        weights = folder / "vit_b.safetensors"
        safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
        directory = folder / "vit_b"
        subprocess.run(
            [BINARY, "convert", weights, "--family", "timm", "--heads", "12", "--out", directory, "--quiet"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        dynamic_beside_fixed(directory, folder, options)
        if options.only:
            return
        exporters = {
            "torch.onnx legacy": lambda path: legacy(model, path),
            "torch.onnx dynamo": lambda path: dynamo(model, path),
            "tec-zoo --target ort": lambda path: ours(directory, path, "ort"),
            "tec-zoo portable": lambda path: ours(directory, path, "portable"),
        }
        if importlib.util.find_spec("onnxscript") is None:
            print("onnxscript is not installed: torch.onnx's dynamo export is left out")
            del exporters["torch.onnx dynamo"]
        names, baseline = list(exporters), "torch.onnx legacy"
        paths = {name: folder / f"{i}.onnx" for i, name in enumerate(names)}

        table("export", {name: [timed(lambda: exporters[name](paths[name]))] for name in names}, baseline)
        contents = paths["tec-zoo --target ort"].read_bytes()
        plain = [timed(lambda: (folder / "plain").write_bytes(contents)) for _ in range(5)]
        again = [timed(lambda: ours(directory, folder / "again.onnx", "ort")) for _ in range(5)]
        ratio = statistics.median(again) / statistics.median(plain)
        print(f"  {ratio:.2f} × a plain write of its {len(contents)} bytes (medians of 5; program start included)")

        print("\nnodes")
        for name in names:
            print(f"  {name:22} {len(onnx.load(paths[name]).graph.node)}")

        table("load", rounds(names, max(5, options.rounds // 3), lambda name: session(paths[name], options.threads)), baseline)
        sessions = {name: session(paths[name], options.threads) for name in names}
        for batch in map(int, options.batches.split(",")):
            images = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
            work = lambda name: sessions[name].run(None, {"pixel_values": images})
            outputs = {name: work(name)[0] for name in names}
            worst = max(float(np.abs(outputs[name] - outputs[baseline]).max()) for name in names)
            count = options.rounds if batch == 1 else max(5, options.rounds // 2)
            table(
                f"inference, batch {batch}, {options.threads} threads (largest |Δ| between files {worst:.1e})",
                rounds(names, count, work),
                baseline,
            )


if __name__ == "__main__":
    main()
