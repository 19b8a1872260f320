"""Milliseconds per frame of the rasteriser and of whole renders at 224 px: `python -m benchmarks.raster`.

The built-in head always; the full ICT-FaceKit mesh where its npz is found.
"""

import torch

from benchmarks.timing import interleaved_medians, print_table
from common.errors import UserError
from common.face3d import ict
from common.face3d.camera import Camera, pose
from common.face3d.lighting import vertex_normals
from common.face3d.morphable import FaceModel, find_ict, load_face_model
from common.face3d.raster import rasterise
from common.face3d.render import render

SIZE, AIM = 224, 25.0


def coefficients(model: FaceModel, batch: int, device: str) -> list[torch.Tensor]:
    """Identity, expression, albedo, angles, translation and light of `batch` people who look about."""
    generator = torch.Generator().manual_seed(0)
    scales = (1.0, 0.1, 1.0, 0.1, 0.05, 0.1)
    widths = (*model.sizes, 3, 3, 27)
    values = [s * torch.randn(batch, w, generator=generator) for s, w in zip(scales, widths, strict=True)]
    return [value.to(device) for value in values]


def measure(title: str, model: FaceModel, triangles: torch.Tensor, device: str) -> None:
    """Print the table of one model; `triangles` may hold more than the model draws."""
    model, triangles = model.to(device), triangles.to(device)
    functions = {}
    batches = {}
    for batch in (1, 8):
        values = coefficients(model, batch, device)
        posed = pose(model.shape(values[0], values[1]), values[3], values[4])
        xy, depth = Camera(SIZE).project(posed)
        functions |= {
            f"rasterise, batch {batch}": lambda xy=xy, depth=depth: rasterise(xy, depth, triangles, (SIZE, SIZE)),
            f"vertex normals, batch {batch}": lambda posed=posed: vertex_normals(posed, triangles),
            f"whole render, batch {batch}": lambda values=values: render(model, *values, SIZE),
            f"whole render, 2 x 2 samples, batch {batch}": lambda values=values: render(
                model, *values, SIZE, supersample=2
            ),
        }
        batches |= dict.fromkeys(list(functions)[-4:], batch)
    rows = {
        name: (median / batches[name], least / batches[name])
        for name, (median, least) in interleaved_medians(functions, repeats=9, warmup=2).items()
    }
    print_table(f"{title}, {len(triangles)} triangles, {SIZE} px, per frame, {device}", rows)
    print(f"rasterise, batch 8: {rows['rasterise, batch 8'][0] * 1e3:.1f} ms per frame (aim: {AIM:.0f} on two cores)")


@torch.no_grad()
def main() -> None:
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        model = load_face_model("builtin")
        measure("built-in head", model, model.triangles, device)
        try:
            path = find_ict()
        except UserError as error:
            print(f"\nICT-FaceKit skipped: {error}")
            continue
        triangles = torch.from_numpy(ict.read_npz(path)["triangles"].astype("int64"))
        measure("ICT-FaceKit", load_face_model("ict"), triangles, device)


if __name__ == "__main__":
    main()
