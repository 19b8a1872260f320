"""StyleGAN2's phases, each beside its floor: `python -m benchmarks.stylegan2`.

The floor of a phase is the time that its multiply-accumulates take at the rate of plain 3x3 convolutions, measured in
the same run on the same machine: what a phase takes above it is resampling, activations, copies and small layers.
On CPU: 64 px, channel base 16384, batch 4, two threads, float32, the size for which other implementations' times are
known. With a GPU also 64 px in batches of 32 and 256 px in batches of 16, channel base 32768, float32 and bfloat16.
"""

import resource
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.timing import interleaved_medians, machine
from common.losses import discriminator_logistic, generator_logistic, path_length_penalty, r1_penalty
from voice2face.networks.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator

PEER_SECONDS = {"generator forward": 0.41, "main G+D": 4.8, "R1": 2.46, "path length": 1.55}
"""NVIDIA's ADA code with its reference operators, two threads of a like machine, for the CPU case only."""
PROBES = ((512, 16), (512, 32), (256, 64))
"""Channels and size of the convolutions whose median rate makes the floor."""
R1_EVERY, PATH_EVERY = 16, 4


@dataclass(frozen=True)
class Case:
    """One size to measure."""

    resolution: int
    batch: int
    base: int
    device: str = "cpu"
    half: bool = False

    def __str__(self) -> str:
        kind = "bfloat16 (4 top resolutions)" if self.half else "float32"
        return f"{self.resolution} px, batch {self.batch}, channel base {self.base}, {kind}, {self.device}"


class Phases:
    """The networks of a case and the phases of a training step on them."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        sizes = {"channel_base": case.base, "num_fp16_res": 4 if case.half else 0}
        self.generator = StyleGAN2Generator(case.resolution, **sizes).to(case.device).train()
        self.discriminator = StyleGAN2Discriminator(case.resolution, **sizes).to(case.device).train()
        self.z = torch.randn(case.batch, 512, device=case.device)
        self.real = torch.rand(case.batch, 3, case.resolution, case.resolution, device=case.device) * 2 - 1
        self.mean = torch.zeros((), device=case.device)
        nets = (self.generator, self.discriminator)
        self.optimizers = [torch.optim.Adam(net.parameters(), lr=1e-6, betas=(0.0, 0.99), fused=True) for net in nets]

    def functions(self) -> dict[str, Callable[[], None]]:
        return {
            "generator forward": self.forward,
            "main G": self.generator_step,
            "main D": self.discriminator_step,
            "R1": self.r1,
            "path length": self.path_length,
            "Adam, both": self.adam,
        }

    @torch.no_grad()
    def forward(self) -> None:
        self.generator(self.z)

    def train_only(self, generator: bool) -> None:
        self.generator.requires_grad_(generator)
        self.discriminator.requires_grad_(not generator)

    def generator_step(self) -> None:
        self.train_only(generator=True)
        self.backward(generator_logistic(self.discriminator(self.generator(self.z))))

    def discriminator_step(self) -> None:
        self.train_only(generator=False)
        fake = self.generator(self.z)
        self.backward(discriminator_logistic(self.discriminator(self.real), self.discriminator(fake)))

    def r1(self) -> None:
        self.train_only(generator=False)
        self.backward(r1_penalty(lambda x: self.discriminator(x, force_fp32=True), self.real))

    def path_length(self) -> None:
        """On half the batch, as StyleGAN2 does."""
        self.train_only(generator=True)
        ws = self.generator.mapping(self.z[: max(1, len(self.z) // 2)])
        penalty, _ = path_length_penalty(lambda w: self.generator.synthesis(w, force_fp32=True), ws, self.mean)
        self.backward(penalty)

    def backward(self, loss: Tensor) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=False)
        loss.backward()

    def adam(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


def probes(case: Case) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Plain convolutions of the case's batch and type, and the multiply-accumulates of each."""
    functions: dict[str, Callable[[], object]] = {}
    work = {}
    dtype = torch.bfloat16 if case.half else torch.float32
    memory = torch.channels_last if case.device == "cpu" or case.half else torch.contiguous_format
    for channels, size in PROBES:
        x = torch.randn(case.batch, channels, size, size, device=case.device, dtype=dtype)
        x = x.contiguous(memory_format=memory)
        weight = torch.randn(channels, channels, 3, 3, device=case.device, dtype=dtype)
        name = f"convolution {channels} at {size} px"
        functions[name] = lambda x=x, weight=weight: F.conv2d(x, weight, padding=1)
        work[name] = float(case.batch * channels**2 * 9 * size**2)
    return functions, work


class FlopCounter(TorchDispatchMode):
    """Sums torch's own flop formulas over all operators; `FlopCounterMode` cannot follow a gradient penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def multiply_accumulates(function: Callable[[], None]) -> float:
    with FlopCounter() as counter:
        function()
    return counter.flops / 2


def peak_memory(case: Case, function: Callable[[], None]) -> float:
    """MiB at the highest: of the GPU's tensors in this call, or of the whole process up to its end."""
    if case.device == "cpu":
        function()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def measure(case: Case) -> None:
    phases = Phases(case)
    functions = phases.functions()
    macs = {name: multiply_accumulates(function) for name, function in functions.items()}
    memory = {name: peak_memory(case, function) for name, function in functions.items()}
    convolutions, work = probes(case)
    repeats, warmup = (5, 1) if case.device == "cpu" else (30, 10)
    times = interleaved_medians({**functions, **convolutions}, repeats, warmup)
    rate = statistics.median(work[name] / times[name][0] for name in work)
    seconds = {name: times[name][0] for name in functions}
    for table in (seconds, macs):
        table["main G+D"] = table["main G"] + table["main D"]
        table["amortised step"] = table["main G+D"] + table["path length"] / PATH_EVERY + table["R1"] / R1_EVERY
    seconds["amortised step with Adam"] = seconds["amortised step"] + seconds["Adam, both"]
    macs["amortised step with Adam"] = macs["amortised step"]
    report(case, rate, seconds, macs, memory)


def report(
    case: Case, rate: float, seconds: dict[str, float], macs: dict[str, float], memory: dict[str, float]
) -> None:
    print(f"\n{case}\n{machine()}")
    print(f"3x3 convolutions run at {rate / 1e9:.0f} GMAC/s; amortised = main + path length / 4 + R1 / 16")
    print(f"{'':26}{'seconds':>10}{'floor':>10}{'ratio':>8}{'GMAC':>10}{'MiB':>8}{'peer s':>9}")
    for name, value in seconds.items():
        floor = macs[name] / rate
        ratio = f"{value / floor:.2f}" if floor else "-"
        peak = f"{memory[name]:.0f}" if name in memory else "-"
        peer = PEER_SECONDS.get(name) if case.device == "cpu" else None
        shown = "-" if peer is None else f"{peer:.2f}"
        print(f"{name:26}{value:10.4f}{floor:10.4f}{ratio:>8}{macs[name] / 1e9:10.1f}{peak:>8}{shown:>9}")


def main() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    measure(Case(64, 4, 16384))
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        print(
            f"\nTF32 convolutions: {torch.backends.cudnn.allow_tf32}; matmul: {torch.backends.cuda.matmul.allow_tf32}"
        )
        for resolution, batch in ((64, 32), (256, 16)):
            for half in (False, True):
                measure(Case(resolution, batch, 32768, "cuda", half))


if __name__ == "__main__":
    main()
