"""Linear face models behind one interface: identity, expression and albedo modes on a fixed triangle mesh."""

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from torch import Tensor, nn

from common.errors import UserError

LANDMARKS = 68
ICT_FILE = "ict_facekit.npz"


class FaceModel(nn.Module):
    """A linear (morphable) face model.

    vertices = mean_shape + identity @ identity_basis + expression @ expression_basis, in decimetres (x right, y up,
    z towards the camera, centred on the head); colours = mean_albedo + coefficients @ albedo_basis, display RGB in
    [0,1]. Identity and albedo coefficients are N(0,1); expression coefficients are blend weights in [0,1] or N(0,1),
    named by `expression_names`.

    Buffers: mean_shape (V,3), identity_basis (Ki,V,3), expression_basis (Ke,V,3), mean_albedo (V,3),
    albedo_basis (Ka,V,3), triangles (F,3) int64 counter-clockwise from outside, landmark_vertices (68,) int64 in iBUG
    order. `regions` names bool masks (V,).

    Raises `UserError` where shapes disagree or an index leaves the mesh.
    """

    mean_shape: Tensor
    identity_basis: Tensor
    expression_basis: Tensor
    mean_albedo: Tensor
    albedo_basis: Tensor
    triangles: Tensor
    landmark_vertices: Tensor

    def __init__(
        self,
        *,
        mean_shape: Tensor,
        identity_basis: Tensor,
        expression_basis: Tensor,
        mean_albedo: Tensor,
        albedo_basis: Tensor,
        triangles: Tensor,
        landmark_vertices: Tensor,
        name: str,
        expression_names: Sequence[str],
        regions: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.expression_names = tuple(expression_names)
        self.register_buffer("mean_shape", mean_shape)
        self.register_buffer("identity_basis", identity_basis)
        self.register_buffer("expression_basis", expression_basis)
        self.register_buffer("mean_albedo", mean_albedo)
        self.register_buffer("albedo_basis", albedo_basis)
        self.register_buffer("triangles", triangles.long())
        self.register_buffer("landmark_vertices", landmark_vertices.long())
        self._region_names = tuple(regions or {})
        for key, mask in (regions or {}).items():
            self.register_buffer(f"region_{key}", mask)
        self._check()

    def _check(self) -> None:
        count = self.mean_shape.shape[0]
        wanted = {
            "mean_shape": (count, 3),
            "mean_albedo": (count, 3),
            "identity_basis": (self.identity_basis.shape[0], count, 3),
            "expression_basis": (len(self.expression_names), count, 3),
            "albedo_basis": (self.albedo_basis.shape[0], count, 3),
            "triangles": (self.triangles.shape[0], 3),
            "landmark_vertices": (LANDMARKS,),
        } | {f"region_{key}": (count,) for key in self._region_names}
        for key, shape in wanted.items():
            found = tuple(self.get_buffer(key).shape)
            if found != shape:
                raise UserError(f"face model {self.name}: {key} has shape {found}, wanted {shape}")
        for key in ("triangles", "landmark_vertices"):
            indices = self.get_buffer(key)
            if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= count):
                raise UserError(f"face model {self.name}: {key} points outside the {count} vertices")

    @property
    def regions(self) -> dict[str, Tensor]:
        """Named vertex masks (V,), bool, on the model's device."""
        return {key: self.get_buffer(f"region_{key}") for key in self._region_names}

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Number of identity, expression and albedo coefficients."""
        return self.identity_basis.shape[0], self.expression_basis.shape[0], self.albedo_basis.shape[0]

    def shape(self, identity: Tensor, expression: Tensor) -> Tensor:
        """Vertices (B,V,3) in decimetres from identity (B,Ki) and expression (B,Ke) coefficients."""
        self._check_coefficients("identity", identity, self.identity_basis)
        self._check_coefficients("expression", expression, self.expression_basis)
        offset = identity @ self.identity_basis.flatten(1) + expression @ self.expression_basis.flatten(1)
        return self.mean_shape + offset.view(-1, *self.mean_shape.shape)

    def albedo(self, coefficients: Tensor) -> Tensor:
        """Vertex colours (B,V,3), display RGB clamped to [0,1], from albedo coefficients (B,Ka)."""
        self._check_coefficients("albedo", coefficients, self.albedo_basis)
        offset = coefficients @ self.albedo_basis.flatten(1)
        return (self.mean_albedo + offset.view(-1, *self.mean_albedo.shape)).clamp(0, 1)

    def landmarks(self, vertices: Tensor) -> Tensor:
        """The 68 iBUG landmarks (B,68,3) of vertices (B,V,3)."""
        return vertices[:, self.landmark_vertices]

    def expression_index(self, name: str) -> int:
        """Position of a named expression; `UserError` that lists the names where there is none."""
        if name not in self.expression_names:
            raise UserError(
                f"face model {self.name} has no expression {name!r}; it has {', '.join(self.expression_names)}"
            )
        return self.expression_names.index(name)

    def _check_coefficients(self, what: str, coefficients: Tensor, basis: Tensor) -> None:
        if coefficients.dim() != 2 or coefficients.shape[1] != basis.shape[0]:
            found = tuple(coefficients.shape)
            raise UserError(
                f"face model {self.name}: {what} coefficients are {found}, wanted (batch, {basis.shape[0]})"
            )


@lru_cache(maxsize=2)
def load_face_model(spec: str) -> FaceModel:
    """The face model that `spec` names, in float32 on the CPU; one instance per spec and process.

    "builtin": authored by code, needs nothing. "ict": ICT-FaceKit from `ict_facekit.npz` in the weights folder, or in
    `$SPEECHFACE_MEDIA/face_model`. "ict:PATH": that npz, or a clone of the ICT-FaceKit repository (converted each
    time). "bfm09": the user's licensed Basel Face Model in the weights folder. "bfm09:PATH": BFM_model_front.mat, or
    a folder of it or of the raw files (`bfm.load_bfm`). Raises `UserError` for an unknown spec or an absent or damaged
    file.
    """
    if spec == "builtin":
        from common.face3d import builtin  # the built-in head imports this module

        return builtin.build()
    from common.face3d import ict  # the same

    if spec == "ict":
        return ict.load(find_ict())
    if spec.startswith("ict:"):
        return ict.load(Path(spec.removeprefix("ict:")).expanduser())
    if spec == "bfm09" or spec.startswith("bfm09:"):
        from common.face3d import bfm  # the same
        from common.weights import weights_folder

        return bfm.load_bfm(Path(spec[6:]).expanduser() if spec[6:] else weights_folder())
    raise UserError(
        f"unknown face model {spec!r}: use builtin, ict, ict:PATH (an npz or a clone of ICT-FaceKit), bfm09, or "
        "bfm09:PATH (BFM_model_front.mat or the folder of the raw files)"
    )


def find_ict() -> Path:
    """Where `ict_facekit.npz` lies: the weights folder or `$SPEECHFACE_MEDIA/face_model`; else `UserError`."""
    from common.weights import weights_folder  # kept out of the import of every face model

    places = [weights_folder() / ICT_FILE]
    if media := os.environ.get("SPEECHFACE_MEDIA"):
        places.append(Path(media) / "face_model" / ICT_FILE)
    for place in places:
        if place.is_file():
            return place
    raise UserError(
        f"no ICT-FaceKit model at {' or '.join(map(str, places))}: clone https://github.com/ICT-VGL/ICT-FaceKit "
        "and run python -m common ict CLONE, or set the face model to ict:CLONE"
    )
