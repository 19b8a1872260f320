"""Optimisers that PyTorch does not have."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

Params = list[Tensor]


class Ranger(Optimizer):
    """RAdam with Lookahead and gradient centralisation (Wright, "Ranger", version 20.4.11).

    Per step and parameter, in this order: centralise the gradient (Yong et al., 2020), move both moments of Adam,
    decay the weight by `weight_decay * lr` of itself, step by RAdam's rectified rate, or by the bare momentum where
    the second moment's variance is not yet bounded (Liu et al., 2020), and after every `k`-th step pull the slow copy
    by `alpha` towards the weight and put the weight there (Zhang et al., 2019). The slow copy starts at the initial
    weight. Steps count per parameter: one that got no gradient does not move.

    Args:
        params: as for every optimiser of torch.
        lr: step size.
        betas, eps: Adam's; eps is added to the root of the second moment, which is not corrected for its bias.
        weight_decay: decoupled.
        k, alpha: Lookahead; k = 0 switches it off.
        threshold: length of the moving average above which the second moment is used.
        centralise: subtract from each gradient of at least two dimensions its mean over all but the first. Papers that
            name RAdam and Lookahead only may mean False.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 0.0,
        k: int = 6,
        alpha: float = 0.5,
        threshold: float = 5.0,
        centralise: bool = True,
    ) -> None:
        if lr < 0 or eps <= 0 or weight_decay < 0:
            raise ValueError(f"Ranger needs lr >= 0, eps > 0, weight_decay >= 0, got {lr}, {eps}, {weight_decay}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"Ranger's betas must be in [0, 1), got {betas}")
        if k < 0 or not 0 <= alpha <= 1:
            raise ValueError(f"Ranger needs k >= 0 and alpha in [0, 1], got {k} and {alpha}")
        defaults = dict(
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            k=k,
            alpha=alpha,
            threshold=threshold,
            centralise=centralise,
        )
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` recomputes the loss and its gradients first, and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for step, params in self._by_step(group["params"]).items():
                _step(params, [self.state[param] for param in params], group, step)
        return loss

    def _by_step(self, params: Iterable[Tensor]) -> dict[int, Params]:
        """Parameters that have a gradient, by the number of the step that they are about to make."""
        steps: dict[int, Params] = defaultdict(list)
        for param in params:
            if param.grad is None:
                continue
            if param.grad.is_sparse:
                raise ValueError("Ranger does not take sparse gradients")
            state = self.state[param]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(param)
                state["exp_avg_sq"] = torch.zeros_like(param)
                state["slow"] = param.clone()
            state["step"] += 1
            steps[state["step"]].append(param)
        return steps


def _step(params: Params, states: list[dict[str, Any]], group: dict[str, Any], step: int) -> None:
    """Step `step` of parameters alike, by operations on whole lists."""
    beta1, beta2 = group["betas"]
    grads = [param.grad for param in params if param.grad is not None]
    if group["centralise"]:
        grads = [
            grad - grad.mean(dim=list(range(1, grad.dim())), keepdim=True) if grad.dim() > 1 else grad for grad in grads
        ]
    first, second = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
    torch._foreach_lerp_(first, grads, 1 - beta1)
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
    lr = float(group["lr"])
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - group["weight_decay"] * lr)
    rate = lr / (1 - beta1**step)
    rectified = _rectification(step, beta2, group["threshold"])
    if rectified is None:
        torch._foreach_add_(params, first, alpha=-rate)
    else:
        roots = torch._foreach_sqrt(second)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(params, first, roots, -rate * rectified)
    if group["k"] and step % group["k"] == 0:
        slow = [state["slow"] for state in states]
        torch._foreach_lerp_(slow, params, group["alpha"])
        torch._foreach_copy_(params, slow)


def _rectification(step: int, beta2: float, threshold: float) -> float | None:
    """RAdam's factor sqrt(1 - beta2^t) r_t; None while the average is no longer than `threshold`."""
    longest = 2 / (1 - beta2) - 1
    decay = beta2**step
    length = longest - 2 * step * decay / (1 - decay)
    if length <= threshold:
        return None
    ratio = (length - 4) / (longest - 4) * (length - 2) / length * longest / (longest - 2)
    return math.sqrt((1 - decay) * ratio)
