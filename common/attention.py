"""Attention blocks that more than one package uses. All keep the shape of their input (B, C, H, W)."""

from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm as normalise_spectrum


class SqueezeExcitation(nn.Module):
    """Channel weights from global average pooling and a two-layer bottleneck (Hu et al.; paper 2, fig. 5).

    Args:
        channels: C of the input, at least `reduction`.
        reduction: bottleneck factor r; paper 2 uses 16.

    Shape: (B, C, H, W) -> the same; each channel is scaled by a weight in (0, 1).
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        if channels < reduction:
            raise ValueError(f"squeeze-excitation needs channels >= reduction, got {channels} < {reduction}")
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.excite(self.squeeze(x.mean(dim=(2, 3))).relu()).sigmoid()
        return x * weights[:, :, None, None]


class EfficientMultiScaleAttention(nn.Module):
    """Spatial weights per channel group from pooled strips and a 3x3 neighbourhood (Ouyang et al., 2023; paper 1).

    The literature calls the block EMA; it has nothing to do with averaged weights. Its parameters are shared by all
    groups. Softmax and pooling are taken over what the block sees, so any H and W will do.

    Args:
        channels: C of the input, a multiple of `factor`.
        factor: number of groups g.

    Shape: (B, C, H, W) -> the same; each position of each group is scaled by a weight in (0, 1).
    """

    def __init__(self, channels: int, factor: int = 8) -> None:
        super().__init__()
        if factor < 1 or channels < factor or channels % factor:
            raise ValueError(
                f"efficient multi-scale attention splits {channels} channels into {factor} groups, which does not go; "
                "choose a factor that divides the channels"
            )
        self.factor = factor
        width = channels // factor
        self.strips = nn.Conv2d(width, width, 1)
        self.norm = nn.GroupNorm(width, width)
        self.neighbourhood = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        groups = x.reshape(batch * self.factor, -1, height, width)
        pooled = torch.cat([groups.mean(dim=3, keepdim=True), groups.mean(dim=2, keepdim=True).mT], dim=2)
        rows, columns = self.strips(pooled).split([height, width], dim=2)
        local = self.norm(groups * rows.sigmoid() * columns.mT.sigmoid())
        wide = self.neighbourhood(groups)
        # Each branch's pooled channels weigh the other branch's maps.
        crossed = _channel_weights(local) @ wide.flatten(2) + _channel_weights(wide) @ local.flatten(2)
        return (groups * crossed.reshape(-1, 1, height, width).sigmoid()).reshape(x.shape)


def _channel_weights(x: Tensor) -> Tensor:
    """Softmax over channels of the spatial mean: (N, C, H, W) -> (N, 1, C)."""
    return x.mean(dim=(2, 3)).softmax(dim=1)[:, None]


class SelfAttention2d(nn.Module):
    """x + gamma * attention(x) over all positions (Zhang et al., "Self-Attention GAN", 2019); gamma starts at 0.

    Fused kernels compute it without the (HW)^2 matrix, but have no second derivative. Where gradients of gradients
    are needed (R1, path length), call it inside `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`: that choice is made
    in the forward pass and holds for every backward pass through it.

    Args:
        channels: C of the input, at least `reduction`.
        reduction: C over the width of queries and keys.
        spectral_norm: divide each 1x1 convolution by its largest singular value, as the paper does.

    Shape: (B, C, H, W) -> the same.
    """

    def __init__(self, channels: int, *, reduction: int = 8, spectral_norm: bool = False) -> None:
        super().__init__()
        if channels < reduction:
            raise ValueError(f"self-attention needs channels >= reduction, got {channels} < {reduction}")

        def project(width: int) -> nn.Module:
            conv = nn.Conv2d(channels, width, 1, bias=False)
            return normalise_spectrum(conv) if spectral_norm else conv

        self.key = project(channels // reduction)
        self.query = project(channels // reduction)
        self.value = project(channels)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            project(x).flatten(2).mT[:, None].contiguous() for project in (self.query, self.key, self.value)
        )
        if x.device.type == "cpu" and torch.backends.cuda.flash_sdp_enabled():
            # The fused CPU kernel wants equal widths; added zeros leave the products as they are.
            missing = (0, value.shape[-1] - key.shape[-1])
            query, key = F.pad(query, missing), F.pad(key, missing)
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return x + self.gamma * attended[:, 0].mT.reshape(x.shape)


Residual = Literal["none", "add", "identity_init"]
"""How a gate M in (0, 1) acts on x: M x as paper 3 prints it, x + M x, or 2 M x with M = 1/2 at first.

The printed form scales features by about a half per gate before it has learned anything, which spoils weights that
were trained without it; `identity_init` starts as the identity and has no more parameters.
"""


class ChannelAttention(nn.Module):
    """Channel weights from global average pooling and two 1x1 convolutions (paper 3, eqs. 4 and 5).

    Args:
        channels: C of the input.
        reduction: bottleneck factor r; the bottleneck has at least 4 channels.
        residual: how the weights act, see `Residual`.

    Shape: (B, C, H, W) -> the same.
    """

    def __init__(self, channels: int, *, reduction: int = 16, residual: Residual = "none") -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)
        self.residual = _start(self.excite, residual)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(2, 3), keepdim=True)
        return x * _factor(self.excite(self.squeeze(pooled).relu()), self.residual)


class SpatialAttention(nn.Module):
    """Weights of positions from the channels' maximum and mean and one convolution (paper 3, eqs. 6 to 9).

    Args:
        kernel: odd side of the convolution; the paper names none.
        residual: how the weights act, see `Residual`.

    Shape: (B, C, H, W) -> the same.
    """

    def __init__(self, *, kernel: int = 7, residual: Residual = "none") -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"spatial attention needs an odd kernel, got {kernel}")
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2)
        self.residual = _start(self.conv, residual)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
        return x * _factor(self.conv(pooled), self.residual)


class ChannelSpatialAttention(nn.Module):
    """Channel attention, then spatial attention of its result (paper 3, fig. 3).

    With `residual="add"` the input is added once, to the result of both.

    Shape: (B, C, H, W) -> the same.
    """

    def __init__(self, channels: int, *, reduction: int = 16, kernel: int = 7, residual: Residual = "none") -> None:
        super().__init__()
        self.adds = residual == "add"
        inner: Residual = "none" if residual == "add" else residual
        self.channel = ChannelAttention(channels, reduction=reduction, residual=inner)
        self.spatial = SpatialAttention(kernel=kernel, residual=inner)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.spatial(self.channel(x))
        return x + attended if self.adds else attended


def _start(last: nn.Conv2d, residual: Residual) -> Residual:
    """Check the form, and zero the gate's last layer where the form wants it."""
    if residual not in get_args(Residual):
        raise ValueError(f"residual {residual!r} is not one of {', '.join(get_args(Residual))}")
    if residual == "identity_init":
        nn.init.zeros_(last.weight)
        nn.init.zeros_(cast(Tensor, last.bias))
    return residual


def _factor(logits: Tensor, residual: Residual) -> Tensor:
    gate = logits.sigmoid()
    if residual == "add":
        return 1 + gate
    return 2 * gate if residual == "identity_init" else gate


class LocalCrossModalAttention(nn.Module):
    """Each time step of one modality asks the 2k + 1 nearest steps of another (paper 4, eqs. 5 to 7).

    z_t = softmax(q_t K_t^T / sqrt(d)) V_t with q_t from `queries` and K_t, V_t from `values` within k steps of t. What
    the window would see beyond either end of the sequence is left out, so that the softmax runs over real steps only.
    No heads, no biases, no dropout, no residual: z carries values only, queries act through the weights.

    Args:
        query_dim, value_dim: widths of the two inputs.
        dim: d, the width of the result.
        k: half window.

    Shape: (B, T, query_dim) and (B, T, value_dim) -> (B, T, dim).
    """

    def __init__(self, query_dim: int, value_dim: int, dim: int, *, k: int = 2) -> None:
        super().__init__()
        if k < 0:
            raise ValueError(f"a window needs k >= 0, got {k}")
        self.query = nn.Linear(query_dim, dim, bias=False)
        self.key = nn.Linear(value_dim, dim, bias=False)
        self.value = nn.Linear(value_dim, dim, bias=False)
        self.k = k

    def weights(self, queries: Tensor, values: Tensor) -> Tensor:
        """The softmax alone: (B, T, 2k + 1), zero beyond the ends."""
        query = self.query(queries)
        scores = torch.einsum("btd,btdw->btw", query, self._windows(self.key(values))) / query.shape[-1] ** 0.5
        steps = torch.arange(queries.shape[1], device=queries.device)
        seen = steps[:, None] + torch.arange(-self.k, self.k + 1, device=queries.device)
        outside = (seen < 0) | (seen >= queries.shape[1])
        return scores.masked_fill(outside, -torch.inf).softmax(dim=-1)

    def forward(self, queries: Tensor, values: Tensor) -> Tensor:
        windows = self._windows(self.value(values))
        return torch.einsum("btw,btdw->btd", self.weights(queries, values).to(windows.dtype), windows)

    def _windows(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d, 2k + 1), zeros beyond the ends."""
        return F.pad(x, (0, 0, self.k, self.k)).unfold(1, 2 * self.k + 1, 1)
