"""Sync scoring and SyncNet training: `python -m benchmarks.sync`.

The 31 shifts at once beside syncnet_python's loop over windows; lips of a sequence beside its windows one by one, as
published; both networks, a clip of 3 s; and a training step of the narrow one.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import interleaved_medians, print_table
from common.audio.psf import psf_mfcc
from common.metrics.lse import official_curve, shift_distances
from common.syncnet import SyncNet, embed_frames, embed_wave
from common.syncnet_train import infonce_loss, squared_distances

FRAMES = 75


def loop_curve(lips: Tensor, sounds: Tensor) -> Tensor:
    """The mean distances as syncnet_python computes them."""
    padded = F.pad(sounds, (0, 0, 15, 15))
    rows = [F.pairwise_distance(lips[[v]].repeat(31, 1), padded[v : v + 31]) for v in range(len(lips))]
    return torch.stack(rows, 1).mean(1)


def distances(device: str) -> None:
    lips, sounds = torch.randn(2, FRAMES - 5, 1024, device=device)
    assert torch.allclose(official_curve(shift_distances(lips, sounds)), loop_curve(lips, sounds))
    rows = interleaved_medians(
        {
            "31 shifts at once": lambda: official_curve(shift_distances(lips, sounds)),
            "syncnet_python's loop": lambda: loop_curve(lips, sounds),
        }
    )
    print_table(f"distances of {FRAMES - 5} windows on {device}", rows)


@torch.no_grad()
def networks(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    wave = torch.rand(FRAMES * 640, generator=generator) - 0.5
    frames = torch.randint(0, 256, (FRAMES, 224, 224, 3), dtype=torch.uint8, generator=generator).numpy()
    published = SyncNet().eval().to(device)
    narrow = SyncNet(width=0.25, size=64).eval().to(device)
    video = published.prepare(torch.from_numpy(frames[:20]).permute(0, 3, 1, 2)).transpose(0, 1)[None].to(device)
    windows = video[0].unfold(1, 5, 1).permute(1, 0, 4, 2, 3).contiguous()
    rows = interleaved_medians(
        {
            "lips of 20 frames as a sequence": lambda: published.lips(video),
            "lips of their 16 windows, as published": lambda: published.lips(windows),
            f"lips of {FRAMES} frames": lambda: embed_frames(published, frames),
            f"sounds of {FRAMES} frames": lambda: embed_wave(published, wave),
            f"narrow: lips of {FRAMES} frames, resized": lambda: embed_frames(narrow, frames),
            f"narrow: sounds of {FRAMES} frames": lambda: embed_wave(narrow, wave),
            f"cepstra of {FRAMES} frames": lambda: psf_mfcc(wave[None].to(device)),
        },
        repeats=3,
        warmup=1,
    )
    print_table(f"SyncNet on {device}", rows)


def training(device: str) -> None:
    net = SyncNet(width=0.25, size=64).to(device)
    video = torch.rand(16, 3, 20, 64, 64, device=device) * 255
    cepstra = torch.randn(16, 1, 13, 80, device=device)

    def step() -> None:
        net.zero_grad()
        infonce_loss(squared_distances(net.lips(video), net.sounds(cepstra)), 10.0).backward()

    print_table(f"narrow SyncNet, 16 clips of 16 windows on {device}", interleaved_medians({"step": step}, repeats=5))


def main() -> None:
    torch.set_num_threads(2)
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        distances(device)
        networks(device)
        training(device)


if __name__ == "__main__":
    main()
