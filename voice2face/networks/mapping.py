"""StyleGAN2's mapping network: from a latent (or a voice embedding) to the intermediate space W."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.layers import EqualLinear, normalise_second_moment


class MappingNetwork(nn.Module):
    """Eight slow fully connected layers after a normalisation of their input.

    `z_dim` 0 leaves the latent out (the discriminator's label embedding); `c_dim` > 0 concatenates the normalised
    projection of a condition, as NVIDIA's conditional networks do. With `num_ws` None the output is (B, w_dim).
    `w_avg` is the running mean of w, the centre of truncation.
    """

    w_avg: Tensor

    def __init__(
        self,
        *,
        z_dim: int = 512,
        c_dim: int = 0,
        w_dim: int = 512,
        num_ws: int | None = None,
        num_layers: int = 8,
        lr_mul: float = 0.01,
        w_avg_beta: float = 0.995,
    ) -> None:
        super().__init__()
        if z_dim == 0 and c_dim == 0:
            raise ValueError("a mapping network needs a latent (z_dim) or a condition (c_dim)")
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.w_avg_beta = w_avg_beta
        self.embed = EqualLinear(c_dim, w_dim) if c_dim else None
        widths = [z_dim + (w_dim if c_dim else 0)] + [w_dim] * num_layers
        self.layers = nn.ModuleList(
            EqualLinear(inner, outer, lr_mul=lr_mul, activation="lrelu") for inner, outer in pairwise(widths)
        )
        if num_ws is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: Tensor | None = None,
        c: Tensor | None = None,
        *,
        truncation: float = 1.0,
        truncation_cutoff: int | None = None,
        update_average: bool = False,
    ) -> Tensor:
        """(B, z_dim) and (B, c_dim) -> (B, num_ws, w_dim), float32 whatever the autocast state.

        `truncation` psi pulls the first `truncation_cutoff` (default all) vectors towards `w_avg`: 1 keeps them,
        0 gives the average face. `update_average` moves `w_avg` by this batch; training passes True in its main
        phase. Raises UserError when z or c has the wrong width.
        """
        parts = []
        if self.z_dim:
            parts.append(self._checked(z, self.z_dim, "latent"))
        with torch.autocast((z if z is not None else _present(c)).device.type, enabled=False):
            if self.embed is not None:
                parts.append(self.embed(self._checked(c, self.c_dim, "condition").float()))
            x = torch.cat([normalise_second_moment(part.float()) for part in parts], dim=1)
            for layer in self.layers:
                x = layer(x)
            if self.num_ws is None:
                return x
            if update_average:
                self.w_avg.lerp_(x.detach().mean(dim=0), 1 - self.w_avg_beta)
            ws = x[:, None].expand(-1, self.num_ws, -1)
            return ws if truncation == 1 else self.truncate(ws, truncation, truncation_cutoff)

    def truncate(self, ws: Tensor, truncation: float, cutoff: int | None = None) -> Tensor:
        """w_avg + truncation * (w - w_avg) for the first `cutoff` (default all) of the vectors of (B, n, w_dim)."""
        short = self.w_avg.lerp(ws[:, :cutoff], truncation)
        return short if cutoff is None else torch.cat([short, ws[:, cutoff:]], dim=1)

    @staticmethod
    def _checked(value: Tensor | None, width: int, name: str) -> Tensor:
        value = _present(value)
        if value.ndim != 2 or value.shape[1] != width:
            raise UserError(
                f"the mapping network wants a {name} of shape (batch, {width}), got {tuple(value.shape)}; "
                "the generator and what feeds it were configured differently"
            )
        return value


def _present(value: Tensor | None) -> Tensor:
    if value is None:
        raise UserError("the network was built with an input that this call leaves out; pass both z and c")
    return value


def draw_mixing_cutoff(num_ws: int, probability: float, generator: torch.Generator | None = None) -> int:
    """First layer of the second style: uniform in 1..num_ws-1 with `probability`, else num_ws (no mixing)."""
    if num_ws < 2 or float(torch.rand((), generator=generator)) >= probability:
        return num_ws
    return int(torch.randint(1, num_ws, (), generator=generator))


def mix_styles(ws: Tensor, other: Tensor, cutoff: int) -> Tensor:
    """The first `cutoff` vectors of `ws`, the rest of `other`; both (B, num_ws, w_dim)."""
    return torch.cat([ws[:, :cutoff], other[:, cutoff:]], dim=1)


class MappedGenerator(nn.Module):
    """A generator of a mapping network and a synthesis network, which subclasses assign."""

    mapping: nn.Module
    synthesis: nn.Module

    def forward(
        self,
        z: Tensor,
        *,
        truncation: float = 1.0,
        truncation_cutoff: int | None = None,
        noise: list[Tensor] | None = None,
        noise_mode: str = "random",
        force_fp32: bool = False,
    ) -> Tensor:
        """Mapping, truncation and synthesis of (B, z_dim); see the `forward` of both networks."""
        ws = self.mapping(z, truncation=truncation, truncation_cutoff=truncation_cutoff)
        images: Tensor = self.synthesis(ws, noise=noise, noise_mode=noise_mode, force_fp32=force_fp32)
        return images
