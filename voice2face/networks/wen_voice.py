"""The voice network of Wen et al., "Reconstructing faces from voices" (2019): convolutions over time only."""

from itertools import pairwise

from torch import Tensor, nn

from common.errors import UserError


class WenVoiceEncoder(nn.Module):
    """Five strided convolutions over the frames, their last outputs averaged.

    64 bands -> 256 -> 384 -> 576 -> 864 (kernel 3, stride 2, batch norm, ReLU) -> embedding. It was made for the 64
    log-mel bands of `LogMel.wen`, normalised per band.

    Args:
        in_channels: channels of the feature; they are stacked over the bands.
        embedding_dim: width of the output; 64 in the published weights.
        bands: bands of the feature.
        width: channels of the first layer; each further one has half as many more.

    `config` holds the arguments, as plain values.

    Shape: (B, in_channels, bands, T) -> (B, embedding_dim), not normalised; any T.
    """

    def __init__(self, *, in_channels: int = 1, embedding_dim: int = 512, bands: int = 64, width: int = 256) -> None:
        super().__init__()
        if min(in_channels, embedding_dim, bands) < 1 or width < 8 or width % 8:
            raise ValueError(
                "Wen's voice network wants positive in_channels, embedding_dim and bands, and a width divisible by 8; "
                f"got {in_channels}, {embedding_dim}, {bands} and {width}"
            )
        self.in_channels, self.bands = in_channels, bands
        self.config = {"in_channels": in_channels, "embedding_dim": embedding_dim, "bands": bands, "width": width}
        layers: list[nn.Module] = []
        widths = [in_channels * bands] + [width * 3**k // 2**k for k in range(4)]
        for inner, outer in pairwise(widths):
            layers += [nn.Conv1d(inner, outer, 3, 2, 1, bias=False), nn.BatchNorm1d(outer), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Conv1d(widths[-1], embedding_dim, 3, 2, 1))

    def forward(self, features: Tensor) -> Tensor:
        if features.ndim != 4 or features.shape[1:3] != (self.in_channels, self.bands):
            raise UserError(
                f"Wen's voice network was built for features (batch, {self.in_channels}, {self.bands}, frames), got "
                f"{tuple(features.shape)}; set encoder.kwargs.bands to the feature's bands"
            )
        return self.model(features.flatten(1, 2)).mean(dim=2)
