"""Shared batch norm: two processes normalise as one does with both batches, and learn the same."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from common.batch_norm import SharedBatchNorm2d, share_batch_norm
from tests.common.toy_ranks import images, learn, network


def test_two_processes_equal_one_with_both_batches(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.common.toy_ranks", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    one = network()
    whole = learn(one, images())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["out"], whole[rank::2], rtol=1e-4, atol=1e-5)
        for name, parameter in one.named_parameters():
            torch.testing.assert_close(found["grad"][name], parameter.grad, rtol=1e-3, atol=1e-6)
        for name, value in one.state_dict().items():
            torch.testing.assert_close(found["state"][name], value, rtol=1e-4, atol=1e-5)


def test_alone_it_is_the_plain_norm_with_the_same_tensors() -> None:
    plain, shared = network(), network()
    before = {name: value.data_ptr() for name, value in shared.state_dict().items()}
    share_batch_norm(shared, torch.device("cpu"))
    assert isinstance(shared[1][0], SharedBatchNorm2d)
    assert {name: value.data_ptr() for name, value in shared.state_dict().items()} == before
    batch = torch.randn(4, 2, 8, 8)
    assert torch.equal(learn(plain, batch), learn(shared, batch))
    assert torch.equal(plain.eval()(batch), shared.eval()(batch))
    assert all(torch.equal(value, shared.state_dict()[name]) for name, value in plain.state_dict().items())


def test_a_gpu_gets_pytorchs_own() -> None:
    net = network()
    names = list(net.state_dict())
    share_batch_norm(net, torch.device("cuda"))
    assert isinstance(net[1][0], torch.nn.SyncBatchNorm)
    assert list(net.state_dict()) == names
