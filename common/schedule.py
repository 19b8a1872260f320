"""Learning rates as functions of the step, so that a resumed run needs no schedule's state."""

import math


def rate(step: int, steps: int, warmup: int, decay: bool) -> float:
    """Factor on a learning rate: a linear rise over `warmup` steps; with `decay` a cosine down to a fiftieth."""
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rise * (0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, step / steps))) if decay else 1.0)
