"""From videos and clips to their fits, and a video that shows how well one fits: `python -m common fit`."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from common.config import config_hash
from common.errors import UserError
from common.face3d.fit import Fit, fit_sequence
from common.face3d.fit_render import PANEL, draw_fit
from common.face3d.fit_settings import FitSettings
from common.face3d.morphable import FaceModel, load_face_model
from common.faces import load_backend
from common.faces.track import track_video
from common.faces.tracks import Tracking, choose
from common.progress import Bars
from common.provenance import Provenance, ProvenanceConfig
from common.video import Clip, VideoWriter, probe_video, read_frames

_READ = 32
"""Pictures of a clip that are read at once."""


def fit_video(
    video: Path,
    model_spec: str,
    out: Path,
    *,
    photometric: bool = True,
    device: str = "cpu",
    backend: str = "dlib",
    face: str = "largest",
    settings: FitSettings | None = None,
    provenance: ProvenanceConfig | None = None,
) -> Fit:
    """Fit a face model to a video; write a video beside which the fit can be judged, and the coefficients.

    Args:
        video: any video.
        model_spec: `load_face_model`'s: builtin, ict, ict:PATH, bfm09:PATH.
        out: the MP4 to write: frame, overlay, render (`draw_fit`), with the video's sound and clock. The coefficients
            go beside it with the suffix .npz (`Fit.load`).
        photometric: whether the colours refine the landmarks' fit.
        device: torch device of the face model.
        backend: face backend, dlib or face_alignment.
        face: which one, as `faces.tracks.choose` takes it.
        settings: None is the default.
        provenance: who answers for the pictures.

    Returns:
        The fit of all frames of the video; frames without the face have confidence 0.

    Raises:
        UserError: an unreadable video, no face, an output that cannot be written.
    """
    info, settings = probe_video(video), settings or FitSettings()
    if out.exists() and out.samefile(video):
        raise UserError(f"{out} is the video itself; choose another output")
    model, finder = load_face_model(model_spec).to(device), load_backend(backend, device)
    label = Provenance.create(
        provenance or ProvenanceConfig(), config_hash=config_hash({"model": model_spec, **asdict(settings)})
    )
    sound = video if info.has_audio else None
    # opened first: a place that cannot be written is known before the work, and what fails leaves nothing there
    with VideoWriter(out, (3 * PANEL, PANEL), info.fps, audio=sound, provenance=label) as writer:
        tracking = track_video(video, finder)
        landmarks = _of_all_frames(tracking, face)
        with Bars() as bar:
            task = bar.add_task("fitting", total=tracking.frames)
            fit = fit_sequence(
                model,
                landmarks,
                size=tracking.size,
                images=(frame.image for frame in read_frames(video)) if photometric else None,
                settings=settings,
                shots=tracking.shots,
                progress=lambda frames: bar.advance(task, frames),
            )
            task = bar.add_task("drawing", total=tracking.frames)
            drawn = draw_fit(model, fit, (frame.image for frame in read_frames(video)), landmarks)
            for picture, time in zip(drawn, tracking.times, strict=True):
                writer.write(picture, float(time))
                bar.advance(task)
        fit.save(out.with_suffix(".npz"))
    return fit


def fit_clip(model: FaceModel, clip: Clip, *, photometric: bool = False, settings: FitSettings | None = None) -> Fit:
    """Fit a face model to a corpus clip, from its own landmarks.

    The pictures are read a few at a time. The landmarks are the clip's, so that `Fit.matrix` maps the clip's pixels to
    the fit's frame.

    Raises:
        UserError: a clip without landmarks, or what `fit_sequence` refuses.
    """
    landmarks = clip.landmarks
    if landmarks is None:
        raise UserError(f"{clip.folder} has no landmarks; prepare the corpus again")
    parts = (clip.frames(first, min(_READ, len(clip) - first)) for first in range(0, len(clip), _READ))
    images = (image for part in parts for image in part) if photometric else None
    return fit_sequence(model, landmarks, size=clip.size, images=images, settings=settings)


def _of_all_frames(tracking: Tracking, face: str) -> np.ndarray:
    """Landmarks (T,68,2) of one track over the whole video, NaN where it is not."""
    track = choose(tracking, face)
    landmarks = np.full((tracking.frames, 68, 2), np.nan, np.float32)
    landmarks[track.start : track.start + len(track)] = track.landmarks
    return landmarks
