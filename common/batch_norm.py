"""Batch norm whose statistics are those of the batch of all processes, on any device."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SharedBatchNorm2d(nn.BatchNorm2d):
    """PyTorch's SyncBatchNorm in plain operations, since that one refuses to work without a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W), of any size on each process, no process without an item."""
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        wide = x.double()
        total = all_reduce(torch.cat([wide.sum((0, 2, 3)), wide.new_tensor([x.numel() / x.shape[1]])]))
        count, mean = total[-1], total[:-1] / total[-1]
        centred = wide - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum or 0.0)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum or 0.0)
        normed = (centred * (variance[:, None, None] + self.eps).rsqrt()).to(x.dtype)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


def share_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Let every batch norm below `module` share its statistics over processes; parameters and buffers stay the same."""
    kind = nn.SyncBatchNorm if device.type == "cuda" else SharedBatchNorm2d
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            shared = kind(child.num_features, child.eps, child.momentum, child.affine)
            state: dict[str, Any] = child._parameters | child._buffers
            for key, value in state.items():
                setattr(shared, key, value)
            setattr(module, name, shared.train(child.training))
        else:
            share_batch_norm(child, device)
