"""Wav2Lip's generator, with paper 3's attention and speech features as switches (M-CSAWav2Lip)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.attention import ChannelAttention, ChannelSpatialAttention, Residual, SpatialAttention
from lipsync.networks.blocks import (
    MEL_ROWS,
    WINDOW,
    RowProjection,
    audio_layers,
    check_shape,
    conv,
    residual,
    scaled,
    transposed,
)

ATTENTION = ("none", "channel", "spatial", "both")
SITES = {"audio_256": 256, "face_32": 32, "face_256": 256}
"""Where attention sits, and the channels there at width 1 (paper 3, section 3.1.2)."""
_AUDIO_SITES = {10: "audio_256"}
_FACE_SITES = {1: "face_32", 4: "face_256"}


class Wav2Lip(nn.Module):
    """Faces whose lower half follows the speech (Prajwal et al., 2020; paper 3, section 3.1).

    The defaults are the official network: 36,298,035 parameters, 352 state tensors under the published names, 3.97
    GMAC a frame. Everything that paper 3 adds lies outside of the published names: attention (`attention.*`), a
    projection (`projection.weight`), and the kernel of `audio_encoder.11`, which grows with the feature rows.

    Args:
        rows: of the speech features: 80 (mel), 39 (MFCC) or 119 (both).
        size: side of the faces in px, a multiple of 32. Another size than 96 changes the kernels of the convolution to
            and from 1x1 (`face_encoder_blocks.6.0`, `face_decoder_blocks.1.0`), nothing else.
        width: factor on all channels.
        attention: "none", "channel", "spatial" or "both" after the speech encoder's and the identity encoder's last
            layers of 256 channels and the identity encoder's of 32; the gated map goes on and into the skip.
        residual: how gates act, see `common.attention.ChannelAttention`.
        reduction: bottleneck of the channel gates.
        projection: map the rows to 80 by a learned matrix, at first [I | 0], before the network for 80 rows.
    """

    def __init__(
        self,
        *,
        rows: int = 80,
        size: int = 96,
        width: float = 1.0,
        attention: str = "none",
        residual: Residual = "identity_init",
        reduction: int = 16,
        projection: bool = False,
    ) -> None:
        super().__init__()
        check_shape(size, width)
        if attention not in ATTENTION:
            raise ValueError(f"attention {attention!r} is not one of {', '.join(ATTENTION)}")
        self.rows, self.size, self.width = rows, size, width
        self.projection = RowProjection(rows) if projection else None
        self.face_encoder_blocks = _encoder(size, width)
        self.audio_encoder = audio_layers(MEL_ROWS if projection else rows, width, (2, 2, 2, 1))
        self.face_decoder_blocks = _decoder(size, width)
        last = scaled(32, width)
        self.output_block = nn.Sequential(
            conv(scaled(64, width) + scaled(16, width), last), nn.Conv2d(last, 3, 1), nn.Sigmoid()
        )
        self.attention = nn.ModuleDict()
        if attention != "none":
            for site, channels in SITES.items():
                self.attention[site] = _gate(attention, scaled(channels, width), reduction, residual)

    def forward(self, audio: Tensor, faces: Tensor) -> Tensor:
        """Feature windows (B,T,1,rows,16) and faces (B,6,T,S,S) -> faces (B,3,T,S,S), or all three without T.

        The six channels are the target frame with its lower half 0 and a reference frame of the same person. All
        images are BGR in [0,1].

        Raises:
            ValueError: shapes that do not fit the network or each other.
        """
        return over_time(self._draw, audio, faces)

    def check(self, audio: Tensor, faces: Tensor) -> None:
        """Raise ValueError where windows (N,1,rows,16) and faces (N,6,S,S) are not what this network takes."""
        if audio.shape[1:] != (1, self.rows, WINDOW) or faces.shape[1:] != (6, self.size, self.size):
            raise ValueError(
                f"expected windows (N, 1, {self.rows}, {WINDOW}) and faces (N, 6, {self.size}, {self.size}), "
                f"got {tuple(audio.shape)} and {tuple(faces.shape)}"
            )

    def _draw(self, audio: Tensor, faces: Tensor) -> Tensor:
        self.check(audio, faces)
        x = self.hear(audio)
        skips = self.look(faces)
        for block in self.face_decoder_blocks:
            x = torch.cat([block(x), skips.pop()], dim=1)
        return self.output_block(x)

    def hear(self, audio: Tensor) -> Tensor:
        """Windows (N,1,rows,16) -> speech embeddings (N,C,1,1)."""
        x = audio if self.projection is None else self.projection(audio)
        for index, layer in enumerate(self.audio_encoder):
            x = self._attend(_AUDIO_SITES.get(index), layer(x))
        return x

    def look(self, faces: Tensor) -> list[Tensor]:
        """Faces (N,6,S,S) -> maps of the identity encoder, from (N,C,S,S) to (N,C,1,1)."""
        maps = [faces]
        for index, block in enumerate(self.face_encoder_blocks):
            maps.append(self._attend(_FACE_SITES.get(index), block(maps[-1])))
        return maps[1:]

    def _attend(self, site: str | None, x: Tensor) -> Tensor:
        return self.attention[site](x) if site is not None and site in self.attention else x


def over_time(draw: Callable[[Tensor, Tensor], Tensor], audio: Tensor, faces: Tensor) -> Tensor:
    """Draw (B,T,1,rows,16) and (B,6,T,S,S) as B T single frames, all of frame 0 first; (B,3,T,S,S). 4-D goes as it is.

    Raises:
        ValueError: windows and faces of different counts.
    """
    counts = faces.shape[:1] if faces.dim() == 4 else faces.shape[:1] + faces.shape[2:3]
    if audio.dim() != faces.dim() or audio.shape[: len(counts)] != counts:
        raise ValueError(f"windows {tuple(audio.shape)} and faces {tuple(faces.shape)} are not of the same frames")
    if faces.dim() == 4:
        return draw(audio, faces)
    drawn = draw(audio.transpose(0, 1).flatten(0, 1), faces.permute(2, 0, 1, 3, 4).flatten(0, 1))
    return drawn.unflatten(0, (faces.shape[2], faces.shape[0])).permute(1, 2, 0, 3, 4)


def _gate(mode: str, channels: int, reduction: int, residual: Residual) -> nn.Module:
    if mode == "channel":
        return ChannelAttention(channels, reduction=reduction, residual=residual)
    if mode == "spatial":
        return SpatialAttention(residual=residual)
    return ChannelSpatialAttention(channels, reduction=reduction, residual=residual)


def _encoder(size: int, width: float) -> nn.ModuleList:
    """Seven blocks: S, S/2, S/4, S/8, S/16, S/32, 1."""
    channels = [scaled(c, width) for c in (16, 32, 64, 128, 256, 512)]
    blocks = [nn.Sequential(conv(6, channels[0], 7, padding=3))]
    for inputs, outputs, count in zip(channels, channels[1:], (2, 3, 2, 2, 1), strict=False):
        blocks.append(nn.Sequential(conv(inputs, outputs, 3, 2), *(residual(outputs) for _ in range(count))))
    top = channels[-1]
    blocks.append(nn.Sequential(conv(top, top, size // 32, padding=0), conv(top, top, 1, padding=0)))
    return nn.ModuleList(blocks)


def _decoder(size: int, width: float) -> nn.ModuleList:
    """Seven blocks, each of which takes the one before joined with the encoder's map of its size."""
    skips = [scaled(c, width) for c in (512, 512, 256, 128, 64, 32)]
    outputs = [scaled(c, width) for c in (512, 512, 384, 256, 128, 64)]
    top = scaled(512, width)
    blocks = [nn.Sequential(conv(top, top, 1, padding=0))]
    before, counts = top, (1, 2, 2, 2, 2, 2)
    for index, (skip, output, count) in enumerate(zip(skips, outputs, counts, strict=True)):
        grow = transposed(before + skip, output, size // 32, 1, 0) if index == 0 else transposed(before + skip, output)
        blocks.append(nn.Sequential(grow, *(residual(output) for _ in range(count))))
        before = output
    return nn.ModuleList(blocks)
