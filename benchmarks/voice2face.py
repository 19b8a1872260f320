"""Paper 1's generator, the voice encoders, attention beside plain convolutions: `python -m benchmarks voice2face`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import interleaved_medians, machine, print_table
from common.attention import EfficientMultiScaleAttention, SelfAttention2d, SqueezeExcitation
from common.audio.features import MFCC
from voice2face.networks.encoder import VoiceEncoder
from voice2face.networks.progressive import ProgressiveGenerator

AIM_SECONDS = 1.5
"""For one 256 px portrait on two cores."""
CLIP_SECONDS, RATE = 5, 16000
PLAIN = "ResNet18 (no attention, ReLU)"
ENCODERS = {
    PLAIN: ("none", "relu"),
    "SE-ResNet18-Mish (paper 2)": ("se", "mish"),
    "EMA-ResNet18 (paper 1)": ("ema", "relu"),
}
"""Attention and activation of each."""
CLIPS = 8
BLOCKS: dict[str, tuple[tuple[int, int, int], dict[str, Callable[[int], nn.Module]]]] = {
    "encoder, second stage": (
        (128, 20, 100),
        {"squeeze-excitation": SqueezeExcitation, "efficient multi-scale": EfficientMultiScaleAttention},
    ),
    "encoder, last stage": (
        (512, 5, 25),
        {"squeeze-excitation": SqueezeExcitation, "efficient multi-scale": EfficientMultiScaleAttention},
    ),
    "generator, 32 px": ((512, 32, 32), {"self-attention": SelfAttention2d}),
    "generator, 64 px": ((256, 64, 64), {"self-attention": SelfAttention2d}),
}
"""Channels, height and width of a block's input, and the blocks that see it."""


def call(network: nn.Module, *inputs: Tensor) -> Callable[[], object]:
    return torch.no_grad()(lambda: network(*inputs))


def generator(device: str) -> None:
    network = ProgressiveGenerator().to(device).eval()
    latents = {batch: torch.randn(batch, 512, device=device) for batch in (1, 4)}
    times = interleaved_medians({f"batch {batch}": call(network, z) for batch, z in latents.items()}, repeats=7)
    print_table(f"paper 1's generator, 256 px, {device}", times, scale=1, unit="s")
    print(f"batch 1: {times['batch 1'][0]:.2f} s (aim on two cores: under {AIM_SECONDS})")


def encoders(device: str) -> None:
    feature = MFCC(normalize=True).to(device)
    wave = torch.randn(CLIPS, CLIP_SECONDS * RATE, device=device) * 0.1
    networks = {
        name: nn.Sequential(feature, VoiceEncoder(in_channels=3, attention=attention, activation=activation))
        for name, (attention, activation) in ENCODERS.items()
    }
    times = interleaved_medians({name: call(net.to(device).eval(), wave) for name, net in networks.items()}, repeats=7)
    print_table(f"voice encoders with MFCC, {CLIPS} clips of {CLIP_SECONDS} s, {device}", times)
    for name, (median, _) in times.items():
        ratio = median / times[PLAIN][0]
        print(f"{name}: {CLIPS / median:.1f} clips/s, {ratio:.2f} times the plain encoder's time")


def blocks(device: str) -> None:
    for title, (shape, kinds) in BLOCKS.items():
        channels = shape[0]
        x = torch.randn(4, *shape, device=device).contiguous(memory_format=torch.channels_last)
        networks: dict[str, nn.Module] = {"3x3 convolution": nn.Conv2d(channels, channels, 3, padding=1)}
        networks |= {name: kind(channels) for name, kind in kinds.items()}
        times = interleaved_medians({name: call(net.to(device).eval(), x) for name, net in networks.items()}, repeats=9)
        print_table(f"{title}: 4 x {' x '.join(map(str, shape))}, {device}", times)
        for name in kinds:
            print(f"{name}: {times[name][0] / times['3x3 convolution'][0]:.2f} of one 3x3 convolution")


def main() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    print(machine())
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        torch.manual_seed(0)
        generator(device)
        encoders(device)
        blocks(device)
    torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
