"""Dubbing as a whole, on films of the built-in face: which pixels change, which expressions are shown, when."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.audio.io import load_audio
from common.dubbing.report import DubReport
from common.errors import UserError
from common.face3d.fit import Fit
from dubbing3d.dub import dub
from dubbing3d.dubber import DubSettings, Performer
from dubbing3d.face_plan import blend_shares, smoothed
from dubbing3d.infer import FaceRenderer, SampleWindow, at_times, predict_expressions
from dubbing3d.speech import SpeechWindows, reader
from dubbing3d.warp_renderer import WarpRenderer
from tests.common.toy_faces import ToyEmbedder
from tests.dubbing3d.toy_film import Film, Painter, Rememberer, Saying, model, save_speech, stage_one
from tests.lipsync.toy_dub import KeptFrames, all_of_it, none_of_it, save_exactly


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> type[KeptFrames]:
    monkeypatch.setattr("common.faces.track.load_embedder", lambda *_, **__: ToyEmbedder())
    monkeypatch.setattr("common.dubbing.stream.VideoWriter", KeptFrames)
    return KeptFrames


def run(
    tmp_path: Path, film: Film, seconds: float, renderer: FaceRenderer | None = None, *, detect: Any = all_of_it,
    jaw: float = 0.6, sheet: Path | None = None, frames: Sequence[int] | None = None, **settings: Any,
) -> tuple[DubReport, list[np.ndarray]]:  # fmt: skip
    """The report, and the film's frames in the order in which they should be shown."""
    video = save_exactly(tmp_path / "v.mp4", list(film.frames))
    report = dub(
        Performer(stage_one(jaw), renderer or Painter(), model()),
        video,
        save_speech(tmp_path / "a.wav", seconds),
        tmp_path / "o.mp4",
        DubSettings(colours=False, references=2, **settings),
        backend=film,
        detect=detect,
        sheet=sheet,
        progress=False,
    )
    order = range(len(film.frames)) if frames is None else frames
    return report, [film.frames[index] for index in order]


def jaws(painter: Painter) -> np.ndarray:
    """How far the jaw is to open, of each face that was drawn."""
    found: np.ndarray = torch.cat(painter.wanted)[:, model().expression_index("jawOpen")].numpy()
    return found


def test_only_the_lower_face_changes_and_everything_else_keeps_its_bits(tmp_path: Path, kept: type[KeptFrames]) -> None:
    film, painter = Film([0.0, 0.2, 0.5, 0.2, 0.0, 0.1]), Painter()
    report, images = run(tmp_path, film, 0.24, painter, seam="plain")
    assert (report.frames, report.without_face, report.silent) == (6, 0, 0)
    assert painter.begun == [2]
    for before, after, points in zip(images, kept.made.images, film.points.numpy(), strict=True):
        rows, columns = np.nonzero((before != after).any(axis=2))
        assert rows.min() > points[29, 1]
        assert rows.max() < points[8, 1] + 20
        assert columns.min() > points[0, 0] - 8
        assert columns.max() < points[16, 0] + 8
        x, y = points[[62, 66]].mean(axis=0).astype(int)
        assert np.abs(after[y, x].astype(int) - (255, 0, 0)).max() <= 16  # the mask is small here and its edge near


def test_speech_moves_the_mouth_and_leaves_the_lids(tmp_path: Path) -> None:
    painter = Painter()
    run(tmp_path, Film([0.1] * 6), 0.24, painter, rest="model")
    np.testing.assert_allclose(jaws(painter), 0.6, atol=1e-5)
    lids = model().expression_index("eyeBlink_L")
    own = torch.cat([face.expression for face in painter.old])
    torch.testing.assert_close(torch.cat(painter.wanted)[:, lids], own[:, lids])
    assert own[:, lids].max() < 0.5


def test_silence_closes_the_mouth_as_this_person_does(tmp_path: Path) -> None:
    painter = Painter()
    report, _ = run(tmp_path, Film([0.0, 0.4, 0.5, 0.4, 0.0, 0.5]), 0.6, painter, detect=none_of_it)
    assert report.silent == report.frames == 15
    assert "no speech was found" in report.text()
    assert jaws(painter).max() < 0.15
    painter = Painter()
    run(tmp_path, Film([0.0] * 6), 0.6, painter, detect=none_of_it, silence="ignore", rest="model")
    np.testing.assert_allclose(jaws(painter), 0.6, atol=1e-5)


def test_frames_without_a_face_pass_untouched_and_lips_come_and_go_softly(
    tmp_path: Path, kept: type[KeptFrames]
) -> None:
    film, painter = Film([0.1] * 30, without=range(8, 22)), Rememberer()
    report, images = run(tmp_path, film, 1.2, painter, rest="model")
    changed = [bool((a != b).any()) for a, b in zip(images, kept.made.images, strict=True)]
    assert changed == [not 8 <= t < 22 for t in range(30)]
    assert report.without_face == 14
    assert painter.restarts == [8]
    found = jaws(painter)
    np.testing.assert_allclose(found[:4], 0.6, atol=1e-5)
    assert (np.diff(found[4:8]) < -0.05).all()
    assert (np.diff(found[8:11]) > 0.05).all()


def test_a_renderer_with_a_memory_forgets_at_cuts_forth_and_back(tmp_path: Path) -> None:
    film, painter = Film([0.1] * 8), Rememberer()
    film.frames[5:, 16:, :, :2] = 255 - film.frames[5:, 16:, :, :2]
    run(tmp_path, film, 0.48, painter)
    assert sum(map(len, painter.wanted)) == 12  # 0 to 7, then back to 3
    assert painter.restarts == [5, 10]


def test_a_face_that_is_in_profile_throughout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="never seen well enough"):
        run(tmp_path, Film([0.0] * 3, turn=1.4), 0.12)


def test_longer_speech_plays_forth_and_back_and_shorter_speech_stops_or_not(
    tmp_path: Path, kept: type[KeptFrames]
) -> None:
    film = Film([0.0, 0.1, 0.2, 0.1])
    _, images = run(tmp_path, film, 0.4, frames=[0, 1, 2, 3, 2, 1, 0, 1, 2, 3])
    assert len(kept.made.images) == 10
    for before, after in zip(images, kept.made.images, strict=True):
        assert (before[:20] == after[:20]).all()
    assert run(tmp_path, film, 0.08)[0].frames == 2
    painter = Painter()
    report, _ = run(tmp_path, film, 0.08, painter, when_shorter="keep", detect=lambda wave: [(0, len(wave))])
    assert report.frames == 4


def test_a_still_image_speaks(tmp_path: Path, kept: type[KeptFrames]) -> None:
    film = Film([0.0])
    Image.fromarray(film.frames[0]).save(tmp_path / "still.png")
    report = dub(
        Performer(stage_one(), WarpRenderer(model()), model()),
        tmp_path / "still.png",
        save_speech(tmp_path / "a.wav", 0.2),
        tmp_path / "o.mp4",
        DubSettings(colours=False, references=1, rest="model"),
        backend=film,
        detect=all_of_it,
        progress=False,
    )
    assert report.frames == 5
    changed = (kept.made.images[2] != film.frames[0]).any(axis=2)
    assert 0.01 < changed.mean() < 0.2


def test_the_debug_sheet_shows_every_step(tmp_path: Path) -> None:
    film = Film([0.0, 0.3, 0.5, 0.3, 0.0, 0.1])
    run(tmp_path, film, 0.24, WarpRenderer(model()), sheet=tmp_path / "s.png", rest="model")
    with Image.open(tmp_path / "s.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[1] == 7 * 176
    assert pixels.shape[0] > 5 * 176
    assert (pixels[18:194, 176:352] != pixels[18:194, 6 * 176 :]).any()


def test_expressions_of_a_long_recording_come_in_parts_that_overlap(tmp_path: Path) -> None:
    loaded = stage_one()
    found = predict_expressions(loaded, save_speech(tmp_path / "a.wav", 9.0), 9.0)
    assert found.shape == (225, model().sizes[1])
    assert isinstance(loaded.network, Saying)
    assert loaded.network.lengths == [125, 150, 50]
    times = np.array([0.0, 0.02, 9.5])
    values = at_times(torch.arange(225.0)[:, None], times)
    torch.testing.assert_close(values[:, 0], torch.tensor([0.0, 0.5, 224.0]))


def test_windows_of_a_streamed_recording_are_those_of_the_whole(tmp_path: Path) -> None:
    path, speech = save_speech(tmp_path / "a.wav", 6.0), SpeechWindows()
    whole = speech(reader(load_audio(path, 16000)), 0, 150)
    wave = load_audio(path, 16000).numpy()
    ahead = SampleWindow(iter(np.split(wave, range(5000, len(wave), 5000))))
    parts = [speech(ahead.read, start, 40)[10:30] for start in range(-10, 120, 20)]
    torch.testing.assert_close(torch.cat(parts)[:140], whole[:140])


def test_shares_fall_towards_gaps_and_not_towards_cuts() -> None:
    present = np.ones(30, bool)
    present[12:15] = False
    shares = blend_shares(present, (0, 22), 25.0)
    np.testing.assert_allclose(shares[[0, 7, 11, 12, 15, 19, 21, 22, 29]], [1, 1, 0.25, 0, 0.25, 1, 1, 1, 1])


def test_smoothing_takes_the_jitter_of_poses_and_stays_within_parts() -> None:
    rng = np.random.default_rng(0)
    angles = np.concatenate([np.zeros((20, 3)), np.ones((20, 3))]) + 0.02 * rng.standard_normal((40, 3))
    zero = torch.zeros
    fit = Fit(
        "builtin", 224, zero(1), zero(1), zero(40, 1), torch.from_numpy(angles).float(), zero(40, 3), zero(40, 27),
        torch.ones(40), zero(40), zero(40, 2, 3),
    )  # fmt: skip
    calm = smoothed(fit, [slice(0, 20), slice(20, 40)], 25.0).angles
    assert calm[:20].abs().max() < 0.03
    assert (calm[20:] - 1).abs().max() < 0.03
    assert calm.diff(dim=0)[:19].abs().mean() < 0.3 * fit.angles.diff(dim=0)[:19].abs().mean()
