"""A direct head into W+, for a generator whose weights were loaded (paper 2, section 3.3: 14x512 or 18x512)."""

import torch
from torch import Tensor, nn


class WPlusHead(nn.Module):
    """Takes the place of a mapping network: w+ = w_avg + delta(voice), one vector per layer (as pSp does).

    The last layer starts at zero, so that training begins at the loaded generator's average face.

    Args:
        z_dim: width of the voice latent.
        w_avg: (w_dim,) centre of the loaded generator's W.
        num_ws: vectors of W+: 14 at 256 px, 18 at 1024 px.
    """

    w_avg: Tensor

    def __init__(self, z_dim: int, w_avg: Tensor, num_ws: int) -> None:
        super().__init__()
        self.num_ws, self.w_dim = num_ws, len(w_avg)
        self.hidden = nn.Linear(z_dim, self.w_dim)
        self.delta = nn.Linear(self.w_dim, num_ws * self.w_dim)
        nn.init.zeros_(self.delta.weight)
        nn.init.zeros_(self.delta.bias)
        self.register_buffer("w_avg", w_avg.clone())

    def forward(
        self,
        z: Tensor,
        c: None = None,
        *,
        truncation: float = 1.0,
        truncation_cutoff: int | None = None,
        update_average: bool = False,
    ) -> Tensor:
        """(B,z_dim) -> (B,num_ws,w_dim). The centre stays the loaded one: `update_average` changes nothing."""
        # A unit latent has entries of 1/sqrt(D); the layers want unit variance.
        offset = self.delta(torch.nn.functional.leaky_relu(self.hidden(z * z.shape[1] ** 0.5), 0.2))
        offset = offset.unflatten(1, (self.num_ws, self.w_dim))
        if truncation_cutoff is None:
            return self.w_avg + truncation * offset
        kept = offset[:, truncation_cutoff:]
        return self.w_avg + torch.cat([truncation * offset[:, :truncation_cutoff], kept], dim=1)
