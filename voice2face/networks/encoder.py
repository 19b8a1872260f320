"""Voice encoders: a spectrogram-like feature in, a 512-d embedding out."""

from collections.abc import Callable

from torch import Tensor, nn

from common.attention import SqueezeExcitation

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"mish": nn.Mish, "relu": nn.ReLU}
ATTENTION: dict[str, Callable[[int, int], nn.Module]] = {
    "se": lambda channels, reduction: SqueezeExcitation(channels, reduction),
    "none": lambda channels, reduction: nn.Identity(),
}


class ResidualBlock(nn.Module):
    """ResNet's basic block with attention after bn2, before the addition (paper 2, fig. 4)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        attention: str,
        activation: str,
        reduction: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.attention = ATTENTION[attention](out_channels, reduction)
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
    """ResNet18 over (bands, frames) with squeeze-excitation and Mish (paper 2, section 1.3 and table 3).

    Args:
        in_channels: 1 for log-mel, 3 for MFCC with its two differences.
        embedding_dim: width of the output; 512 in the paper.
        attention: "se" or "none" (table 3, BaseModel-NoSE).
        activation: "mish" or "relu" (table 3, BaseModel-ReLU).
        reduction: squeeze-excitation's r.
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
        width: int = 64,
    ) -> None:
        super().__init__()
        for name, value, table in (
            ("attention", attention, ATTENTION),
            ("activation", activation, ACTIVATIONS),
        ):
            if value not in table:
                raise ValueError(f"unknown {name} {value!r}: one of {', '.join(table)}")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            ACTIVATIONS[activation](),
            nn.MaxPool2d(3, 2, 1),
        )
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(4):
            for index in range(2):
                blocks.append(
                    ResidualBlock(
                        channels,
                        width * 2**stage,
                        stride=2 if stage > 0 and index == 0 else 1,
                        attention=attention,
                        activation=activation,
                        reduction=reduction,
                    )
                )
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(channels, embedding_dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.output(self.blocks(self.stem(features)).mean(dim=(2, 3)))
