"""Drawing fits, and the command that fits a video."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.face3d import fit_video
from common.face3d.camera import Camera
from common.face3d.fit import Fit, fit_sequence
from common.face3d.fit_render import draw_fit, render_fit
from common.face3d.fit_start import transform
from common.face3d.fit_terms import Basis, project
from common.face3d.morphable import FaceModel, load_face_model
from common.face3d.render import render
from common.faces import load_backend
from common.faces.track import track_frames
from common.faces.tracks import Track, Tracking, choose
from common.provenance import describe_label
from common.video import Clip, VideoWriter, probe_video, read_frames, write_clip
from tests.common.toy_fit import QUICK, WHOLE, drawn, performed


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return load_face_model("builtin")


@pytest.fixture(scope="module")
def basis(model: FaceModel) -> Basis:
    return Basis.of(model, model.landmark_vertices).double()


def test_render_fit_places_the_face_in_any_crop(model: FaceModel, basis: Basis) -> None:
    truth = performed(model, 3)
    points = project(basis, Camera(224), truth) * 2 + torch.tensor([100.0, 40.0])
    fit = fit_sequence(model, points, size=(700, 600), settings=QUICK)
    crop = torch.tensor([[0.5, 0.1, -30.0], [-0.1, 0.5, 7.0]]).double()
    shown = render_fit(model, fit, torch.tensor([2, 0]), crop, 160, supersample=2)
    assert shown.image.shape == (2, 3, 160, 160)
    expected = transform(points[[2, 0]], crop)
    assert (shown.landmarks - expected).norm(dim=2).mean() < 0.3
    rest = render_fit(model, fit, torch.tensor([0]), crop, 160, expression=torch.zeros(1, model.sizes[1]))
    assert not torch.equal(rest.landmarks[0], shown.landmarks[1])
    with pytest.raises(UserError, match="frames 0 to 2"):
        render_fit(model, fit, torch.tensor([3]), crop, 160)
    with pytest.raises(UserError, match="not builtin"):
        render_fit(model, replace(fit, model_name="other"), torch.tensor([0]), crop, 160)


def test_a_fit_is_rendered_where_the_plain_renderer_draws_it(model: FaceModel, basis: Basis) -> None:
    truth = performed(model, 2)
    fit = fit_sequence(model, project(basis, Camera(224), truth), size=(224, 224), matrix=WHOLE, settings=QUICK)
    ours = render_fit(model, fit, torch.tensor([1]), torch.from_numpy(WHOLE), 224)
    theirs = render(
        model,
        fit.identity[None],
        fit.expression[1:],
        fit.albedo[None],
        fit.angles[1:],
        fit.translation[1:],
        fit.gamma[1:],
        224,
    )
    torch.testing.assert_close(ours.landmarks, theirs.landmarks, atol=1e-3, rtol=0)
    assert (ours.image - theirs.image).abs().mean() < 1e-3


def test_draw_fit_shows_three_panels(model: FaceModel, basis: Basis) -> None:
    truth = performed(model, 2)
    points = project(basis, Camera(224), truth)
    fit = fit_sequence(model, points, size=(224, 224), settings=QUICK)
    images = drawn(model, truth, torch.zeros(1, model.sizes[2]))
    points[1] = torch.nan
    pictures = list(draw_fit(model, fit, iter(images), points.numpy(), size=120))
    assert [picture.shape for picture in pictures] == [(120, 360, 3)] * 2
    green = [(picture == (64, 224, 96)).all(2).any() for picture in pictures]
    assert green == [True, False]
    with pytest.raises(UserError, match="end after 1 frames"):
        list(draw_fit(model, fit, images[:1]))


def test_a_corpus_clip_is_fitted_where_its_landmarks_are(model: FaceModel, basis: Basis, tmp_path: Path) -> None:
    truth = performed(model, 3)
    points = project(basis, Camera(224), truth).float().numpy()
    images = drawn(model, truth, torch.zeros(1, model.sizes[2]))
    write_clip(tmp_path, images, torch.zeros(1920), landmarks=points)
    clip = Clip(tmp_path)
    fit = fit_video.fit_clip(model, clip, settings=QUICK)
    assert len(fit) == 3
    crop = render_fit(model, fit, torch.arange(3), torch.from_numpy(WHOLE), 224)
    assert np.linalg.norm(crop.landmarks.numpy() - points, axis=2).mean() < 0.5
    assert not fit.gamma.any()
    assert fit_video.fit_clip(model, clip, photometric=True, settings=QUICK).gamma.any()
    (tmp_path / "landmarks.npy").unlink()
    with pytest.raises(UserError, match="has no landmarks"):
        fit_video.fit_clip(model, Clip(tmp_path))


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "head.mp4"
    with VideoWriter(path, (300, 260), 25) as writer:
        for shade in (100, 110, 120, 130):
            writer.write(np.full((260, 300, 3), shade, np.uint8))
    return path


def tracked(model: FaceModel, basis: Basis) -> Tracking:
    """A face in frames 1 to 3 of `video`."""
    points = project(basis, Camera(224), performed(model, 3)).float().numpy() + 20
    track = Track(
        0, 1, np.tile(np.array([30, 30, 200, 200], np.float32), (3, 1)), points, np.ones(3, np.float32), np.ones(3) > 0
    )
    return Tracking(4, 25.0, np.arange(4) / 25, (300, 260), (0,), [track])


def test_a_video_is_fitted_and_shown(
    model: FaceModel, basis: Basis, video: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fit_video, "track_video", lambda *_: tracked(model, basis))
    out = tmp_path / "new" / "fit.mp4"
    fit = fit_video.fit_video(video, "builtin", out, photometric=False, settings=QUICK)
    assert [(frame.index, frame.image.shape) for frame in read_frames(out)] == [(i, (320, 960, 3)) for i in range(4)]
    assert "AIGC" in describe_label(out)
    saved = Fit.load(out.with_suffix(".npz"))
    torch.testing.assert_close(saved.expression, fit.expression, rtol=0, atol=0)
    assert fit.confidence[0] == 0
    assert fit.summary().startswith("3 of 4 frames show the face; its landmarks lie 0.")
    assert sorted(path.name for path in out.parent.iterdir()) == ["fit.mp4", "fit.npz"]


def test_a_refused_video_leaves_nothing(video: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nobody = Tracking(4, 25.0, np.arange(4) / 25, (300, 260), (0,), [])
    monkeypatch.setattr(fit_video, "track_video", lambda *_: nobody)
    out = tmp_path / "new" / "fit.mp4"
    with pytest.raises(UserError, match="no face was found in 4 frames"):
        fit_video.fit_video(video, "builtin", out)
    assert not list(out.parent.iterdir())
    with pytest.raises(UserError, match="is the video itself"):
        fit_video.fit_video(video, "builtin", video)
    with pytest.raises(UserError, match="no such file"):
        fit_video.fit_video(tmp_path / "absent.mp4", "builtin", out)
    with pytest.raises(UserError, match=r"does not end in \.mp4"):
        fit_video.fit_video(video, "builtin", tmp_path / "fit.avi")
    with pytest.raises(UserError, match="unknown face model 'flame'"):
        fit_video.fit_video(video, "flame", out)


@pytest.mark.media
def test_real_clips(media: Path) -> None:
    model, backend = load_face_model("ict"), load_backend("dlib")
    clips = sorted((media / "real" / "clips").iterdir())
    assert clips
    for clip in clips:
        info = probe_video(clip)
        tracking = track_frames(((frame.time, frame.image) for frame in read_frames(clip, seconds=1.0)), backend)
        track = choose(tracking)
        assert len(track) == tracking.frames, clip
        fit = fit_sequence(model, track.landmarks, size=(info.width, info.height))
        assert (fit.confidence > 0.5).all(), clip
        assert fit.residual.median() < 3, clip
