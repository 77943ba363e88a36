"""An exported backbone in ONNX Runtime: what its own metadata says is done to an image, nothing is repeated here."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import torch


def export(tec_zoo, model, out, *options):
    """`tec-zoo export`; the graph is checked against the model's own forward pass before it is used."""
    subprocess.run([tec_zoo, "export", model, "--out", out, *map(str, options)], check=True, stdout=sys.stderr)


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
