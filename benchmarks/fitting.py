"""Fitting face models to clips: speed, and what is found: `python -m benchmarks fitting`.

A synthetic sentence with known coefficients, of the built-in model and of ICT-FaceKit where that is at hand, from
exact landmarks and from landmarks that tremble as a detector's do; then the clips in $SPEECHFACE_MEDIA/real/clips where
that is set. Both the clock and processor time are shown; other programs disturb the latter less.
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
from common.face3d.fit_start import transform
from common.face3d.fit_terms import Basis, project
from common.face3d.morphable import FaceModel, find_ict, load_face_model
from common.faces import load_backend
from common.faces.track import track_frames
from common.faces.tracks import choose
from common.synthetic.talking import TalkingCorpusOptions, build_talking_corpus
from common.video import Clip, read_frames

FRAMES, SIZE = 100, 224
TREMBLE = 0.4
"""Standard deviation in px of a detector's landmarks on still faces of 224 px."""
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
    tremble = np.random.default_rng(0).standard_normal(landmarks.shape) * TREMBLE
    for noise, seen in (("exact", landmarks), (f"{TREMBLE} px off", landmarks + tremble)):
        for photometric in (False, True):
            fit, speed = timed_fit(model, seen, images, photometric)
            found = project(basis, Camera(fit.size), fit.state())
            error = (found - transform(torch.from_numpy(landmarks), fit.matrix)).norm(dim=2).mean()
            share = (fit.expression - truth).abs().mean() / truth.abs().mean()
            print(
                f"{spec}, landmarks {noise}, {'with' if photometric else 'without'} colours: landmarks {error:.2f} px "
                f"from the truth (aim: 0.5), AED {share:.0%} of the mean face's (aim: 25 %); {speed}"
            )


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
