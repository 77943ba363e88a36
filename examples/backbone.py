"""An exported backbone in ONNX Runtime: what its own metadata says is done to an image, nothing is repeated here."""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnxruntime
import torch


def arguments(description, steps):
    """What both examples are told: a model, and where the picture goes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--tec-zoo", default="tec-zoo")
    parser.add_argument("--steps", type=int, default=steps)
    return parser.parse_args()


def exported(options, purpose, size):
    """The model's backbone for `purpose`, at one size; the graph is checked against the model's own forward pass first."""
    with tempfile.TemporaryDirectory() as folder:
        graph = f"{folder}/backbone.onnx"
        command = [options.tec_zoo, "export", options.model, "--out", graph, "--for", purpose, "--size", f"{size}x{size}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return Backbone(graph)


class Backbone:
    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.metadata = self.session.get_modelmeta().custom_metadata_map
        self.mean, self.std = (np.array(json.loads(self.metadata[key]), dtype=np.float32) for key in ("mean", "std"))
        self.names = [output.name for output in self.session.get_outputs()]

    def normalised(self, images):
        """(B, H, W, 3) uint8 to (B, 3, H, W) float32."""
        return ((np.stack(images).astype(np.float32) / 255 - self.mean) / self.std).transpose(0, 3, 1, 2)

    def __call__(self, pixels):
        """The maps for normalised pixels, as tensors."""
        return [torch.from_numpy(value) for value in self.session.run(None, {"pixel_values": np.ascontiguousarray(pixels)})]
