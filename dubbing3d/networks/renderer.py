"""Stage 2: SFM, TMN and RBFIN as one network (paper 4, sec. 3.3.1)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dubbing3d.networks.blocks import SCALES, check_shape
from dubbing3d.networks.flow import SFM
from dubbing3d.networks.inpaint import RBFIN, Scale
from dubbing3d.networks.texture import TMN
from dubbing3d.networks.warp import warp


class References(NamedTuple):
    """References of a clip with what the network computes from them alone; batch 1 serves any number of frames."""

    images: Tensor
    """(B, N, 3, S, S) in [-1, 1]."""
    features: Tensor | None
    """(B, N, C, S/2, S/2); None where there is no flow."""

    def expand(self, batch: int) -> "References":
        """The same references for `batch` frames; takes no memory."""
        images, features = (x if x is None else x.expand(batch, *x.shape[1:]) for x in self)
        assert images is not None
        return References(images, features)


class TextureOutput(NamedTuple):
    """What SFM and TMN give: all that L^e needs."""

    flow: Tensor | None
    """(B, N, 2, S, S) pixels, for `warp` of each reference; None without SFM."""
    weights: Tensor | None
    """(B, N, 1, S, S), summing to 1 over N; None without SFM."""
    warp: Tensor
    """I_warp (B, 3, S, S)."""
    colour_e: Tensor | None
    """C_e (B, 3, S, S); None without TMN."""
    attention_e: Tensor | None
    """A_e (B, 1, S, S); None without TMN."""
    image_e: Tensor
    """I_e (B, 3, S, S); I_warp without TMN."""
    features: dict[str, Tensor] | None
    """F_tex by scale; None without TMN."""


class RenderOutput(NamedTuple):
    """All that the losses, the debug sheet and the result need; shapes and absences as in `TextureOutput`."""

    flow: Tensor | None
    weights: Tensor | None
    warp: Tensor
    colour_e: Tensor | None
    attention_e: Tensor | None
    image_e: Tensor
    colour_i: Tensor
    """C_i (B, 3, S, S)."""
    attention_i: Tensor
    """A_i (B, 1, S, S)."""
    image_i: Tensor
    """I_i (B, 3, S, S): the result, within [-1, 1] where the crop is."""


class Renderer(nn.Module):
    """A face from its 3D render, references of the same person and the picture around what is hidden.

    Several references are warped each by its own flow and shared out per pixel by a softmax over logits of SFM. With
    one reference its weight is exactly 1, and the network is the paper's.

    Args:
        width: multiplier of all inner widths.
        image_size: S, a multiple of 32 from 64 on; the paper's is 192.
        flow: False has no SFM: the (only) reference goes on as it is. With `enhancement=False` it is table 4's base.
        enhancement: False has no TMN (table 4): I_e is I_warp, and RBFIN gets no textures.
        msaf: False adds TMN's features to RBFIN's as they are (table 4).
        scales: at which of "low" (S/4), "mid" and "high" (S) textures come in (table 6).
        scale: the factor of eq. 22: "learnable", "sigmoid" or a constant (table 5).
        depthwise: MSAF's convolutions per channel; False reads eq. 19 plainly and costs more than table 7 prints.
        multi_reference: SFM can weigh several references against each other.
        reference_guide: SFM also sees each reference's own render, which the paper leaves out.
        recurrent: RBFIN also takes the previous result, moved as the face moved since, through weights that start at 0.
        guide_channels: of the render: 3, or 4 with its coverage.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        image_size: int = 192,
        flow: bool = True,
        enhancement: bool = True,
        msaf: bool = True,
        scales: Sequence[str] = SCALES,
        scale: Scale = "learnable",
        depthwise: bool = True,
        multi_reference: bool = False,
        reference_guide: bool = False,
        recurrent: bool = False,
        guide_channels: int = 3,
    ) -> None:
        super().__init__()
        check_shape(image_size, width)
        if not flow and (multi_reference or reference_guide):
            raise ValueError("several references, and their renders, need the flow network")
        self.image_size, self.guide_channels = image_size, guide_channels
        self.reference_guide, self.recurrent = reference_guide, recurrent
        common: dict[str, Any] = dict(width=width, image_size=image_size, guide_channels=guide_channels)
        channels = 3 + (guide_channels if reference_guide else 0)
        self.sfm = SFM(**common, reference_channels=channels, weigh=multi_reference) if flow else None
        self.tmn = TMN(**common) if enhancement else None
        self.rbfin = RBFIN(
            **common,
            texture=enhancement,
            msaf=msaf,
            scales=scales,
            scale=scale,
            depthwise=depthwise,
            recurrent=recurrent,
        )

    def encode_references(self, images: Tensor, guides: Tensor | None = None) -> References:
        """What depends on references alone, to be computed once per clip.

        Args:
            images: (B, N, 3, S, S), or (B, 3, S, S) for one each.
            guides: their own renders (B, N, guide_channels, S, S), with `reference_guide` only.

        Raises:
            ValueError: several references for a network of one, shapes that do not fit, missing renders.
        """
        if images.dim() == 4:
            images = images[:, None]
            guides = guides[:, None] if guides is not None and guides.dim() == 4 else guides
        side = self.image_size
        if images.dim() != 5 or images.shape[2:] != (3, side, side):
            raise ValueError(f"expected references (B, N, 3, {side}, {side}), got {tuple(images.shape)}")
        if images.shape[1] != 1 and (self.sfm is None or self.sfm.weigh is None):
            raise ValueError(f"this network takes one reference, got {images.shape[1]}; build it with multi_reference")
        if self.reference_guide != (guides is not None):
            raise ValueError("references need their own renders exactly where the network has reference_guide")
        if self.sfm is None:
            return References(images, None)
        inputs = images if guides is None else torch.cat([images, guides], dim=2)
        features = self.sfm.encode_reference(inputs.flatten(0, 1)).unflatten(0, images.shape[:2])
        return References(images, features)

    def texture(self, guide: Tensor, references: Tensor | References) -> TextureOutput:
        """Flow, warp and texture alone, as the first stage of training needs them; arguments as of `forward`."""
        side = self.image_size
        if guide.shape[1:] != (self.guide_channels, side, side):
            raise ValueError(f"expected renders (B, {self.guide_channels}, {side}, {side}), got {tuple(guide.shape)}")
        if isinstance(references, Tensor):
            references = self.encode_references(references)
        if len(references.images) != len(guide):
            references = references.expand(len(guide))
        flow, weights, warped = self._warp(guide, references)
        if self.tmn is None:
            return TextureOutput(flow, weights, warped, None, None, warped, None)
        halves, features = self.tmn(warped, guide)
        return TextureOutput(flow, weights, warped, halves.colour, halves.attention, halves.over(warped), features)

    def _warp(self, guide: Tensor, references: References) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Flow, weights and I_warp."""
        images, features = references
        if self.sfm is None or features is None:
            return None, None, images[:, 0]
        batch, count = images.shape[:2]
        encoded = self.sfm.encode_guide(guide).repeat_interleave(count, dim=0)
        motion = self.sfm.decode(encoded, features.flatten(0, 1))
        flow = motion.flow.unflatten(0, (batch, count))
        warped = warp(images.flatten(0, 1), motion.flow).unflatten(0, (batch, count))
        if motion.logits is None:
            weights = torch.ones_like(flow[:, :, :1])
        else:
            weights = motion.logits.unflatten(0, (batch, count)).softmax(dim=1)
        return flow, weights, (weights * warped).sum(dim=1)

    def forward(
        self,
        guide: Tensor,
        references: Tensor | References,
        crop: Tensor,
        previous: Tensor | None = None,
    ) -> RenderOutput:
        """Draw faces.

        Args:
            guide: renders I_3D (B, guide_channels, S, S).
            references: (B, N, 3, S, S) or (B, 3, S, S), or what `encode_references` gave, of batch B or 1.
            crop: I_crop (B, 3, S, S), with nothing where the face is to be drawn.
            previous: (B, 3, S, S) the last frame's result, each piece of the face where it is in this frame; only with
                `recurrent`, and never needed.
        """
        textured = self.texture(guide, references)
        halves = self.rbfin(textured.warp, guide, crop, textured.features, previous)
        return RenderOutput(*textured[:-1], halves.colour, halves.attention, halves.over(crop))
