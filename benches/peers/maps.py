"""Our `--for upernet` and `--for vitdet` of a ViT-B beside torch.onnx's export of the same PyTorch module, after onnxslim.

    TEC_ZOO_BIN=target/release/tec-zoo python benches/peers/maps.py [--rounds N] [--threads 2] [--only upernet,vitdet]

Needs tests/interop/requirements.txt. UperNet: 512 × 512, the four levels through iBOT's `fpn1` to `fpn4`. ViTDet: 1024 × 1024,
transformers' `VitDetBackbone` with relative positions and the simple feature pyramid. As in export.py the files take turns and
ratios are medians over rounds. Peak memory is that of a process which loads a file and runs it twice.
"""

import argparse
import pathlib
import random
import resource
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
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def modules():
    import timm
    import torch
    import torch.nn.functional as F
    from torch import nn
    from transformers import VitDetBackbone, VitDetConfig

    class Segmenter(nn.Module):
        """timm's ViT at 512 pixels, its blocks 3, 5, 7 and 11 through iBOT's pyramid."""

        def __init__(self):
            super().__init__()
            vit = timm.create_model("vit_base_patch16_224", img_size=512, num_classes=0, global_pool="")
            self.vit, wide = vit, 768
            up = lambda: nn.ConvTranspose2d(wide, wide, 2, 2)
            self.fpn1 = nn.Sequential(up(), nn.BatchNorm2d(wide), nn.GELU(), up())
            self.fpn2, self.fpn4 = nn.Sequential(up()), nn.MaxPool2d(2, 2)

        def forward(self, x):
            vit = self.vit
            x = vit.patch_embed(x)
            x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1) + vit.pos_embed
            maps = []
            for i, block in enumerate(vit.blocks):
                x = block(x)
                if i in (3, 5, 7, 11):
                    maps.append(x[:, 1:].transpose(1, 2).reshape(-1, 768, 32, 32))
            return self.fpn1(maps[0]), self.fpn2(maps[1]), maps[2], self.fpn4(maps[3])

        def checkpoint(self):
            state = {f"backbone.{key.removeprefix('vit.')}": value for key, value in self.state_dict().items()}
            return {"state_dict": {key: value for key, value in state.items() if not key.startswith("backbone.norm.")}}

    class Norm(nn.Module):
        def __init__(self, wide):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(wide)), nn.Parameter(torch.zeros(wide))

        def forward(self, x):
            mean = x.mean(1, keepdim=True)
            variance = (x - mean).pow(2).mean(1, keepdim=True)
            return self.weight[:, None, None] * ((x - mean) / torch.sqrt(variance + 1e-6)) + self.bias[:, None, None]

    class Conv(nn.Conv2d):
        def __init__(self, inner, out, side):
            super().__init__(inner, out, side, padding=side // 2, bias=False)
            self.norm = Norm(out)

        def forward(self, x):
            return self.norm(super().forward(x))

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = VitDetBackbone(
                VitDetConfig(
                    image_size=1024,
                    window_size=14,
                    window_block_indices=[0, 1, 3, 4, 6, 7, 9, 10],
                    use_relative_position_embeddings=True,
                    out_features=["stage12"],
                )
            )
            up = lambda inner, out: nn.ConvTranspose2d(inner, out, 2, 2)
            ends = lambda wide: [Conv(wide, 256, 1), Conv(256, 256, 3)]
            self.simfp_2 = nn.Sequential(up(768, 384), Norm(384), nn.GELU(), up(384, 192), *ends(192))
            self.simfp_3 = nn.Sequential(up(768, 384), *ends(384))
            self.simfp_4 = nn.Sequential(*ends(768))
            self.simfp_5 = nn.Sequential(nn.MaxPool2d(2, 2), *ends(768))

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

    return {"upernet": (Segmenter, 512, ["--heads", "12"]), "vitdet": (Detector, 1024, [])}


def shaken(module):
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if "rel_pos" in name or name.endswith("pos_embed") or "position_embeddings" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
    return module.eval()


def compare(purpose, options, folder):
    import onnxslim
    import os
    import torch

    binary = os.environ.get("TEC_ZOO_BIN", ROOT / "target" / "release" / "tec-zoo")
    make, size, flags = modules()[purpose]
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
    for target in ["ort", "portable"]:
        paths[f"tec-zoo {target}"] = folder / f"{target}.onnx"
        subprocess.run(
            [binary, "export", directory, "--for", purpose, "--size", f"{size}x{size}", "--target", target, "--no-check", "--quiet"]
            + ["--out", paths[f"tec-zoo {target}"]],
            **quiet,
        )
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
