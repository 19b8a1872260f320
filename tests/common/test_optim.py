"""Ranger against a scalar loop written from its papers."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from common.optim import Ranger


def grad_of(x: list[float], step: int) -> list[float]:
    """Some gradient that depends on the weights and on time."""
    return [2 * value + math.sin(step + index) for index, value in enumerate(x)]


def plain_ranger(
    x: list[float],
    steps: int,
    *,
    lr: float,
    weight_decay: float = 0.0,
    k: int = 6,
    alpha: float = 0.5,
    centralise: bool = True,
) -> list[list[float]]:
    """A (1, n) matrix under Ranger, one number at a time."""
    beta1, beta2, eps = 0.95, 0.999, 1e-5
    first, second, slow = [0.0] * len(x), [0.0] * len(x), list(x)
    path = []
    for t in range(1, steps + 1):
        grads = grad_of(x, t)
        mean = sum(grads) / len(grads) if centralise else 0.0
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * t * beta2**t / (1 - beta2**t)
        for i in range(len(x)):
            g = grads[i] - mean
            first[i] = beta1 * first[i] + (1 - beta1) * g
            second[i] = beta2 * second[i] + (1 - beta2) * g * g
            x[i] -= lr * weight_decay * x[i]
            if length > 5:
                r = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
                step = r * math.sqrt(1 - beta2**t) / (1 - beta1**t)
                x[i] -= lr * step * first[i] / (math.sqrt(second[i]) + eps)
            else:
                x[i] -= lr * first[i] / (1 - beta1**t)
            if k and t % k == 0:
                slow[i] += alpha * (x[i] - slow[i])
                x[i] = slow[i]
        path.append(list(x))
    return path


def set_grad(weight: nn.Parameter, step: int) -> None:
    weight.grad = torch.tensor([grad_of(weight[0].tolist(), step)], dtype=weight.dtype)


@pytest.mark.parametrize(
    "options",
    [{}, {"centralise": False}, {"weight_decay": 0.1}, {"k": 3, "alpha": 0.2}, {"k": 0}],
    ids=["default", "no centralisation", "decay", "lookahead", "no lookahead"],
)
def test_twenty_steps_equal_a_scalar_loop(options: dict[str, float]) -> None:
    start = [0.5, -1.25, 2.0]
    weight = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimiser = Ranger([weight], lr=0.05, **options)
    for step, expected in enumerate(plain_ranger(list(start), 20, lr=0.05, **options), 1):
        set_grad(weight, step)
        optimiser.step()
        assert weight[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_vectors_are_not_centralised() -> None:
    bias = nn.Parameter(torch.zeros(3))
    bias.grad = torch.ones(3)
    Ranger([bias], lr=0.1).step()
    assert torch.allclose(bias, torch.full((3,), -0.1))
    matrix = nn.Parameter(torch.zeros(1, 3))
    matrix.grad = torch.ones(1, 3)
    Ranger([matrix], lr=0.1).step()
    assert torch.equal(matrix, torch.zeros(1, 3))


def test_a_resumed_run_goes_on_as_an_unbroken_one() -> None:
    weight = nn.Parameter(torch.tensor([[0.5, -1.25, 2.0]], dtype=torch.float64))
    optimiser = Ranger([weight], lr=0.05)
    for step in range(1, 10):
        set_grad(weight, step)
        optimiser.step()
    other = nn.Parameter(weight.detach().clone())
    resumed = Ranger([other], lr=1.0)
    resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for step in range(10, 21):
        for parameter, each in ((weight, optimiser), (other, resumed)):
            set_grad(parameter, step)
            each.step()
    assert torch.equal(weight, other)


def test_parameters_count_their_own_steps() -> None:
    """One that gets its first gradient late moves as if training began then; until then it stays."""
    early, late, alone = (nn.Parameter(torch.tensor([[1.0, 2.0]])) for _ in range(3))
    both, single = Ranger([early, late], lr=0.1), Ranger([alone], lr=0.1)
    for step in range(1, 13):
        set_grad(early, step)
        if step > 5:
            set_grad(late, step - 5)
            set_grad(alone, step - 5)
            single.step()
        both.step()
        assert step > 5 or torch.equal(late, torch.tensor([[1.0, 2.0]]))
    assert torch.equal(late, alone)


def test_a_closure_is_run_with_gradients_and_its_loss_returned() -> None:
    weight = nn.Parameter(torch.tensor([3.0]))
    optimiser = Ranger([weight], lr=0.1)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimiser.step(closure) == 9
    assert weight.item() == pytest.approx(3 - 0.1 * 6)


def test_it_learns_a_regression() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    target = x @ torch.randn(5, 1)
    model = nn.Linear(5, 1)
    optimiser = Ranger(model.parameters(), lr=0.05, centralise=False)
    first = (model(x) - target).square().mean().item()
    for _ in range(300):
        loss = (model(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < first * 1e-2


@pytest.mark.parametrize(
    "options", [{"lr": -1}, {"eps": 0}, {"betas": (1.0, 0.9)}, {"k": -1}, {"alpha": 2}, {"weight_decay": -1}]
)
def test_arguments_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Ranger"):
        Ranger([nn.Parameter(torch.zeros(1))], **options)


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        Ranger(embedding.parameters()).step()
