"""What a renderer of dubbing gives for a batch of frames."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class RenderParts:
    """Crops of B faces and what they were made of, for the debug sheet. Pictures are in [-1,1]."""

    image: Tensor
    """(B,3,S,S) the result."""
    flow: Tensor
    """(B,2,S,S) px, from the result to where it was taken."""
    warp: Tensor
    """(B,3,S,S) the frame or the reference along the flow."""
    colour: Tensor
    """(B,3,S,S) what was drawn rather than moved: C_i of paper 4, or the inside of the mouth."""
    attention: Tensor
    """(B,1,S,S) in [0,1]: 1 where the colour is taken (eq. 18), 0 where the frame or the warp is kept."""
