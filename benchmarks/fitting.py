"""Fitting face models to clips: speed, and what is found: `python -m benchmarks fitting`.

A synthetic sentence with known coefficients, of the built-in model and of ICT-FaceKit where that is at hand, from
exact landmarks and from landmarks that tremble as a detector's do; then the clips in $SPEECHFACE_MEDIA/real/clips where
that is set. Both the clock and processor time are shown; other programs disturb the latter less.

What can be had from landmarks that tremble is bounded. The best linear estimator that is told every coefficient's true
mean, variance and correlation in time, and which of them move at all, has an AED of 20 to 21, 26 to 27 and 34 to 38 %
of the mean face's on the built-in model's first two sentences at 0.2, 0.4 and 0.8 px, and of 27 to 28, 38 to 39 and
49 to 53 % on ICT-FaceKit's; with pose and identity known too, of 18 to 20, 23 to 24 and 31 to 32 %, and of 15 to 16,
24 to 26 and 37 to 40 %. A fit is told none of this.
"""

import os
import time
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.timing import machine
from common.data.corpus import Corpus
from common.errors import UserError
from common.face3d.camera import Camera
from common.face3d.fit import Fit, fit_sequence
from common.face3d.fit_start import invert_affine, transform
from common.face3d.fit_terms import Basis, project
from common.face3d.morphable import FaceModel, find_ict, load_face_model
from common.faces import load_backend
from common.faces.track import track_frames
from common.faces.tracks import choose
from common.synthetic.talking import TalkingCorpusOptions, build_talking_corpus
from common.video import Clip, read_frames

FRAMES, SIZE = 100, 224
TREMBLES = (0.0, 0.2, 0.4, 0.8)
"""Standard deviations in px of the landmarks on faces of 224 px; a detector's on still faces is 0.4."""
COLOURED = (0.0, 0.4)
"""Those with which the photometric term is tried as well."""
SHUT = 1.0
"""Opening in px under which lips count as closed."""
AIMS = {False: 5.0, True: 1.0}
"""Frames a second on two cores without and with the photometric term."""


def timed_fit(model: FaceModel, landmarks: np.ndarray, images: np.ndarray, photometric: bool) -> tuple[Fit, str]:
    """A fit, and its speed in words."""
    size = (images.shape[2], images.shape[1])
    wall, used = time.perf_counter(), time.process_time()
    fit = fit_sequence(model, landmarks, size=size, images=images if photometric else None)
    wall, used = time.perf_counter() - wall, time.process_time() - used
    return fit, (
        f"{len(fit) / wall:.1f} frames/s by the clock, {len(fit) / used:.1f} a processor second, "
        f"{len(fit) / wall / AIMS[photometric]:.1f} times the aim of {AIMS[photometric]:.0f}"
    )


def compare(spec: str, folder: Path) -> None:
    """Print how near a fit comes to the coefficients that a synthetic clip was drawn with, and how fast."""
    options = TalkingCorpusOptions(identities=3, seconds=9, size=SIZE, face_model=spec, languages=["zh"])
    build_talking_corpus(folder, options, workers=0)
    corpus, model = Corpus.open(folder), load_face_model(spec)
    clip = Clip(corpus.file(str(corpus.items(kind="clip").iloc[0]["path"])))
    marks, known = clip.landmarks, clip.coefficients
    assert marks is not None
    assert known is not None
    count = min(len(clip), FRAMES)
    landmarks, images = np.asarray(marks[:count], np.float64), clip.frames(0, count)
    truth = torch.from_numpy(known["expression"][:count])
    basis = Basis.of(model, model.landmark_vertices).double()
    tremble = np.random.default_rng(0).standard_normal(landmarks.shape)
    for noise in TREMBLES:
        for photometric in (False, True) if noise in COLOURED else (False,):
            fit, speed = timed_fit(model, landmarks + noise * tremble, images, photometric)
            found = transform(project(basis, Camera(fit.size), fit.state()), invert_affine(fit.matrix)).numpy()
            error = np.linalg.norm(found - landmarks, axis=2).mean()
            share = (fit.expression - truth).abs().mean() / truth.abs().mean()
            opening, wrong = lip_opening(landmarks), lip_opening(found) - lip_opening(landmarks)
            shut = opening < SHUT
            print(
                f"{spec}, landmarks {noise} px off, {'with' if photometric else 'without'} colours: landmarks "
                f"{error:.2f} px from the truth (aim: 0.5), AED {share:.0%} of the mean face's (aim: 25 %), lips' "
                f"opening {np.abs(wrong).mean():.2f} px off and {wrong[shut].mean():+.2f} px too wide in {shut.sum()} "
                f"frames in which they are closed; {speed}"
            )


def lip_opening(landmarks: np.ndarray) -> np.ndarray:
    """Mean height (T,) of the mouth's opening in landmarks (T,68,2), in px."""
    opening: np.ndarray = (landmarks[:, [67, 66, 65], 1] - landmarks[:, [61, 62, 63], 1]).mean(1)
    return opening


def report(path: Path, model: FaceModel) -> None:
    """Print how well a real clip is fitted, and how fast."""
    frames = list(islice(read_frames(path), FRAMES))
    images = np.stack([frame.image for frame in frames])
    tracking = track_frames(((frame.time, frame.image) for frame in frames), load_backend("dlib"))
    track = choose(tracking)
    inside = slice(track.start, track.start + len(track))
    for photometric in (False, True):
        fit, speed = timed_fit(model, track.landmarks, images[inside], photometric)
        print(f"{path.name}, {'with' if photometric else 'without'} colours: {fit.summary()}; {speed}")


def main() -> None:
    torch.set_num_threads(2)
    print(machine())
    specs = ["builtin"]
    try:
        find_ict()
        specs.append("ict")
    except UserError as error:
        print(error)
    for spec in specs:
        with TemporaryDirectory() as name:
            compare(spec, Path(name) / "corpus")
    media = os.environ.get("SPEECHFACE_MEDIA")
    for path in sorted((Path(media) / "real" / "clips").iterdir()) if media else []:
        report(path, load_face_model(specs[-1]))


if __name__ == "__main__":
    main()
