"""A trained renderer learns one person before it dubs them: more training on the clip's own frames.

A renderer that saw few people, or drawn ones only, smears a new face: its textures come from its weights. The clip
itself shows the same face with many mouths, each with its fitted expression, which is just what stage 2 learns from.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor

from common.schedule import rate
from dubbing3d import losses
from dubbing3d.config import DubbingConfig
from dubbing3d.losses import Weights
from dubbing3d.networks.renderer import Renderer, RenderOutput

_WARMUP, _BETAS = 10, (0.9, 0.99)
_PLAIN = Weights(perceptual=0, style=0, wgan=0, correspondence=0)
"""L1 and SSIM: judges and critic do not travel in checkpoints, and would have to be trained anew for every clip."""


class Examples(NamedTuple):
    """What a renderer sees of frames as they are; arguments of `Renderer.forward`."""

    guides: Tensor
    """(K,3 or 4,S,S) drawn with the frames' own expressions."""
    targets: Tensor
    """(K,3,S,S) in [-1,1]."""
    masks: Tensor
    """(K,1,S,S): 1 is hidden and to be drawn."""


def adapted(
    network: Renderer,
    cfg: DubbingConfig,
    references: tuple[Tensor, Tensor | None],
    examples: Examples,
    steps: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> Renderer:
    """A copy of a renderer after more steps on frames of one clip, by eqs. 23, 24 and 32; the same for the same input.

    Batch norms keep the statistics of the training: those of a clip's few frames would be no better, and what is
    learned stays valid for the frames one by one. A recurrent network learns here as at the beginning of a clip.

    Args:
        network: in eval mode.
        cfg: of its training, for the batch size, the learning rate and epsilon.
        references: (1,N,3,S,S) and their renders, those of the dub; see `Renderer.encode_references`.
        examples: other frames of the clip.
        steps: updates.
        progress: called after each with 1.
    """
    # A dub runs in inference mode, whose tensors know no gradient; clones of them do.
    with torch.inference_mode(False), torch.enable_grad():
        tuned = deepcopy(network)
        images, renders = (None if x is None else x.clone() for x in references)
        assert images is not None
        known = Examples(*(x.clone() for x in examples))
        # Not the training's Ranger, whose slow copy of the weights holds them back in so few steps.
        optimiser = torch.optim.Adam(tuned.parameters(), lr=cfg.optim.g_lr, betas=_BETAS)
        generator = torch.Generator().manual_seed(cfg.run.seed)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = cfg.optim.g_lr * rate(step, steps, _WARMUP, decay=True)
            rows = torch.randint(len(known.targets), (cfg.renderer.batch_size,), generator=generator)
            guide, target, mask = (x[rows.to(x.device)] for x in known)
            output = tuned(guide, tuned.encode_references(images, renders), target * (1 - mask))
            loss = _loss(output, target, mask, cfg)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if progress is not None:
                progress(1)
        optimiser.zero_grad()
    return tuned


def _loss(output: RenderOutput, target: Tensor, mask: Tensor, cfg: DubbingConfig) -> Tensor:
    forms = cfg.forms.of_pictures()
    texture = losses.texture_terms(output, target, mask, weights=_PLAIN, forms=forms, features=None, flow=None)
    inpainting = losses.inpainting_terms(output, target, weights=_PLAIN, forms=forms, features=None)
    parts = losses.total(inpainting, _PLAIN), losses.total(texture, _PLAIN)
    return losses.renderer_total(*parts, cfg.renderer.epsilon[1])
