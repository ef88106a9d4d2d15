"""PyTorch's CPU path on the work that noiseforge is compared on; README.md says what each is.

    python torch_peers.py [--only TEXT]... [--layout L]... [--form F]... [--malloc M]...
                          [--reps N] [--patience SECONDS] [--threads N] [--out FILE]

One JSON line per measurement. Every network and every setting of the allocator is measured in a
process of its own, so that peak memory means something.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from functools import partial

from quiet import measure

BATCH = 32
SHAPES = [(3, 64, 32), (64, 64, 32), (128, 128, 16), (256, 256, 8), (512, 512, 4)]
BLOCKS = [[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3]
SIGMA_FIRST, SIGMA_INNER = 0.2, 0.1
LAYOUTS = ["contiguous", "channels_last"]
MALLOC = ["default", "keep"]

# Freed memory stays in the process instead of going back to the kernel, which saves page faults.
KEEP = {"MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_MMAP_THRESHOLD_": "4294967296"}


def works():
    """What there is to measure: name -> function of layout and form, which makes a call."""
    found = {}
    for shape in SHAPES:
        name = ",".join(map(str, shape))
        for backward in (False, True):
            what = "fwdbwd" if backward else "fwd"
            found[f"w1 {name} {what}"] = partial(conv, shape, backward, noisy=False)
            found[f"w1n {name} {what}"] = partial(conv, shape, backward, noisy=True)
    for what in ("infer", "train"):
        for noisy in (False, True):
            found[f"w2 {what} {'noisy' if noisy else 'plain'}"] = partial(vgg, what, noisy)
    found["w3 cw50"] = cw
    found["noise 2097152 randn"] = randn
    found["noise 2097152 add"] = add_noise
    return found


# The forms in which the same mathematics can be written. The best one is PyTorch's figure.
FORMS = {
    "randn_like": "x + sigma * randn_like(x), which is how everyone writes it",
    "dense": "noise drawn into contiguous memory, viewed in x's layout, x added in place",
    "fused": "dense noise, network compiled by TorchInductor",
    "eager": "no noise, nothing to choose",
    "compiled": "no noise, network compiled by TorchInductor",
}


def forms_of(work):
    if work.startswith("w2"):
        return ["randn_like", "dense", "fused"] if work.endswith("noisy") else ["eager", "compiled"]
    if work.startswith("w1n") or work == "noise 2097152 add":
        return ["randn_like", "dense"]
    return ["eager"]


def layouts_of(work):
    return ["contiguous"] if work == "noise 2097152 randn" else LAYOUTS


def process_of(work):
    """Measurements with one answer share a process."""
    return work if work.startswith(("w2", "w3")) else work.split()[0]


# ---- noise ---------------------------------------------------------------------------------


def noise(form, sigma, x):
    """x + sigma z."""
    import torch

    if form == "randn_like":
        return x + sigma * torch.randn_like(x)
    # A generator fills only memory that is contiguous as written fast; so the tensor is made
    # contiguous in the order of x's memory, and seen in the order of x's indices.
    channels_last = x.dim() == 4 and not x.is_contiguous()
    if channels_last:
        n, c, h, w = x.shape
        z = torch.empty(n, h, w, c).normal_(0, sigma).permute(0, 3, 1, 2)
    else:
        z = torch.empty(x.shape).normal_(0, sigma)
    return z.add_(x)


def randn(layout, form):
    import torch

    return lambda: torch.randn(2097152)


def add_noise(layout, form):
    x = images(64, 32, layout)
    return lambda: noise(form, SIGMA_INNER, x)


# ---- one convolution -----------------------------------------------------------------------


def memory_format(layout):
    import torch

    return torch.channels_last if layout == "channels_last" else torch.contiguous_format


def images(c, size, layout):
    import torch

    return torch.rand(BATCH, c, size, size).to(memory_format=memory_format(layout))


def conv(shape, backward, layout, form, noisy):
    import torch
    import torch.nn.functional as F

    c_in, c_out, size = shape
    x = images(c_in, size, layout)
    w = (torch.randn(c_out, c_in, 3, 3) * 0.05).to(memory_format=memory_format(layout))
    dy = images(c_out, size, layout)
    read = partial(noise, form, SIGMA_INNER) if noisy else lambda x: x
    if not backward:

        def forward():
            with torch.inference_mode():
                F.conv2d(read(x), w, padding=1)

        return forward
    x.requires_grad_()
    w.requires_grad_()
    return lambda: torch.autograd.grad(F.conv2d(read(x), w, padding=1), (x, w), dy)


# ---- VGG16 ---------------------------------------------------------------------------------


def vgg(what, noisy, layout, form):
    import torch
    from torch import nn
    import torch.nn.functional as F

    noise_form = "dense" if form == "fused" else form

    class Noise(nn.Module):
        def __init__(self, sigma):
            super().__init__()
            self.sigma = sigma

        def forward(self, x):
            if form == "fused":  # the compiler draws in its own way, and is to see plain code
                return x + self.sigma * torch.randn_like(x)
            return noise(noise_form, self.sigma, x)

    layers, c_in, sigma = [], 3, SIGMA_FIRST
    for block in BLOCKS:
        for c_out in block:
            if noisy:
                layers.append(Noise(sigma))
                sigma = SIGMA_INNER
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(True)]
            c_in = c_out
        layers.append(nn.MaxPool2d(2))
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(c_in, 10))
    net = net.to(memory_format=memory_format(layout))
    x = images(3, 32, layout)
    labels = torch.arange(BATCH) % 10
    run = torch.compile(net) if form in ("fused", "compiled") else net

    if what == "infer":
        net.eval()

        def infer():
            with torch.inference_mode():
                run(x)

        return infer

    sgd = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)

    def train():
        sgd.zero_grad(set_to_none=True)
        F.cross_entropy(run(x), labels).backward()
        sgd.step()

    return train


# ---- C&W L2 --------------------------------------------------------------------------------


def cw(layout, form):
    """Carlini and Wagner 2017, L2, untargeted, c = 1, kappa = 0, one c, 50 steps of Adam."""
    import torch
    from torch import nn

    def block(c_in, c_out):
        return [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU(True)]

    net = nn.Sequential(
        *block(3, 32), *block(32, 32), nn.MaxPool2d(2),
        *block(32, 64), *block(64, 64), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 8 * 8, 128), nn.ReLU(True), nn.Linear(128, 10),
    )  # fmt: skip
    net = net.to(memory_format=memory_format(layout)).eval().requires_grad_(False)
    x = images(3, 32, layout)
    labels = net(x).argmax(1)
    one_hot = nn.functional.one_hot(labels, 10).bool()

    def attack():
        w = torch.atanh((2 * x - 1) * 0.999999).requires_grad_()
        adam = torch.optim.Adam([w], lr=0.01, fused=True)
        for _ in range(50):
            adversarial = (torch.tanh(w) + 1) / 2
            logits = net(adversarial)
            true = logits[one_hot]
            other = logits.masked_fill(one_hot, -torch.inf).amax(1)
            loss = ((adversarial - x) ** 2).sum() + (true - other).clamp(min=0).sum()
            (w.grad,) = torch.autograd.grad(loss, w)
            adam.step()

    return attack


# ---- measuring -----------------------------------------------------------------------------


def worker(args):
    """Measures, in this process, the works named by --only."""
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    (layout,), (form,), (malloc,) = args.layout, args.form, args.malloc
    for name, make in works().items():
        if name not in args.only:
            continue
        times = measure(make(layout=layout, form=form), args.reps, args.patience, args.threads)
        alone = process_of(name) == name
        line = {
            "peer": "torch" if malloc == "default" else f"torch+{malloc}",
            "work": name,
            "layout": layout,
            "form": form,
            **times,
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024e-3)
            if alone
            else None,
        }
        print(json.dumps(line), flush=True)


def jobs(only, layouts, forms, mallocs):
    """What is to be run: (process, layout, form, malloc) -> names of works."""
    found = {}
    for work in works():
        if only and not any(text in work for text in only):
            continue
        for layout in layouts_of(work):
            for form in forms_of(work):
                for malloc in MALLOC:
                    if layout in layouts and form in forms and malloc in mallocs:
                        job = (process_of(work), layout, form, malloc)
                        found.setdefault(job, []).append(work)
    return found


def run(job, names, reps, patience, threads):
    """Measures these works in a process of their own; returns its JSON lines."""
    _, layout, form, malloc = job
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    for name, value in KEEP.items():
        environment.pop(name, None)
        if malloc == "keep":
            environment[name] = value
    command = [sys.executable, __file__, "--worker", "--layout", layout, "--form", form]
    command += ["--malloc", malloc, "--reps", str(reps), "--threads", str(threads)]
    command += ["--patience", str(patience)]
    command += [word for name in names for word in ("--only", name)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"failed ({done.returncode}): {' '.join(command)}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", action="append", help="works whose name contains this")
    parser.add_argument("--layout", action="append", choices=LAYOUTS)
    parser.add_argument("--form", action="append", choices=list(FORMS))
    parser.add_argument("--malloc", action="append", choices=MALLOC)
    parser.add_argument("--reps", type=int, default=10)
    parser.add_argument("--patience", type=float, default=0, help="seconds a work may wait")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", help="append the lines to this file instead of printing them")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args)

    found = jobs(args.only, args.layout or LAYOUTS, args.form or list(FORMS), args.malloc or MALLOC)
    if not found:
        sys.exit("nothing to measure: no work has this name, layout and form")
    out = open(args.out, "a") if args.out else sys.stdout
    for job, names in found.items():
        out.write(run(job, names, args.reps, args.patience, args.threads))
        out.flush()


if __name__ == "__main__":
    main()
