"""Our f16 and int8 files of a ViT-B beside ONNX Runtime's own converters of our f32 file: how far from f32, size and time.

    TEC_ZOO_BIN=target/release/tec-zoo python benches/peers/dtype.py [--rounds N] [--threads 2]

Needs tests/interop/requirements.txt. The model has random weights and, as trained ViTs do, values of some thousands in single
channels. Peers: `onnxruntime.transformers.float16` (inputs and outputs kept f32) and `onnxruntime.quantization` (dynamic, and
static from the same images), each with its defaults. Times are ratios to our f32 file; the files take turns in random order.
"""

import argparse
import pathlib
import subprocess
import tempfile
import warnings

import numpy as np
import onnx
import safetensors.torch
import timm
import torch
from export import BINARY, ours, rounds, session, table

LEVELS = ["--for", "levels", "--levels", "1,3,5,7,11"]
OURS = {
    "f32": [],
    "f16": ["--dtype", "f16"],
    "int8": ["--dtype", "int8"],
    "int8 calibrated": ["--dtype", "int8", "--calibrate"],
}


def with_outliers():
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224", num_classes=0, global_pool="").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        model.blocks[1].mlp.fc2.bias[7] += 300
        model.blocks[2].mlp.fc2.bias[100] -= 2500
        model.blocks[4].mlp.fc2.weight[33] *= 400
    return model


def halved(source, path):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), path)


def quantized(source, path, images=None):
    from onnxruntime import quantization

    prepared = path.with_suffix(".prepared.onnx")
    quantization.shape_inference.quant_pre_process(str(source), str(prepared))
    if images is None:
        quantization.quantize_dynamic(prepared, path, op_types_to_quantize=["MatMul", "Gemm"])
        return

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.images = iter(images)

        def get_next(self):
            image = next(self.images, None)
            return None if image is None else {"pixel_values": image[None]}

    options = {"op_types_to_quantize": ["MatMul", "Gemm"], "per_channel": True}
    quantization.quantize_static(prepared, path, Reader(), **options)


def cosines(expected, found):
    """Smallest over levels: of all values, and of all but the hundredth that is largest."""
    out = []
    for bulk in (False, True):
        least = 1.0
        for a, b in zip(expected, found, strict=True):
            a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
            if bulk:
                keep = np.abs(a) <= np.quantile(np.abs(a), 0.99)
                a, b = a[keep], b[keep]
            least = min(least, a @ b / np.sqrt((a @ a) * (b @ b)))
        out.append(least)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    model = with_outliers()
    images = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        safetensors.torch.save_file(model.state_dict(), folder / "vit_b.safetensors")
        safetensors.torch.save_file({"images": images}, folder / "images.safetensors")
        convert = [BINARY, "convert", folder / "vit_b.safetensors", "--family", "timm", "--heads", "12", "--quiet"]
        subprocess.run([*convert, "--out", folder / "zoo"], check=True, stdout=subprocess.DEVNULL)
        paths = {}
        for target in ("ort", "portable"):
            for name, flags in OURS.items():
                path = paths[f"{target} {name}"] = folder / f"{target}-{name.replace(' ', '-')}.onnx"
                more = [folder / "images.safetensors"] if "--calibrate" in flags else []
                ours(folder / "zoo", path, target, *LEVELS, *flags, *more)
        source = paths["portable f32"]
        for name, make in {
            "peer f16": lambda path: halved(source, path),
            "peer int8 dynamic": lambda path: quantized(source, path),
            "peer int8 static": lambda path: quantized(source, path, images.numpy()),
        }.items():
            paths[name] = folder / f"{name.replace(' ', '-')}.onnx"
            make(paths[name])
        sessions = {}
        for name in list(paths):
            try:
                sessions[name] = session(paths[name], options.threads)
            except Exception as error:
                print(f"{name}: does not load: {str(error).splitlines()[0]}")
        image = np.random.default_rng(2).standard_normal((1, 3, 224, 224), dtype=np.float32)
        with torch.no_grad():
            levels = model.forward_intermediates(torch.from_numpy(image), indices=[1, 3, 5, 7, 11], intermediates_only=True)
        levels = [level.numpy() for level in levels]
        print(f"\nlargest values by level: {[round(float(np.abs(level).max())) for level in levels]}")
        print("file, and smallest cosine of a level with PyTorch's: of all values, of the bulk")
        for name in sessions:
            every, bulk = cosines(levels, sessions[name].run(None, {"pixel_values": image}))
            print(f"  {name:24} {paths[name].stat().st_size / 2**20:6.1f} MiB   {every:.6f}   {bulk:.6f}")
        seconds = rounds(list(sessions), options.rounds, lambda name: sessions[name].run(None, {"pixel_values": image}))
        table(f"inference, batch 1, {options.threads} threads", seconds, "ort f32")


if __name__ == "__main__":
    main()
