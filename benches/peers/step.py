"""Our training step beside TEC's method in current PyTorch: images a second, and their ratio.

    cargo bench --bench step --no-run
    python benches/peers/step.py [--models ti,s] [--precisions f32,bf16] [--rounds 12] [--threads 2]
    python benches/peers/step.py --device cuda        # ViT-B, batch 256, bf16
    python benches/peers/step.py --check fixtures/reference/tec_full.safetensors

Needs tests/interop/requirements.txt. PyTorch gets what it has: scaled_dot_product_attention wherever the attention map
is not needed, the frozen base without gradients and with only the logits the method reads, fused AdamW, and torch.compile
of the whole step beside the eager one; bf16 is autocast with f32 weights. Everything takes turns, step by step, so that a
machine that slows down slows all of them, and what is compared is the median of the rounds' ratios. One large product in PyTorch takes turns
too: a step's products at its rate would be the limit. `--check` runs
PyTorch's side on the reference data and compares its losses, so that what is timed is the method.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

import safetensors
import torch
import torch.nn.functional as F
from torch import nn

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The bench's program, where it should not be built and found by cargo.
STEP = [os.environ["TEC_ZOO_STEP"]] if "TEC_ZOO_STEP" in os.environ else ["cargo", "bench", "--quiet", "--bench", "step", "--"]

# width, heads, decoder width (two thirds, as ViT-B's 512), batch on a CPU
MODELS = {"ti": (192, 3, 128, 16), "s": (384, 6, 256, 8), "b": (768, 12, 512, 8)}


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def project(self, x):
        b, t, c = x.shape
        return self.qkv(x).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)

    def mix(self, q, k, v):
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))

    def forward(self, x):
        return self.mix(*self.project(x))


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width, patch):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Vit(nn.Module):
    def __init__(self, image, patch, width, depth, heads):
        super().__init__()
        tokens = (image // patch) ** 2
        self.patch_embed = PatchEmbed(width, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + tokens, width) * 0.02, requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)


class Base(Vit):
    """The frozen model: the mean of its last blocks' outputs, and the last one's logits of chosen rows."""

    @torch.no_grad()
    def targets(self, images, last, top_k):
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat([cls, x], 1)
        feature = 0
        for i, block in enumerate(self.blocks):
            if i + 1 == len(self.blocks):
                q, k, v = block.attn.project(block.norm1(x))
                x = x + block.attn.mix(q, k, v)
                x = x + block.mlp(block.norm2(x))
            else:
                x = block(x)
            if i + last >= len(self.blocks):
                feature = feature + x[:, 1:] / last
        keys = k[:, :, 1:].transpose(2, 3) * q.shape[-1] ** -0.5
        cls_logits = q[:, :, :1] @ keys  # (B, H, 1, L)
        picked = cls_logits.mean(1).squeeze(1).topk(top_k).indices  # (B, k)
        rows = picked[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[-1])
        logits = torch.cat([cls_logits, q[:, :, 1:].gather(2, rows) @ keys], 2)
        return feature, logits.transpose(1, 2), picked


class EncoderAdaptor(nn.Module):
    def __init__(self, width, depth, hidden):
        super().__init__()
        groups = depth // 3
        self.adap_before = nn.LayerNorm(depth * width)
        self.fuse_fcs = nn.ModuleList(nn.Linear(3 * width, width) for _ in range(groups))
        self.adap_mlps = nn.ModuleList(Mlp(width, hidden) for _ in range(groups))
        self.adap_after = nn.LayerNorm(width)

    def forward(self, x):
        total = 0
        for part, fuse, mlp in zip(self.adap_before(x).chunk(len(self.fuse_fcs), -1), self.fuse_fcs, self.adap_mlps, strict=True):
            fused = fuse(part)
            total = total + fused + mlp(fused)
        return self.adap_after(total)


class Side(nn.Module):
    """What one target has for itself around the shared decoder."""

    def __init__(self, width, decoder, head, out):
        super().__init__()
        self.decoder_embed = nn.Linear(width, decoder)
        self.mask_token = nn.Parameter(torch.randn(1, 1, decoder) * 0.02)
        self.decoder_norm = nn.LayerNorm(decoder, eps=1e-6)
        self.head = head
        self.add_module(head, nn.Linear(decoder, out))

    def forward(self, z, restore, positions, blocks):
        z = self.decoder_embed(z)
        hidden = restore.shape[1] + 1 - z.shape[1]
        x = torch.cat([z[:, 1:], self.mask_token.to(z.dtype).expand(z.shape[0], hidden, -1)], 1)
        x = x.gather(1, restore[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([z[:, :1], x], 1) + positions
        for block in blocks:
            x = block(x)
        return getattr(self, self.head)(self.decoder_norm(x))


class Student(Vit):
    def __init__(self, image, patch, width, depth, heads, decoder, decoder_heads, base_width):
        super().__init__(image, patch, width, depth, heads)
        self.heads, self.base_width = heads, base_width
        self.cls_token_mlp = Mlp(width, 4 * width)
        self.encoder_adaptor = EncoderAdaptor(width, depth, 4 * decoder)
        self.decoder_pos_embed = nn.Parameter(torch.randn(1, self.pos_embed.shape[1], decoder) * 0.02, requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(decoder, decoder_heads) for _ in range(2))
        self.forward_fea_decoder = Side(width, decoder, "decoder_pred", base_width)
        self.forward_att_decoder = Side(width, decoder, "decoder_qk", 2 * base_width)

    def forward(self, images, noise, ratio, picked):
        order = noise.argsort(1)
        restore = order.argsort(1)
        keep = order[:, : int(order.shape[1] * (1 - ratio))]
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        x = x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[2]))
        cls = self.cls_token_mlp(self.cls_token) + self.pos_embed[:, :1]
        x = torch.cat([cls.expand(x.shape[0], -1, -1), x], 1)
        levels = []
        for block in self.blocks:
            x = block(x)
            levels.append(x)
        levels[-1] = self.norm(x)
        z = self.encoder_adaptor(torch.cat(levels, -1))
        feature = self.forward_fea_decoder(z, restore, self.decoder_pos_embed, self.decoder_blocks)[:, 1:]
        qk = self.forward_att_decoder(z, restore, self.decoder_pos_embed, self.decoder_blocks)
        b, t, _ = qk.shape
        q, k = qk.view(b, t, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        rows = F.pad(picked + 1, (1, 0))[:, None, :, None].expand(-1, self.heads, -1, q.shape[-1])
        logits = q.gather(2, rows) @ k[:, :, 1:].transpose(2, 3) * self.base_width**-0.5
        return feature, logits.transpose(1, 2), (restore >= keep.shape[1]).float()


def losses(feature, logits, masked, target, target_logits, tau):
    target, feature = target.float(), feature.float()
    target = (target - target.mean(1, keepdim=True)) / (target.var(1, keepdim=True) + 1e-6).sqrt()
    feature_loss = (((feature - target) ** 2).mean(-1) * masked).sum() / masked.sum()
    wanted = (target_logits.float() / tau).softmax(-1)
    return feature_loss, -(wanted * logits.float().log_softmax(-1)).sum(-1).mean()


class Training:
    def __init__(self, base, student, device, bf16, top_k, tau, ratio=0.75, lr=1e-3, compiled=False):
        self.base, self.student = base.to(device), student.to(device)
        self.device, self.bf16, self.top_k, self.tau, self.ratio = device, bf16, top_k, tau, ratio
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [{"params": [p for p in parameters if p.ndim > 1]}, {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}],
            lr=lr, betas=(0.9, 0.95), weight_decay=0.05, fused=True,
        )
        self.loss = torch.compile(self.forward) if compiled else self.forward

    def forward(self, images, noise):
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16):
            target, target_logits, picked = self.base.targets(images, 2, self.top_k)
            feature, logits, masked = self.student(images, noise, self.ratio, picked)
        return losses(feature, logits, masked, target, target_logits, self.tau)

    def step(self, images, noise):
        feature, attention = self.loss(images, noise)
        (feature + attention).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return feature, attention


def check(path):
    """The losses of every step of the reference, to 1e-5."""
    with safetensors.safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["reference"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    image, patch = facts["img"], facts["patch"]
    base = Base(image, patch, facts["base_dim"], facts["base_depth"], facts["base_heads"])
    student = Student(image, patch, facts["dim"], facts["depth"], facts["heads"], facts["decoder_dim"], facts["decoder_heads"], facts["base_dim"])
    base.load_state_dict({n.removeprefix("base."): t for n, t in tensors.items() if n.removeprefix("base.") in base.state_dict()})
    student.load_state_dict({n.removeprefix("student."): t for n, t in tensors.items() if n.startswith("student.")})
    training = Training(base, student, "cpu", False, facts["top_k"], facts["tau"], facts["mask_ratio"], facts["lr"])
    worst = 0.0
    for step, known in enumerate(facts["history"]):
        found = training.step(tensors["images"], tensors[f"step{step}.noise"])
        for mine, name in zip(found, ("loss_fea", "loss_att"), strict=True):
            worst = max(worst, abs(mine.item() / known[name] - 1))
    print(f"losses of {len(facts['history'])} steps differ from the reference by {worst:.1e} at most")
    return worst < 1e-5


class Ours:
    """The step bench as a server: one line in, one step's seconds out."""

    def __init__(self, model, batch, precision, device, threads):
        command = [*STEP, "--serve", model, str(batch), precision, device]
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline().strip() != "ready":
            sys.exit("the step bench did not start")

    def step(self):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def peer(model, batch, precision, device, compiled):
    width, heads, decoder, _ = MODELS[model]
    torch.manual_seed(0)
    shape = (224, 16, width, 12, heads)
    training = Training(Base(*shape), Student(*shape, decoder, 16, width), device, precision == "bf16", 15, 1.8, compiled=compiled)
    images = torch.randn(batch, 3, 224, 224, device=device)

    def step():
        noise = torch.rand(batch, 196, device=device)
        start = time.perf_counter()
        training.step(images, noise)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return step


def product(precision, device):
    """One large product, for what the processor can do: seconds a floating-point operation."""
    side = 2048 if device == "cpu" else 8192
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def run():
        start = time.perf_counter()
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / (2 * side**3)

    return run


def operations(model, device):
    """Floating-point operations of the products of a step, for one image."""
    from torch.utils.flop_counter import FlopCounterMode

    step = peer(model, 1, "f32", device, False)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def peak(pid):
    """MiB of a process's largest resident set."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def memory(model, batch, precision, options):
    """Peak resident memory, each runner in a process of its own."""
    ours = Ours(model, batch, precision, options.device, options.threads)
    for _ in range(3):
        ours.step()
    print(f"\nViT-{model.upper()}, batch {batch}, {precision}: peak resident MiB after 3 steps")
    print(f"  tec-zoo           {peak(ours.process.pid):8.0f}", flush=True)
    for compiled in (False, True):
        if (child := os.fork()) == 0:
            torch.set_num_threads(options.threads)
            step = peer(model, batch, precision, options.device, compiled)
            for _ in range(3):
                step()
            print(f"  PyTorch {'compiled' if compiled else 'eager':9} {peak(os.getpid()):8.0f}", flush=True)
            os._exit(0)
        os.waitpid(child, 0)


def compare(model, batch, precision, options):
    runners = {}
    if not options.peers_only:
        runners["tec-zoo"] = Ours(model, batch, precision, options.device, options.threads).step
    runners["PyTorch eager"] = peer(model, batch, precision, options.device, False)
    runners["PyTorch compiled"] = peer(model, batch, precision, options.device, True)
    runners["one product"] = product(precision, options.device)
    for runner in runners.values():
        for _ in range(3):
            runner()
    seconds = {name: [] for name in runners}
    for _ in range(options.rounds):
        for name in random.sample(list(runners), len(runners)):
            # Idle threads of the one before spin for a while, on the cores the next one needs.
            time.sleep(0.3 if options.device == "cpu" else 0.0)
            seconds[name].append(runners[name]())
    print(f"\nViT-{model.upper()}, batch {batch}, {precision}, {options.device}")
    rate, work = 1 / statistics.median(seconds.pop("one product")), operations(model, options.device)
    print(f"  a large product: {rate / 1e9:.0f} GFLOP/s; products of a step: {work / 1e9:.1f} GFLOP an image; limit {rate / work:.2f} images/s")
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["PyTorch compiled"], values, strict=True))
        best, median = batch / min(values), batch / statistics.median(values)
        print(f"  {name:17} {median:9.2f} images/s   best {best:9.2f}   {ratio:5.2f} × PyTorch compiled", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", metavar="REFERENCE")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--models")
    parser.add_argument("--precisions")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="peak memory on the CPU instead of speed")
    parser.add_argument("--peers-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.check:
        sys.exit(not check(options.check))
    on_cpu = options.device == "cpu"
    for model in (options.models or ("ti,s" if on_cpu else "b")).split(","):
        for precision in (options.precisions or ("f32,bf16" if on_cpu else "bf16")).split(","):
            measure = memory if options.memory else compare
            measure(model, options.batch or (MODELS[model][3] if on_cpu else 256), precision, options)


if __name__ == "__main__":
    main()
