"""Voice encoders: a spectrogram-like feature in, a 512-d embedding out."""

from collections.abc import Callable, Collection, Sequence

from torch import Tensor, nn

from common.attention import EfficientMultiScaleAttention, SqueezeExcitation

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"mish": nn.Mish, "relu": nn.ReLU}
ATTENTION: dict[str, Callable[[int, int, int], nn.Module]] = {
    "se": lambda channels, reduction, factor: SqueezeExcitation(channels, reduction),
    "ema": lambda channels, reduction, factor: EfficientMultiScaleAttention(channels, factor),
    "none": lambda channels, reduction, factor: nn.Identity(),
}
PLACEMENTS = {"se": "every", "ema": "last", "none": "every"}
"""Blocks of a stage that get each kind of attention unless told."""


class ResidualBlock(nn.Module):
    """ResNet's basic block with `attention` after bn2, before the addition (paper 2, fig. 4)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        attention: nn.Module,
        activation: str,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.attention = attention
        self.activation = ACTIVATIONS[activation]()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.attention(self.bn2(self.conv2(y)))
        return self.activation(y + self.shortcut(x))


class VoiceEncoder(nn.Module):
    """ResNet18 over (bands, frames): with squeeze-excitation and Mish (paper 2, section 1.3 and table 3), or with
    efficient multi-scale attention (paper 1).

    Args:
        in_channels: 1 for log-mel, 3 for MFCC with its two differences.
        embedding_dim: width of the output; 512 in the paper.
        attention: "se", "ema" (efficient multi-scale attention) or "none" (table 3, BaseModel-NoSE).
        activation: "mish" or "relu" (table 3, BaseModel-ReLU).
        reduction: squeeze-excitation's r.
        factor: groups of "ema"; it must divide the channels of every stage that has it.
        attention_stages: stages, 1 to 4, that have attention.
        attention_blocks: "every" residual block of those stages, or only the "last". None: every for "se", last for
            "ema", where deep and few is the advice of its authors.
        width: channels of the first stage; 64 is ResNet18, quick starts use less.

    Shape: (B, in_channels, F, T) -> (B, embedding_dim), not normalised. F and T are free: features are averaged
    over both before the last layer.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        embedding_dim: int = 512,
        attention: str = "se",
        activation: str = "mish",
        reduction: int = 16,
        factor: int = 8,
        attention_stages: Sequence[int] = (1, 2, 3, 4),
        attention_blocks: str | None = None,
        width: int = 64,
    ) -> None:
        super().__init__()
        _check_choice("attention", attention, ATTENTION)
        _check_choice("activation", activation, ACTIVATIONS)
        placement = PLACEMENTS[attention] if attention_blocks is None else attention_blocks
        _check_choice("attention_blocks", placement, ("every", "last"))
        if not set(attention_stages) <= {1, 2, 3, 4}:
            raise ValueError(f"attention_stages are among 1, 2, 3 and 4, got {list(attention_stages)}")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            ACTIVATIONS[activation](),
            nn.MaxPool2d(3, 2, 1),
        )
        blocks: list[nn.Module] = []
        before = width
        for stage in range(4):
            channels = width * 2**stage
            for index in range(2):
                attends = stage + 1 in attention_stages and (placement == "every" or index == 1)
                blocks.append(
                    ResidualBlock(
                        before,
                        channels,
                        stride=2 if stage > 0 and index == 0 else 1,
                        attention=ATTENTION[attention if attends else "none"](channels, reduction, factor),
                        activation=activation,
                    )
                )
                before = channels
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(before, embedding_dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.output(self.blocks(self.stem(features)).mean(dim=(2, 3)))


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: one of {', '.join(choices)}")
