"""The 68 landmarks of a face model alone, projected with gradients: a five-hundredth of the mesh's cost."""

import torch
from torch import Tensor, nn

from common.face3d.camera import REFERENCE_SIZE, Camera, pose
from common.face3d.morphable import FaceModel


class LandmarkProjector(nn.Module):
    """From coefficients to landmarks in the coefficients' own frame of 224 px.

    Args:
        model: whose landmarks; its modes at those vertices become buffers outside of the state.
    """

    mean: Tensor
    identity: Tensor
    expression: Tensor

    def __init__(self, model: FaceModel) -> None:
        super().__init__()
        rows = model.landmark_vertices
        self.register_buffer("mean", model.mean_shape[rows].clone(), persistent=False)
        self.register_buffer("identity", model.identity_basis[:, rows].clone(), persistent=False)
        self.register_buffer("expression", model.expression_basis[:, rows].clone(), persistent=False)
        self.camera = Camera(REFERENCE_SIZE)

    def forward(self, identity: Tensor, expression: Tensor, angles: Tensor, translation: Tensor) -> Tensor:
        """Landmarks (B,T,68,2) in px of the frame, x to the right, y down.

        Args:
            identity: (B,Ki), one a clip.
            expression: (B,T,Ke).
            angles: (B,T,3) rad.
            translation: (B,T,3) dm.
        """
        own = self.mean + torch.einsum("bk,knc->bnc", identity, self.identity)
        points = own[:, None] + torch.einsum("btk,knc->btnc", expression, self.expression)
        posed = pose(points.flatten(0, 1), angles.flatten(0, 1), translation.flatten(0, 1))
        xy, _ = self.camera.project(posed)
        return xy.unflatten(0, expression.shape[:2])
