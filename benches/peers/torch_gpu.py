"""PyTorch on a GPU, on the cases of benches/gpu and on whole steps: one CSV line for each.

    python benches/peers/torch_gpu.py [--seconds N] [--only TEXT]... [--out FILE] [--list]

    case,microseconds,note

A case that benches/gpu has too bears the same name. Cases run in order until the seconds are used
up; what was left out is said on standard error. PyTorch is given its best: channels_last,
cudnn.benchmark, fused optimisers, inputs of random numbers, 16-bit copies of the weights. f32 is f32
(TF32 off); the "tf32" cases allow it. Times are medians by CUDA events over groups of calls.
"""

import argparse
import gc
import sys
import time

import torch
import torch.nn.functional as F

BATCH = 128
SIGMA_FIRST, SIGMA_INNER = 0.2, 0.1
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# c_in, c_out, size: of VGG16 for 32x32 images.
BENCHED = [(3, 64, 32), (64, 64, 32), (128, 128, 16), (256, 256, 8), (512, 512, 4), (512, 512, 2)]
LAYERS = BENCHED + [(64, 128, 16), (128, 256, 8), (256, 512, 4)]
# c_in, c_out, size, kernel, stride, groups: of ResNeXt29 2x64d.
RESNEXT = [(64, 128, 32, 1, 1, 1), (128, 128, 32, 3, 1, 2), (128, 256, 32, 1, 1, 1), (256, 256, 32, 3, 2, 2),
           (256, 512, 32, 1, 2, 1), (256, 256, 16, 3, 1, 2), (512, 512, 8, 3, 1, 2), (512, 1024, 8, 1, 1, 1)]
WIDTHS = [64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool"]
GPU = "cuda"
MOST_ROWS = 1 << 20


def median_us(call, budget=0.08, groups=8):
    """Microseconds of a call: the median of groups of calls that follow each other."""
    call()
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    once = max(time.perf_counter() - start, 1e-6)
    calls = max(1, min(1000, int(budget / groups / once)))
    times = []
    for _ in range(groups if once < budget else 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / calls)
    return sorted(times)[len(times) // 2]


def images(n, c, size, dtype, grad=False):
    x = torch.rand(n, c, size, size, device=GPU, dtype=DTYPES[dtype]) * 2 - 1
    return x.contiguous(memory_format=torch.channels_last).requires_grad_(grad)


def noisy(x, sigma):
    return x + sigma * torch.randn_like(x)


# ---- ops -----------------------------------------------------------------------------------


def conv_case(what, n, c_in, c_out, size, dtype, k=3, stride=1, groups=1):
    pad = k // 2

    def make():
        rows = min(n, MOST_ROWS)
        x = images(rows, c_in, size, dtype)
        w = images(c_out, c_in // groups, k, dtype)
        dy = images(rows, c_out, (size - 1) // stride + 1, dtype)

        def backward(mask):
            return torch.ops.aten.convolution_backward(
                dy, x, w, None, [stride, stride], [pad, pad], [1, 1], False, [0, 0], groups, mask
            )

        return {
            "conv": lambda: F.conv2d(x, w, stride=stride, padding=pad, groups=groups),
            "noise then conv": lambda: F.conv2d(noisy(x, SIGMA_INNER), w, stride=stride, padding=pad, groups=groups),
            "conv input grad": lambda: backward([True, False, False]),
            "conv weight grad": lambda: backward([False, True, False]),
        }[what]

    return make


def pointwise_case(what, dtype):
    def make():
        x = images(min(1024, MOST_ROWS), 64, 32, dtype)
        z = images(min(1024, MOST_ROWS), 64, 32, dtype)
        gamma, beta, mean = (torch.rand(64, device=GPU) for _ in range(3))
        var = torch.rand(64, device=GPU) + 0.5
        y = torch.empty_like(x)
        return {
            "copy": lambda: y.copy_(x),
            "noise": lambda: noisy(x, SIGMA_INNER),
            "randn": lambda: torch.randn_like(x),
            "relu": lambda: F.relu(x),
            "add": lambda: x + z,
            "max pool": lambda: F.max_pool2d(x, 2),
            "bn train": lambda: F.relu_(F.batch_norm(x, mean, var, gamma, beta, True, 0.1)),
            "bn eval": lambda: F.relu_(F.batch_norm(x, mean, var, gamma, beta, False)),
        }[what]

    return make


def bn_backward_case(dtype):
    def make():
        x = images(min(1024, MOST_ROWS), 64, 32, dtype, grad=True)
        dy = images(min(1024, MOST_ROWS), 64, 32, dtype)
        gamma, beta = (torch.rand(64, device=GPU, requires_grad=True) for _ in range(2))
        y = F.relu(F.batch_norm(x, None, None, gamma, beta, True))
        return lambda: torch.autograd.grad(y, (x, gamma, beta), dy, retain_graph=True)

    return make


# ---- networks ------------------------------------------------------------------------------


class Noise(torch.nn.Module):
    def __init__(self, sigma):
        super().__init__()
        self.sigma = sigma

    def forward(self, x):
        return noisy(x, self.sigma)


def vgg16():
    layers, c_in = [], 3
    for width in WIDTHS:
        if width == "pool":
            layers.append(torch.nn.MaxPool2d(2))
            continue
        layers += [
            Noise(SIGMA_FIRST if c_in == 3 else SIGMA_INNER),
            torch.nn.Conv2d(c_in, width, 3, padding=1),
            torch.nn.BatchNorm2d(width),
            torch.nn.ReLU(inplace=True),
        ]
        c_in = width
    net = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(512, 10))
    return net.to(GPU).to(memory_format=torch.channels_last)


class Bottleneck(torch.nn.Module):
    """ResNeXt29's block, noise in front of each convolution."""

    def __init__(self, c_in, c_out, middle, groups, stride):
        super().__init__()

        def stage(a, b, k, relu, stride=1, groups=1):
            layers = [
                Noise(SIGMA_INNER),
                torch.nn.Conv2d(a, b, k, stride, padding=k // 2, groups=groups, bias=False),
                torch.nn.BatchNorm2d(b),
            ]
            return layers + [torch.nn.ReLU(inplace=True)] * relu

        self.main = torch.nn.Sequential(
            *stage(c_in, middle, 1, True), *stage(middle, middle, 3, True, stride, groups), *stage(middle, c_out, 1, False)
        )
        same = stride == 1 and c_in == c_out
        self.shortcut = torch.nn.Identity() if same else torch.nn.Sequential(*stage(c_in, c_out, 1, False, stride))

    def forward(self, x):
        return F.relu(self.main(x) + self.shortcut(x), inplace=True)


def resnext29(groups=2, width=64):
    layers = [Noise(SIGMA_FIRST), torch.nn.Conv2d(3, 64, 1, bias=False), torch.nn.BatchNorm2d(64),
              torch.nn.ReLU(inplace=True)]
    c_in = 64
    for stage in range(3):
        middle = groups * width << stage
        for block in range(3):
            layers.append(Bottleneck(c_in, 2 * middle, middle, groups, 2 if stage and not block else 1))
            c_in = 2 * middle
    pool = torch.nn.AdaptiveAvgPool2d(1)
    net = torch.nn.Sequential(*layers, pool, torch.nn.Flatten(), torch.nn.Linear(c_in, 10))
    return net.to(GPU).to(memory_format=torch.channels_last)


NETWORKS = {"vgg16": vgg16, "resnext29": resnext29}


def network_case(network, what, dtype, batch, compiled=None):
    """Training keeps f32 weights and computes in bf16 by autocast; the rest has bf16 weights."""

    def make():
        n = min(batch, MOST_ROWS)
        torch.manual_seed(0)
        net = NETWORKS[network]()
        training = what in ("training pass", "training step")
        net.train(training)
        if dtype == "bf16" and not training:
            net = net.to(torch.bfloat16)
        run = torch.compile(net, mode=compiled) if compiled else net
        x = images(n, 3, 32, "f32")
        typed = x if training else x.to(DTYPES[dtype])
        labels = torch.randint(0, 10, (n,), device=GPU)
        parameters = list(net.parameters())
        optimiser = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True)

        def loss():
            with torch.autocast(GPU, torch.bfloat16, enabled=dtype == "bf16"):
                return F.cross_entropy(run(x), labels)

        def forward():
            with torch.inference_mode():
                run(typed)

        def training_pass():
            for parameter in parameters:
                parameter.grad = None
            loss().backward()

        def training_step():
            training_pass()
            optimiser.step()

        for parameter in parameters:
            parameter.requires_grad_(training)
        dy = torch.rand(n, 10, device=GPU, dtype=DTYPES[dtype])

        def input_gradient():
            seen = typed.detach().requires_grad_()
            torch.autograd.grad(run(seen), seen, dy)

        def ensemble():
            # Rows repeat an image for each of its draws, as everyone writes it.
            with torch.inference_mode():
                rows = typed.repeat_interleave(50, dim=0).contiguous(memory_format=torch.channels_last)
                run(rows).softmax(1).view(n, 50, 10).mean(1)

        def one_by_one():
            # As the authors' code does it.
            with torch.inference_mode():
                total = torch.zeros(n, 10, device=GPU)
                for _ in range(50):
                    total += run(typed).softmax(1)

        w = torch.atanh(0.999 * (x.clamp(0, 1) * 2 - 1)).detach().requires_grad_()
        adam = torch.optim.Adam([w], lr=1e-3, fused=True)

        def carlini_wagner():
            image = 0.5 * (torch.tanh(w) + 1)
            distance = (image - x).square().sum((1, 2, 3))
            logits = run(image.to(DTYPES[dtype])).float()
            one = F.one_hot(labels, 10).bool()
            true = logits[one]
            other = logits.masked_fill(one, -1e4).amax(1)
            adam.zero_grad(set_to_none=True)
            (distance + 0.1 * (true - other).clamp_min(0)).sum().backward()
            adam.step()

        return {
            "forward": forward,
            "forward and input gradient": input_gradient,
            "training pass": training_pass,
            "training step": training_step,
            "ensemble of 50 draws": ensemble,
            "ensemble of 50 draws in turn": one_by_one,
            "C&W iteration": carlini_wagner,
        }[what]

    return make


# ---- all of them ---------------------------------------------------------------------------


def cases():
    """Name -> (what makes the call, note), the ones that matter most first."""
    found = {}

    def add(name, make, note=""):
        found[name] = (make, note)

    add("copy 256 MiB", pointwise_case("copy", "f32"))

    def network(name, dtype, batch=BATCH):
        suffix = "" if batch == BATCH else f" batch {batch}"
        for what in ["training step", "C&W iteration"]:
            add(f"{name} {what} {dtype}{suffix}", network_case(name, what, dtype, batch), "eager")

    def compiled(name, mode, batch=BATCH):
        suffix = "" if batch == BATCH else f" batch {batch}"
        for what in ["training step", "forward"]:
            make = network_case(name, what, "bf16", batch, mode)
            add(f"{name} {what} bf16{suffix} compiled, {mode}", make, "torch.compile")

    for name in NETWORKS:
        network(name, "bf16")
        ensemble = network_case(name, "ensemble of 50 draws", "bf16", 32)
        add(f"{name} ensemble of 50 draws, 32 images bf16", ensemble, "eager")
        ensemble = network_case(name, "ensemble of 50 draws in turn", "bf16", 1)
        add(f"{name} ensemble of 50 draws, 1 images bf16", ensemble, "eager, in turn")
        for what in ["forward", "forward and input gradient", "training pass"]:
            add(f"{name} {what} bf16", network_case(name, what, "bf16", BATCH), "eager")
    compiled("vgg16", "reduce-overhead")
    compiled("resnext29", "reduce-overhead")
    network("vgg16", "bf16", 1024)

    def layers(batch, suffix, found):
        for c_in, c_out, size, k, stride, groups in found:
            tags = "".join(f" {tag}{value}" for tag, value, usual in [("k", k, 3), ("s", stride, 1), ("g", groups, 1)]
                           if value != usual)
            for what in ["conv", "noise then conv", "conv input grad", "conv weight grad"]:
                make = conv_case(what, batch, c_in, c_out, size, "bf16", k, stride, groups)
                add(f"{what} {c_in}>{c_out} {size}x{size}{tags} bf16{suffix}", make)

    layers(BATCH, "", [(*layer, 3, 1, 1) for layer in BENCHED])
    layers(1024, " batch 1024", [(*layer, 3, 1, 1) for layer in BENCHED[1:]])
    layers(1024, " batch 1024", RESNEXT)
    for dtype in ["bf16", "f32"]:
        note = "x + sigma * randn_like(x)"
        add(f"noise fast {dtype}", pointwise_case("noise", dtype), note)
        add(f"randn {dtype}", pointwise_case("randn", dtype))
        add(f"relu {dtype}", pointwise_case("relu", dtype))
        add(f"add {dtype}", pointwise_case("add", dtype))
        add(f"max pool 2x2 {dtype}", pointwise_case("max pool", dtype))
        add(f"batch norm + relu, train {dtype}", pointwise_case("bn train", dtype))
        add(f"batch norm + relu, eval {dtype}", pointwise_case("bn eval", dtype))
        add(f"batch norm + relu, backward {dtype}", bn_backward_case(dtype))
    network("vgg16", "f32")
    for c_in, c_out, size in BENCHED:
        for what in ["conv", "noise then conv", "conv input grad", "conv weight grad"]:
            make = conv_case(what, BATCH, c_in, c_out, size, "f32")
            add(f"{what} {c_in}>{c_out} {size}x{size} f32", make)
    layers(BATCH, "", [(*layer, 3, 1, 1) for layer in LAYERS[len(BENCHED) :]])
    for c_in, c_out, size in BENCHED[1:4]:
        for what in ["conv", "conv input grad", "conv weight grad"]:
            make = conv_case(what, BATCH, c_in, c_out, size, "f32")
            add(f"{what} {c_in}>{c_out} {size}x{size} tf32", make)
    # Minutes of compiling.
    compiled("vgg16", "max-autotune")
    compiled("resnext29", "max-autotune")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--only", action="append", metavar="TEXT")
    parser.add_argument("--out", metavar="FILE")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="only try whether every case runs, slowly")
    options = parser.parse_args()
    start = time.monotonic()
    chosen = {
        name: case
        for name, case in cases().items()
        if not options.only or any(text in name for text in options.only)
    }
    if options.list:
        print("\n".join(chosen))
        return
    out = open(options.out, "w") if options.out else sys.stdout
    if options.cpu:
        try_on_cpu(chosen)
        return
    if not torch.cuda.is_available():
        sys.exit("torch_gpu: PyTorch sees no GPU")
    torch.backends.cudnn.benchmark = True
    print(f"# {torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}",
          file=sys.stderr)
    print("case,microseconds,note", file=out, flush=True)
    left_out = []
    for name, (make, note) in chosen.items():
        if time.monotonic() - start > options.seconds:
            left_out.append(name)
            continue
        tf32 = "tf32" in name
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        try:
            us = median_us(make())
            print(f'"{name}",{us:.3f},"{note}"', file=out, flush=True)
        except Exception as error:  # one case that fails is no reason to lose the others
            print(f"{name}: {type(error).__name__}: {error}"[:500], file=sys.stderr)
        gc.collect()
    if left_out:
        print(f"no time for {len(left_out)} cases: {', '.join(left_out)}", file=sys.stderr)


def try_on_cpu(chosen):
    """Calls every case once, in small and on the CPU: for machines without a GPU."""
    global GPU, MOST_ROWS
    GPU, MOST_ROWS = "cpu", 2
    for name, (make, _) in chosen.items():
        try:
            make()()
            print(f"{name}: runs")
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}"[:300])


if __name__ == "__main__":
    main()
