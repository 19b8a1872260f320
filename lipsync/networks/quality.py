"""The visual quality discriminator: real or drawn, from the lower half of each face."""

from typing import Literal, get_args

from torch import Tensor, nn

from lipsync.networks.blocks import check_shape, leaky, scaled

Norm = Literal["instance", "none"]


class QualityDiscriminator(nn.Module):
    """Logits of single faces (Prajwal et al., 2020; paper 3, section 3.2.2).

    With `norm="none"` it is the official network, 14,113,793 parameters and 28 state tensors under the published
    names. The paper's instance norm has no parameters, so that both forms have the same names and shapes: what a file
    was trained with has to be known from elsewhere.

    Args:
        size: side of the whole faces in px, a multiple of 32; changes the kernel of `face_encoder_blocks.6.0`.
        width: factor on all channels.
        norm: "instance" after each convolution (the paper) or "none" (official). Maps of one position, which have no
            variance, are never normed.
    """

    def __init__(self, *, size: int = 96, width: float = 1.0, norm: Norm = "instance") -> None:
        super().__init__()
        check_shape(size, width)
        if norm not in get_args(Norm):
            raise ValueError(f"norm {norm!r} is not one of {', '.join(get_args(Norm))}")
        self.size, self.width = size, width
        a, b, c, d, e = (scaled(channels, width) for channels in (32, 64, 128, 256, 512))
        instance = norm == "instance"
        last = instance and size > 32  # maps of S/32
        self.face_encoder_blocks = nn.ModuleList(
            [
                nn.Sequential(leaky(3, a, 7, padding=3, norm=instance)),
                nn.Sequential(leaky(a, b, 5, (1, 2), 2, norm=instance), leaky(b, b, 5, 1, 2, norm=instance)),
                nn.Sequential(leaky(b, c, 5, 2, 2, norm=instance), leaky(c, c, 5, 1, 2, norm=instance)),
                nn.Sequential(leaky(c, d, 5, 2, 2, norm=instance), leaky(d, d, 5, 1, 2, norm=instance)),
                nn.Sequential(leaky(d, e, 3, 2, 1, norm=instance), leaky(e, e, 3, 1, 1, norm=instance)),
                nn.Sequential(leaky(e, e, 3, 2, 1, norm=last), leaky(e, e, 3, 1, 1, norm=last)),
                nn.Sequential(leaky(e, e, size // 32, norm=False), leaky(e, e, 1, norm=False)),
            ]
        )
        self.binary_pred = nn.Sequential(nn.Conv2d(e, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        """Faces (B,3,T,S,S) or (B,3,S,S), BGR in [0,1] -> logits (B T, 1), all of frame 0 first.

        The published network ends in a sigmoid; here the losses take logits.

        Raises:
            ValueError: faces of another size.
        """
        faces = frames.permute(2, 0, 1, 3, 4).flatten(0, 1) if frames.dim() == 5 else frames
        if faces.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"expected faces (B, 3, [T,] {self.size}, {self.size}), got {tuple(frames.shape)}")
        x = faces[:, :, self.size // 2 :]
        for block in self.face_encoder_blocks:
            x = block(x)
        return self.binary_pred(x).flatten(1)
