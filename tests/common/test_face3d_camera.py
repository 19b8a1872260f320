"""Camera, pose, normals and light against hand numbers, scipy and plain loops."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from common.face3d.camera import Camera, pose, rotation
from common.face3d.lighting import harmonics, shade, vertex_normals


def test_projection_of_hand_computed_points() -> None:
    points = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, -1.0, 5.0]]])
    xy, depth = Camera(224).project(points)
    assert depth.tolist() == [[10.0, 10.0, 10.0, 5.0]]
    expected = torch.tensor([[[112.0, 112.0], [213.5, 112.0], [112.0, 10.5], [315.0, 315.0]]])
    torch.testing.assert_close(xy, expected)


def test_projection_equals_deep3d_matrix() -> None:
    # Deep3DFaceRecon: points with z' = 10 - z times [[f,0,c],[0,f,c],[0,0,1]]^T, y upwards
    points = torch.randn(2, 9, 3, dtype=torch.float64)
    matrix = torch.tensor([[1015.0, 0, 112], [0, 1015, 112], [0, 0, 1]], dtype=torch.float64)
    camera = points.clone()
    camera[..., 2] = 10 - camera[..., 2]
    projected = camera @ matrix.T
    upwards = projected[..., :2] / projected[..., 2:]
    xy, depth = Camera(224).project(points)
    torch.testing.assert_close(xy[..., 0], upwards[..., 0])
    torch.testing.assert_close(xy[..., 1], 224 - upwards[..., 1])
    torch.testing.assert_close(depth, projected[..., 2])


@pytest.mark.parametrize("size", [7, 64, 336])
def test_focal_length_scales_with_the_size(size: int) -> None:
    points = torch.randn(1, 5, 3)
    small, _ = Camera(224).project(points)
    scaled, _ = Camera(size).project(points)
    torch.testing.assert_close(scaled, small * size / 224)
    assert Camera(size, focal=50.0).focal == 50


def test_a_camera_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        Camera(0)


def test_rotation_equals_the_product_of_deep3d_matrices() -> None:
    angles = torch.randn(4, 3, dtype=torch.float64)
    for matrix, (x, y, z) in zip(rotation(angles), angles.tolist(), strict=True):
        about_x = np.array([[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]])
        about_y = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
        about_z = np.array([[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]])
        np.testing.assert_allclose(matrix.numpy(), (about_z @ about_y @ about_x).T, atol=1e-12)


def test_signs_of_the_angles() -> None:
    nose = torch.tensor([[[0.0, 0.0, 1.0]]])
    zero = torch.zeros(1, 3)
    pitched, yawed = (pose(nose, torch.tensor([a]), zero)[0, 0] for a in ([0.3, 0, 0], [0, 0.3, 0]))
    assert pitched[1] < 0
    assert yawed[0] > 0
    crown = pose(torch.tensor([[[0.0, 1.0, 0.0]]]), torch.tensor([[0.0, 0, 0.3]]), torch.tensor([[0.0, 0, 2]]))[0, 0]
    assert crown[0] < 0
    assert crown[2] == 2


def mesh(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 11, 3, generator=generator), torch.randint(11, (17, 3), generator=generator)


def test_vertex_normals_equal_a_loop() -> None:
    vertices, triangles = mesh(0)
    expected = np.zeros((2, 11, 3))
    for image in range(2):
        for a, b, c in triangles.tolist():
            p, q, r = vertices[image, [a, b, c]].double().numpy()
            normal = np.cross(q - p, r - p)
            if len({a, b, c}) == 3:
                for corner in (a, b, c):
                    expected[image, corner] += normal / np.linalg.norm(normal)
    expected /= np.linalg.norm(expected, axis=2, keepdims=True)
    np.testing.assert_allclose(vertex_normals(vertices, triangles).numpy(), expected, atol=1e-5)


def test_normals_point_outwards_and_survive_degenerate_triangles() -> None:
    cube = torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-1, 1) for z in (-1, 1)] + [[5.0, 5, 5]])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    triangles = torch.tensor([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))] + [(0, 0, 1), (0, 0, 0)])
    vertices = cube[None].requires_grad_()
    normals = vertex_normals(vertices, triangles)
    assert ((normals[0, :8] * cube[:8]).sum(1) > 1).all()
    assert (normals[0, 8] == 0).all()
    normals[..., 0].sum().backward()
    assert vertices.grad is not None
    assert vertices.grad.abs().max() < 10


def test_harmonics_are_orthonormal_but_for_the_lobes() -> None:
    # Gauss-Legendre in cos(theta), even steps in phi: exact for products of second-order functions
    heights, weights = np.polynomial.legendre.leggauss(6)
    turns = np.arange(12) * 2 * math.pi / 12
    level = np.sqrt(1 - heights**2)[:, None]
    normals = np.stack(
        [level * np.cos(turns), level * np.sin(turns), np.broadcast_to(heights[:, None], (6, 12))], axis=2
    )
    lobes = np.array([math.pi] + [2 * math.pi / math.sqrt(3)] * 3 + [2 * math.pi / math.sqrt(8)] * 5)
    values = harmonics(torch.from_numpy(normals)).numpy() / lobes
    gram = np.einsum("hti,htj,h->ij", values, values, weights) * 2 * math.pi / 12
    np.testing.assert_allclose(gram, np.eye(9), atol=1e-6)


def test_light_of_hand_computed_normals() -> None:
    y0, y1, y2 = 0.886227, 1.772454, 2.427032
    towards = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    albedo = torch.full((1, 3, 3), 0.5)
    plain = shade(albedo, towards, torch.zeros(1, 27))
    torch.testing.assert_close(plain, torch.full((1, 3, 3), 0.4 * y0))
    gamma = torch.zeros(1, 3, 9)
    gamma[0, 0, 2], gamma[0, 1, 1], gamma[0, 2, 8] = 1.0, 1.0, 1.0
    lit = shade(albedo, towards, gamma.view(1, 27))[0] / 0.5 - 0.8 * y0
    expected = torch.tensor([[y1, 0, 0], [0, -y1, -y2 / 2], [0, 0, y2 / 2]])
    torch.testing.assert_close(lit, expected, atol=1e-5, rtol=0)
