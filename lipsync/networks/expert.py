"""The sync expert: lips and speech in one space, and its frozen form that judges a generator."""

from torch import Tensor, nn
from torch.nn import functional as F

from lipsync.networks.blocks import (
    MEL_ROWS,
    WINDOW,
    ConvBlock,
    RowProjection,
    audio_layers,
    check_shape,
    conv,
    residual,
    scaled,
)

FRAMES = 5
"""Video frames that the expert sees at once: 0.2 s, as long as a window of speech features."""


class SyncExpert(nn.Module):
    """Embeddings of five lower half faces and of the speech beside them (Prajwal et al., 2020; paper 3, section 3.2.1).

    The defaults are the official network: 16,435,072 parameters, 217 state tensors under the published names. Both
    ends are ReLU, so that cosines of its embeddings lie in [0, 1].

    Args:
        rows: of the speech features: 80 (mel), 39 (MFCC) or 119 (both); changes the kernel of `audio_encoder.12`.
        size: side of the whole faces in px, a multiple of 32; changes the kernel of `face_encoder.15`.
        width: factor on all channels.
        projection: map the rows to 80 by a learned matrix, at first [I | 0], before the network for 80 rows.
    """

    def __init__(self, *, rows: int = 80, size: int = 96, width: float = 1.0, projection: bool = False) -> None:
        super().__init__()
        check_shape(size, width)
        self.rows, self.size, self.width = rows, size, width
        self.projection = RowProjection(rows) if projection else None
        self.face_encoder = _face_layers(size, width)
        self.audio_encoder = audio_layers(MEL_ROWS if projection else rows, width, (2, 2, 2, 2))

    def forward(self, audio: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Speech (B,1,rows,16) and lower halves of five frames (B,15,S/2,S) -> unit embeddings (B,D), (B,D).

        The channels are five BGR images in [0,1] one after the other, see `sync_window`; D is 512 at width 1. The
        two batches may differ in length.

        Raises:
            ValueError: shapes that do not fit the network.
        """
        return self.hear(audio), self.look(frames)

    def hear(self, audio: Tensor) -> Tensor:
        """Speech windows (B,1,rows,16) -> unit embeddings (B,D)."""
        return unit(self.hear_signed(audio))

    def look(self, frames: Tensor) -> Tensor:
        """Lower halves (B,15,S/2,S) -> unit embeddings (B,D)."""
        return unit(self.look_signed(frames))

    def hear_signed(self, audio: Tensor) -> Tensor:
        """Speech windows (B,1,rows,16) -> what the last ReLU gets, (B,D) of either sign; `unit` makes embeddings."""
        _check(audio, (1, self.rows, WINDOW))
        return _signed(self.audio_encoder, audio if self.projection is None else self.projection(audio))

    def look_signed(self, frames: Tensor) -> Tensor:
        """Lower halves (B,15,S/2,S) -> what the last ReLU gets, (B,D) of either sign; `unit` makes embeddings."""
        _check(frames, (3 * FRAMES, self.size // 2, self.size))
        return _signed(self.face_encoder, frames)


class FrozenExpert(nn.Module):
    """A sync expert as a judge: in eval mode whatever `train` is called with, without gradients of its own.

    Gradients flow through it to the frames. The published training code leaves the expert in training mode, where it
    judges by batch statistics and its running ones drift; this class is why ours does not.
    """

    def __init__(self, expert: SyncExpert) -> None:
        super().__init__()
        self.expert = expert.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FrozenExpert":
        super().train(mode)
        self.expert.eval()
        return self

    def forward(self, audio: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Speech (B,1,rows,16) and whole faces (B,3,5,S,S) in BGR [0,1] -> unit embeddings (B,D), (B,D)."""
        return self.expert(audio, sync_window(faces))


def unit(signed: Tensor) -> Tensor:
    """What the last ReLU gets (B,D) -> unit embeddings (B,D) without negatives."""
    return F.normalize(signed.relu(), dim=1)


def _signed(encoder: nn.Sequential, x: Tensor) -> Tensor:
    """Output (B,D) of an encoder without its last activation."""
    last = encoder[-1]
    assert isinstance(last, ConvBlock)
    return last.conv_block(encoder[:-1](x)).flatten(1)


def sync_window(faces: Tensor) -> Tensor:
    """Lower halves of five whole faces as channels: (B,3,5,S,S) -> (B,15,S/2,S), frame by frame."""
    if faces.dim() != 5 or faces.shape[1:3] != (3, FRAMES):
        raise ValueError(f"expected faces (B, 3, {FRAMES}, S, S), got {tuple(faces.shape)}")
    return faces[..., faces.shape[-2] // 2 :, :].transpose(1, 2).flatten(1, 2)


def _face_layers(size: int, width: float) -> nn.Sequential:
    """(N, 15, S/2, S) -> (N, C, 1, 1) through maps of about S/2, S/4, S/8, S/16, S/32."""
    a, b, c, d, e = (scaled(channels, width) for channels in (32, 64, 128, 256, 512))
    return nn.Sequential(
        conv(3 * FRAMES, a, 7, padding=3),
        conv(a, b, 5, (1, 2)), residual(b), residual(b),
        conv(b, c, 3, 2), residual(c), residual(c), residual(c),
        conv(c, d, 3, 2), residual(d), residual(d),
        conv(d, e, 3, 2), residual(e), residual(e),
        conv(e, e, 3, 2), conv(e, e, size // 32, padding=0), conv(e, e, 1, padding=0),
    )  # fmt: skip


def _check(x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"the sync expert expects (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}")
