"""Both stages' figures against numbers computed another way, and renderers whose figures are known beforehand."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from common.data.corpus import Corpus
from common.face3d.camera import Camera, pose
from common.face3d.morphable import FaceModel, load_face_model
from common.syncnet import SyncNet
from dubbing3d.clips import DubClips, corpus_model
from dubbing3d.config import DataConfig
from dubbing3d.crop_mask import MaskKind
from dubbing3d.data import longest_run
from dubbing3d.evaluation import COPY, RENDERED, WARP, _Clip, _Turning, evaluate_renderer
from dubbing3d.expression_evaluation import (
    MEAN,
    PREDICTED,
    REAL,
    TRUE,
    People,
    drawn_guides,
    evaluate_expression,
)
from dubbing3d.guide import FaceFrames, project
from dubbing3d.likeness import Likeness
from dubbing3d.render_parts import RenderParts

SIZE, FRAMES = 64, 10


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return load_face_model("builtin")


@pytest.fixture(scope="module")
def people(talking_corpus: Corpus) -> People:
    """The test split's clip."""
    _, mark = corpus_model(talking_corpus, DataConfig())
    clips = DubClips(talking_corpus, "test", mark, DataConfig(), SIZE, 8)
    return People.of(talking_corpus, "test", clips)


@pytest.fixture(scope="module")
def likeness() -> Likeness:
    return Likeness()


class Brighter:
    """A renderer that gives the frame itself, moved by `shift` in [-1,1]."""

    name, batch = "brighter", 4
    mask: MaskKind = "model"

    def __init__(self, shift: float) -> None:
        self.shift = shift
        self.begun: list[int] = []

    def crop_size(self, side: float) -> int:
        return SIZE

    def begin(self, crops: Tensor, faces: FaceFrames, matrices: Tensor, masks: Tensor, landmarks: Tensor) -> None:
        self.begun.append(len(crops))

    def render(
        self, crops: Tensor, old: FaceFrames, expression: Tensor, matrices: Tensor, masks: Tensor, landmarks: Tensor
    ) -> RenderParts:
        return RenderParts(crops + self.shift, crops[:, :2], crops, crops, masks)


class Recalling(Brighter):
    """A renderer that gives the first reference."""

    def begin(self, crops: Tensor, faces: FaceFrames, matrices: Tensor, masks: Tensor, landmarks: Tensor) -> None:
        self.kept = crops[:1]

    def render(
        self, crops: Tensor, old: FaceFrames, expression: Tensor, matrices: Tensor, masks: Tensor, landmarks: Tensor
    ) -> RenderParts:
        return RenderParts(self.kept.expand_as(crops), crops[:, :2], crops, crops, masks)


def test_a_perfect_renderer_is_perfect_and_baselines_are_not(
    model: FaceModel, people: People, likeness: Likeness
) -> None:
    renderer = Brighter(0.0)
    found = evaluate_renderer(renderer, model, people, likeness, references=2, frames=FRAMES)
    methods = found.metrics["methods"]
    best = {name: methods[RENDERED][name]["value"] for name in ("psnr", "ssim", "lmd", "csim", "hidden_psnr")}
    assert best == pytest.approx({"psnr": 100, "ssim": 1, "lmd": 0, "csim": 1, "hidden_psnr": 100})
    assert methods[RENDERED]["flicker_ratio"]["value"] == pytest.approx(1)
    for name in (WARP, COPY):
        assert methods[name]["mouth_psnr"]["value"] < 60
        assert methods[name]["lmd"]["value"] > 0.2
    assert methods[WARP]["mouth_psnr"]["value"] > methods[COPY]["mouth_psnr"]["value"]
    assert set(renderer.begun) == {2}
    assert found.metrics["against"][COPY]["psnr"]["value"] == pytest.approx(100 - methods[COPY]["psnr"]["value"])
    assert found.metrics["people"] == 1
    assert len(found.frames) == FRAMES


def test_who_recalls_the_reference_scores_as_copying_it_and_as_other_software_says(
    model: FaceModel, people: People, likeness: Likeness
) -> None:
    found = evaluate_renderer(Recalling(0), model, people, likeness, frames=FRAMES)
    methods = found.metrics["methods"]
    assert methods[RENDERED] == methods[COPY]
    values = np.array([(row.figures["psnr"], row.figures["ssim"]) for row in found.frames])
    for real, drawn in zip(found.pictures[REAL], found.pictures[RENDERED], strict=True):
        psnr = peak_signal_noise_ratio(real, drawn, data_range=255)
        ssim = structural_similarity(
            real, drawn, data_range=255, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert np.abs(values - (psnr, ssim)).max(axis=1).min() < 1e-3
    assert methods[RENDERED]["psnr"]["value"] == pytest.approx(values[:, 0].mean(), rel=1e-5)


def test_references_lie_in_the_other_half(model: FaceModel, people: People) -> None:
    start, count = longest_run(people.clips.matrices[0])
    clip = _Clip(people, 0, model, "model", 0, 3)
    seen = []
    for frames, references in clip.halves():
        assert np.abs(frames[:, None] - references[None]).min() >= 10
        assert len(references) == 3
        seen += frames.tolist()
    assert seen == list(range(start, start + count))


def test_a_reference_takes_on_the_frames_place_and_pose(model: FaceModel, people: People) -> None:
    clip = _Clip(people, 0, model, "model", 0, 1)
    reference, target = clip.show(np.array([30])), clip.show(np.array([3, 4, 5]))
    turned = _Turning.between(reference, target).with_expression(target.faces.expression)
    ours, _, _ = project(model, turned, reference.matrices.expand(3, 2, 3))
    theirs, _, _ = project(model, target.faces, target.matrices)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_expressions_that_are_off_by_a_constant_score_it(model: FaceModel, people: People) -> None:
    torch.manual_seed(0)
    net = SyncNet(width=0.05, size=51).eval().requires_grad_(False)
    found = people.clips.coefficients(0)
    start, _ = longest_run(people.clips.matrices[0])
    true = found.expression[start : start + 12]
    mean = torch.full((true.shape[1],), 0.05)
    shift = torch.zeros(true.shape[1])
    shift[model.expression_index("jawOpen")] = 0.5

    def predict(index: int, start: int, count: int) -> Tensor:
        return found.expression[start : start + count] + shift

    result = evaluate_expression(predict, mean, model, people, net, frames=12)
    ours = {name: figure["value"] for name, figure in result.metrics["methods"][PREDICTED].items()}
    mouth = result.metrics["mouth_expressions"]
    assert ours["aed"] == pytest.approx(0.5 / len(shift))
    assert ours["aed_mouth"] == pytest.approx(0.5 / mouth)
    assert ours["aed_l2"] == pytest.approx(0.5)
    expected = float(np.abs(true.numpy() - 0.05).mean())
    assert result.metrics["methods"][MEAN]["aed"]["value"] == pytest.approx(expected, rel=1e-5)
    assert ours["aed_share"] == pytest.approx(0.5 / len(shift) / expected, rel=1e-5)
    places = []
    for expression in (true + shift, true):  # through the whole mesh
        part = slice(start, start + 12)
        shape = model.shape(found.identity.expand(12, -1), expression)
        posed = pose(shape, found.angles[part], found.translation[part])
        places.append(model.landmarks(Camera(found.size).project(posed)[0]).numpy())
    away = np.linalg.norm(places[0] - places[1], axis=2)
    assert ours["lmd"] == pytest.approx(away.mean(), rel=1e-3)
    assert ours["mouth_lmd"] == pytest.approx(away[:, 48:].mean(), rel=1e-3)
    assert set(result.metrics["methods"][TRUE]) >= {"lse_c", "lse_d"}
    assert "aed" not in result.metrics["methods"][TRUE]


def test_guides_lie_where_the_clips_face_lies(model: FaceModel, people: People) -> None:
    start, _ = longest_run(people.clips.matrices[0])
    frames = np.array([start + 9, start + 2])
    expression = people.clips.coefficients(0).expression[torch.from_numpy(frames)]
    pictures = list(drawn_guides(model, people.clips, 0, frames, expression))
    points = people.clips.clips[0].landmarks
    assert points is not None
    for picture, frame in zip(pictures, frames, strict=True):
        assert picture.shape == (SIZE, SIZE, 3)
        assert picture[0, 0].tolist() == [0, 0, 0]
        inner = points[frame, 17:].astype(int)  # without the jaw's outline
        assert (picture[inner[:, 1], inner[:, 0]].sum(axis=1) > 0).mean() > 0.95
