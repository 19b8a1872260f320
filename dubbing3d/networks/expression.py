"""Stage 1: expression coefficients from speech and drawn mouths (paper 4, sec. 3.2)."""

import torch
from torch import Tensor, nn

from common.attention import LocalCrossModalAttention
from dubbing3d.networks.blocks import scaled

MFCC_FRAMES, MFCC_ROWS = 28, 12
"""What one video frame hears: 0.28 s of 12 cepstral coefficients."""
_SMALLEST_IMAGE = 32


class ExpressionNet(nn.Module):
    """Encoders of speech and of semantic images, local cross-modal attention, BiLSTM, linear (eqs. 3 to 10).

    Speech goes through Yi et al.'s five convolutions, images through VGG-M; both see one video frame at a time. At the
    defaults with 64 expressions it has 12.5 M parameters and takes 14.3 GMAC for 16 frames (table 7).

    Args:
        expressions: m, as many as the face model has.
        width: multiplier of all inner widths.
        image_size: side of the semantic images, at least 32; Wav2Lip draws 96.
        k: half window of the attention.
        attention: False feeds the concatenation of both features to the BiLSTM (table 3, no cross-modal attention).
        semantic: False goes without images (table 3). Attention then is over the neighbouring frames' speech, and
            without attention either, speech goes to the BiLSTM as it is (the base model).
        audio_residual: append the speech feature to the attended one, which by eq. 7 carries visual values only.
    """

    def __init__(
        self,
        *,
        expressions: int,
        width: float = 1.0,
        image_size: int = 96,
        k: int = 2,
        attention: bool = True,
        semantic: bool = True,
        audio_residual: bool = False,
    ) -> None:
        super().__init__()
        if expressions < 1 or not width > 0:
            raise ValueError(f"expressions and width must be positive, got {expressions} and {width}")
        if image_size < _SMALLEST_IMAGE:
            raise ValueError(f"semantic images need at least {_SMALLEST_IMAGE} px, got {image_size}")
        heard, seen, dim = scaled(512, width), scaled(256, width), scaled(512, width)
        self.expressions, self.image_size, self.semantic = expressions, image_size, semantic
        self.audio = _AudioEncoder(heard, width)
        self.visual = _VisualEncoder(seen, width) if semantic else None
        values = seen if semantic else heard
        self.attention = LocalCrossModalAttention(heard, values, dim, k=k) if attention else None
        self.audio_residual = audio_residual and attention
        extra = (heard if self.audio_residual else 0) if attention else (seen if semantic else 0)
        joined = (dim if attention else heard) + extra
        hidden = scaled(128, width)
        self.temporal = nn.LSTM(joined, hidden, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, expressions)

    def forward(self, mfcc: Tensor, images: Tensor | None = None) -> Tensor:
        """Coefficients (B, T, m) of cepstra (B, T, 28, 12) and, unless `semantic` is off, images (B, T, 3, S, S).

        Raises:
            ValueError: images are missing or of another shape.
        """
        heard = self.encode_audio(mfcc)
        if not self.semantic:
            return self.predict(heard)
        if images is None:
            raise ValueError("this network was built with semantic images and got none")
        return self.predict(heard, self.encode_images(images))

    def encode_audio(self, mfcc: Tensor) -> Tensor:
        """(B, T, 28, 12) -> (B, T, d_a), frame by frame: long clips may come in pieces."""
        if mfcc.dim() != 4 or mfcc.shape[2:] != (MFCC_FRAMES, MFCC_ROWS):
            raise ValueError(f"expected cepstra (B, T, {MFCC_FRAMES}, {MFCC_ROWS}), got {tuple(mfcc.shape)}")
        return self.audio(mfcc.flatten(0, 1)[:, None]).unflatten(0, mfcc.shape[:2])

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, T, 3, S, S) in [-1, 1] -> (B, T, d_v), frame by frame."""
        if self.visual is None:
            raise ValueError("this network was built without semantic images")
        side = self.image_size
        if images.dim() != 5 or images.shape[2:] != (3, side, side):
            raise ValueError(f"expected images (B, T, 3, {side}, {side}), got {tuple(images.shape)}")
        return self.visual(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def predict(self, heard: Tensor, seen: Tensor | None = None) -> Tensor:
        """Coefficients (B, T, m) of whole sequences of features."""
        values = heard if seen is None else seen
        if self.attention is not None:
            joined = self.attention(heard, values)
            if self.audio_residual:
                joined = torch.cat([joined, heard], dim=-1)
        else:
            joined = heard if seen is None else torch.cat([heard, seen], dim=-1)
        return self.head(self.temporal(joined)[0])


class _AudioEncoder(nn.Module):
    """(N, 1, 28, 12) -> (N, features)."""

    def __init__(self, features: int, width: float) -> None:
        super().__init__()
        a, b, c, d = (scaled(channels, width) for channels in (64, 128, 256, 512))
        self.layers = nn.Sequential(
            *_conv(1, a, 3, padding=1),
            *_conv(a, b, 3, padding=1),
            nn.MaxPool2d(3, (1, 2)),
            *_conv(b, c, 3, padding=1),
            *_conv(c, c, 3, padding=1),
            *_conv(c, d, 3, padding=1),
            nn.MaxPool2d(3, 2),
            nn.Flatten(),
            nn.Linear(d * 24, features),  # maps of 12x2
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _VisualEncoder(nn.Module):
    """(N, 3, S, S) -> (N, features)."""

    def __init__(self, features: int, width: float) -> None:
        super().__init__()
        a, b = scaled(96, width), scaled(256, width)
        self.layers = nn.Sequential(
            *_conv(3, a, 7, padding=1),
            nn.MaxPool2d(3, 2),
            *_conv(a, b, 5, stride=2, padding=1),
            nn.MaxPool2d(3, 2),
            *_conv(b, b, 3, padding=1),
            *_conv(b, b, 3, padding=1),
            *_conv(b, b, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(b, features),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int) -> tuple[nn.Module, ...]:
    """Convolution, batch norm, ReLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    return layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
