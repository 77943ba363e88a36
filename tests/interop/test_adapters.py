"""Parameter-efficient fine-tuning of an exported graph: TEC's adapters learn, the backbone stays as it was."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from conftest import tec_zoo

PREFIX = "encoder_adapter."


class Graph(torch.nn.Module):
    """An exported portable graph as a module: its float initializers are parameters, under their own names."""

    def __init__(self, path):
        super().__init__()
        graph = onnx.load(path).graph
        self.nodes = list(graph.node)
        self.outputs = [output.name for output in graph.output]
        self.values, self.tensors = {}, torch.nn.ParameterDict()
        for tensor in graph.initializer:
            value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            if value.is_floating_point() and value.dim() > 0:
                # Dots belong to modules in PyTorch.
                self.tensors[tensor.name.replace(".", ":")] = torch.nn.Parameter(value)
            else:
                self.values[tensor.name] = value

    def named(self):
        return {name.replace(":", "."): tensor for name, tensor in self.tensors.items()}

    def forward(self, images):
        values = self.values | self.named() | {"pixel_values": images}
        for node in self.nodes:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            out = compute(node.op_type, [values[name] for name in node.input], attributes)
            values |= zip(node.output, out if isinstance(out, (tuple, list)) else [out], strict=True)
        return {name: values[name] for name in self.outputs}


def compute(operator, x, attributes):
    match operator:
        case "Add":
            return x[0] + x[1]
        case "Sub":
            return x[0] - x[1]
        case "Mul":
            return x[0] * x[1]
        case "Div":
            return x[0] / x[1]
        case "Pow":
            return x[0] ** x[1]
        case "Sqrt":
            return torch.sqrt(x[0])
        case "Erf":
            return torch.erf(x[0])
        case "MatMul":
            return x[0] @ x[1]
        case "Softmax":
            return torch.softmax(x[0], attributes["axis"])
        case "ReduceMean":
            return x[0].mean(tuple(attributes["axes"]), keepdim=bool(attributes["keepdims"]))
        case "Reshape":
            return x[0].reshape(tuple(x[1].tolist()))
        case "Transpose":
            return x[0].permute(*attributes["perm"])
        case "Split":
            # All splits of these graphs are into three equal parts.
            return x[0].chunk(3, attributes["axis"])
        case "Slice":
            start, end, axis = (int(value) for value in x[1:4])
            return x[0].narrow(axis, start, min(end, x[0].shape[axis]) - start)
        case "Concat":
            return torch.cat(x, attributes["axis"])
        case "Expand":
            return x[0].expand(torch.broadcast_shapes(x[0].shape, tuple(x[1].tolist())))
        case "Shape":
            return torch.tensor(x[0].shape)
        case "Gather":
            return x[0].index_select(attributes["axis"], x[1].reshape(-1)).reshape(x[1].shape) if x[0].dim() == 1 else x[0].index_select(attributes["axis"], x[1])
        case "Conv":
            return torch.nn.functional.conv2d(x[0], x[1], x[2], stride=tuple(attributes["strides"]))
        case _:
            raise NotImplementedError(operator)


@pytest.mark.parametrize("purpose", [["--for", "tokens"], ["--for", "levels", "--levels", "1,3"]])
def test_only_the_adapters_of_an_exported_model_learn(models, tmp_path, purpose):
    path = tmp_path / "model.onnx"
    tec_zoo("export", models["tec"], "--out", path, "--adapters", "keep", *purpose)
    model = Graph(path)
    torch.manual_seed(0)
    size = onnx.load(path).graph.input[0].type.tensor_type.shape.dim[2].dim_value
    images = torch.randn(16, 3, size, size)
    before = {name: tensor.detach().clone() for name, tensor in model.named().items()}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        ours = model(images)
    for name, theirs in zip(model.outputs, session.run(None, {"pixel_values": images.numpy()}), strict=True):
        # Sums of either engine depend on the processor, and values reach 4: a hundred-thousandth of the largest.
        np.testing.assert_allclose(ours[name].numpy(), theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))

    names = [name for name in before if name.startswith(PREFIX)]
    assert len(names) >= 8 and len(names) < len(before)
    for name, tensor in model.named().items():
        tensor.requires_grad_(name.startswith(PREFIX))
    # A task the frozen features do not solve: the side of the image that is brighter, from a fixed direction of Z_e.
    halves = images.mean(1)
    labels = (halves[:, :, : size // 2].mean((1, 2)) > halves[:, :, size // 2 :].mean((1, 2))).float()
    direction = torch.randn(ours["adapted"].shape[1 if "level0" in model.outputs else -1])

    def loss():
        adapted = model(images)["adapted"]
        pooled = adapted.mean((2, 3)) if adapted.dim() == 4 else adapted.mean(1)
        return torch.nn.functional.binary_cross_entropy_with_logits(pooled @ direction, labels)

    optimizer = torch.optim.AdamW([t for n, t in model.named().items() if n.startswith(PREFIX)], lr=1e-2)
    first = loss().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    last = loss().item()
    assert last < 0.5 * first, f"{first} -> {last}"
    for name, tensor in model.named().items():
        same = torch.equal(tensor.detach(), before[name])
        assert same != name.startswith(PREFIX), f"{name} {'stayed' if same else 'moved'}"
