"""How a clip is fitted."""

from dataclasses import dataclass

from common.errors import UserError


@dataclass(frozen=True)
class FitSettings:
    """How a clip is fitted. Lengths are pixels of the fit's 224 px frame; times are frames at about 25 per second."""

    robust_scale: float = 8.0
    """Deviation of a landmark at which its pull fades (c of Geman and McClure)."""
    contour_weight: float = 0.15
    """Weight at first of the outline's landmarks, against 1 of others; then by how well they agree with the model."""
    contour_slide: float = 0.2
    """Share of that weight that deviations along the outline have."""
    contour_turn: tuple[float, float] = (15.0, 40.0)
    """Yaw in degrees between which the averted side of the outline loses its weight."""
    sparsity: float = 0.4
    """Strength of the belief that most expressions rest, where they are weights in [0,1]; 0 turns it off."""
    pose_acceleration: tuple[float, float, float, float, float, float] = (0.01, 0.01, 0.01, 0.01, 0.01, 0.04)
    """Standard deviation of the second difference of pitch, yaw, roll (rad) and x, y, z (dm)."""
    expression_change: float = 0.1
    """Standard deviation of an expression's change from frame to frame."""
    eye_change: float = 0.25
    """The same for expressions that begin with `eye`: lids are fast."""
    start_sigma: float = 0.3
    """How far coefficients may lie from those of a given start."""
    subset: int = 64
    """Frames, spread over the clip, from which the identity is estimated."""
    window: int = 256
    """Frames solved at once."""
    overlap: int = 16
    """Frames by which windows are widened on both sides, so that smoothness does not end at their edges."""
    iterations: int = 20
    """Levenberg-Marquardt steps per stage at most."""
    photometric: float = 0.2
    """Weight of the colours where pictures are given."""
    vertices: int = 1500
    """Vertices whose colours are compared."""

    def __post_init__(self) -> None:
        if min(self.subset, self.window, self.iterations, self.vertices) < 1 or self.overlap < 0:
            raise UserError("fit settings: subset, window, iterations and vertices start at 1, overlap at 0")
        if min(self.robust_scale, self.expression_change, self.eye_change, self.start_sigma, self.photometric) <= 0:
            raise UserError("fit settings: scales, changes, sigmas and photometric must be positive")
        if min(self.pose_acceleration) <= 0 or self.sparsity < 0 or self.contour_turn[0] >= self.contour_turn[1]:
            raise UserError("fit settings: accelerations are positive, sparsity is not negative, contour_turn ascends")
