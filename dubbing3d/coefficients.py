"""Face-model coefficients of a clip, as corpora store them and as a fit finds them, and of which model they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.face3d.camera import REFERENCE_SIZE
from common.face3d.fit import Fit
from common.face3d.morphable import FaceModel

_TOLERANCE = 1e-3
"""Relative difference of two models' modes that rounding may cause: the built-in model is computed on each machine."""

SPOKEN = ("jaw", "mouth", "tongue")
"""Beginnings of the names of expressions that speech moves; in a dub those of lids, brows, cheeks and nose stay."""


def spoken_columns(names: tuple[str, ...]) -> list[int]:
    """Columns of the expressions that speech moves; all of them where names do not tell (BFM09's modes)."""
    found = [column for column, name in enumerate(names) if name.startswith(SPOKEN)]
    return found or list(range(len(names)))


@dataclass(frozen=True, eq=False)
class ClipCoefficients:
    """Coefficients of a clip of T frames, float32 on the CPU, as `face3d.render` takes them.

    They live in a frame of `size` = 224 px, whatever frame they were stored for.
    """

    model_spec: str
    """Of `load_face_model`."""
    expression_names: tuple[str, ...]
    """(Ke,); empty where the file does not name them."""
    identity: Tensor
    """(Ki,)."""
    albedo: Tensor
    """(Ka,)."""
    expression: Tensor
    """(T,Ke)."""
    angles: Tensor
    """(T,3) pitch, yaw, roll in rad."""
    translation: Tensor
    """(T,3) dm."""
    gamma: Tensor
    """(T,27) light."""
    confidence: Tensor
    """(T,) in [0,1]; 0 where there is no face; 1 throughout where coefficients are known rather than fitted."""
    matrix: Tensor
    """(T,2,3) float64, affine map from the clip's pixels to the coefficients' frame."""
    size: int = REFERENCE_SIZE
    """Side in px of the frame in which the coefficients live."""

    def __len__(self) -> int:
        return len(self.expression)

    @classmethod
    def load(cls, arrays: Mapping[str, np.ndarray] | None, where: object = "the clip") -> "ClipCoefficients":
        """From what `Clip.coefficients` gives; `UserError`, naming `where`, for anything else.

        `face_model`, `size`, `identity`, `albedo`, `expression`, `angles`, `translation` and `gamma` must be there.
        `matrix` is the identity, `confidence` 1, and names are unknown unless stored.
        """
        if arrays is None:
            raise UserError(f"{where} has no coefficients: fit a face model to the clips (python -m dubbing3d prepare)")
        try:
            values = {name: torch.from_numpy(np.asarray(arrays[name], np.float32)) for name in _AXES}
            spec, stored = str(arrays["face_model"]), float(arrays["size"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the coefficients of {where} cannot be read ({error}); prepare the clip again") from error
        frames = len(values["expression"]) if values["expression"].dim() == 2 else 0
        values["confidence"] = torch.from_numpy(np.asarray(arrays.get("confidence", np.ones(frames)), np.float32))
        matrix = torch.from_numpy(np.array(arrays.get("matrix", np.eye(2, 3)), np.float64))
        values["matrix"] = matrix.expand(frames, 2, 3).clone() if matrix.shape == (2, 3) else matrix
        _check(values, frames, stored, where)
        values["matrix"] *= REFERENCE_SIZE / stored
        names = tuple(str(name) for name in arrays.get("expression_names", np.zeros(0, "U1")))
        return cls(spec, names, **values)  # type: ignore[arg-type]  # `size` is not among the tensors

    @classmethod
    def from_fit(cls, fit: Fit, model: FaceModel, spec: str = "") -> "ClipCoefficients":
        """A fit with its model; `spec` names how to load that where it is not the model's own name."""
        return cls(
            model_spec=spec or fit.model_name,
            expression_names=model.expression_names,
            identity=fit.identity,
            albedo=fit.albedo,
            expression=fit.expression,
            angles=fit.angles,
            translation=fit.translation,
            gamma=fit.gamma,
            confidence=fit.confidence,
            matrix=fit.matrix.double() * torch.tensor(REFERENCE_SIZE / fit.size),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """What `coefficients.npz` of a clip holds; `load` reads it back."""
        values = {name: np.asarray(getattr(self, name)) for name in (*_AXES, "confidence", "matrix")}
        return values | {
            "size": np.array(self.size),
            "face_model": np.array(self.model_spec),
            "expression_names": np.array(self.expression_names),
        }


_AXES = {"identity": 1, "albedo": 1, "expression": 2, "angles": 2, "translation": 2, "gamma": 2}
_WIDTHS = {"angles": 3, "translation": 3, "gamma": 27}


def _check(values: Mapping[str, Tensor], frames: int, stored: float, where: object) -> None:
    """Refuse shapes that do not belong together and numbers that are none."""
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    wrong = [name for name, axes in _AXES.items() if len(shapes[name]) != axes]
    wrong += [name for name, width in _WIDTHS.items() if shapes[name] != (frames, width)]
    wrong += [name for name, rest in (("confidence", ()), ("matrix", (2, 3))) if shapes[name] != (frames, *rest)]
    if wrong or frames < 1 or not stored > 0:
        name = wrong[0] if wrong else "expression"
        raise UserError(
            f"the coefficients of {where} do not belong together ({name} is {shapes[name]} for {frames} frames of "
            f"{stored:g} px); prepare the clip again"
        )
    for name, value in values.items():
        if not bool(value.isfinite().all()):
            raise UserError(f"the coefficients of {where} are no numbers in {name}; prepare the clip again")


@dataclass(frozen=True, eq=False)
class FaceModelMark:
    """Which face model coefficients belong to: what a checkpoint keeps, to refuse another model's coefficients."""

    spec: str
    """Of `load_face_model`, as the corpus names it."""
    expression_names: tuple[str, ...]
    lengths: tuple[float, ...]
    """Root mean square over the mesh of each expression mode, in mm: the basis's fingerprint."""

    @classmethod
    def of(cls, model: FaceModel, spec: str) -> "FaceModelMark":
        """The mark of a loaded model."""
        lengths = model.expression_basis.double().flatten(1).square().mean(1).sqrt() * 100
        return cls(spec, model.expression_names, tuple(float(f"{length:.6g}") for length in lengths.tolist()))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FaceModelMark":
        """From the plain types of a checkpoint."""
        lengths = tuple(float(value) for value in values["lengths"])
        return cls(str(values["spec"]), tuple(str(name) for name in values["expression_names"]), lengths)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for a checkpoint."""
        return {"spec": self.spec, "expression_names": list(self.expression_names), "lengths": list(self.lengths)}

    @cached_property
    def kind(self) -> str:
        """The spec without a path."""
        return self.spec.partition(":")[0]

    def check_model(self, model: FaceModel, where: object) -> None:
        """Raise `UserError` where `where`, which was made with this mark's model, meets another model."""
        other = FaceModelMark.of(model, model.name)
        same = self.expression_names == other.expression_names and bool(
            np.allclose(self.lengths, other.lengths, rtol=_TOLERANCE, atol=1e-6)
        )
        if not same:
            raise UserError(
                f"{where} was made with the face model {self.spec} of {len(self.expression_names)} expressions, not "
                f"with this {model.name} of {len(other.expression_names)}; use the same face model (and file)"
            )

    def check_coefficients(self, found: ClipCoefficients, where: object) -> None:
        """Raise `UserError` where the coefficients of `where` are not of this mark's model."""
        named = not found.expression_names or found.expression_names == self.expression_names
        count, wanted = found.expression.shape[1], len(self.lengths)
        if found.model_spec.partition(":")[0] != self.kind or count != wanted or not named:
            raise UserError(
                f"{where} has coefficients of the face model {found.model_spec} ({count} expressions), but {self.spec} "
                f"({wanted} expressions) is needed here; fit the clips with that model"
            )
