"""Two ranks over gloo that share a batch norm's statistics; called by test_batch_norm in a process of its own.

    python -m tests.common.toy_ranks OUT

The ranks are forked after the imports and before any thread is there.
"""

import os
import socket
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from common.batch_norm import share_batch_norm


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.Sequential(nn.BatchNorm2d(5), nn.ReLU()), nn.Conv2d(5, 1, 2))


def images() -> Tensor:
    """The batch of both ranks, far from mean 0."""
    return torch.randn(6, 2, 7, 9, generator=torch.Generator().manual_seed(1)) * 3 + 5


def learn(net: nn.Module, batch: Tensor) -> Tensor:
    """The output after a forward and a backward pass."""
    out = net(batch)
    (out.sigmoid() * torch.linspace(0, 1, out[0].numel()).view_as(out[0])).mean().backward()
    return out.detach()


def rank(number: int, port: int, out: Path) -> None:
    """Learn from every second image; store output, state and mean gradients."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(number)}
    torch.distributed.init_process_group("gloo")
    net = network()
    share_batch_norm(net, torch.device("cpu"))
    found = learn(net, images()[number::2])
    gradients = {}
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        torch.distributed.all_reduce(parameter.grad)
        gradients[name] = parameter.grad / 2
    torch.save({"out": found, "grad": gradients, "state": net.state_dict()}, out / f"{number}.pt")
    torch.distributed.destroy_process_group()


def main(out: Path) -> None:
    """Run both ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for number in range(2):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                rank(number, port, out)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    sys.exit(int(any(os.waitpid(pid, 0)[1] for pid in children)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
