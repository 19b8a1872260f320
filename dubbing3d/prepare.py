"""Fits a face model to every clip of a corpus, so that real clips can be trained on; resumable, clip by clip."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from common.data.corpus import Corpus
from common.data.prepare import worker_count
from common.errors import UserError
from common.face3d.fit import fit_sequence
from common.face3d.morphable import FaceModel, load_face_model
from common.files import atomic_path
from common.progress import counted
from common.video import Clip
from common.video.clip import COEFFICIENTS
from dubbing3d.coefficients import ClipCoefficients

_CHUNK = 64  # frames that are decoded at once


@dataclass
class FitReport:
    """What became of a corpus's clips."""

    fitted: int = 0
    kept: int = 0
    """had coefficients of this face model already"""
    failed: list[str] = field(default_factory=list)
    """a line for each clip that shows nothing to fit; training leaves it out"""
    confidence: float = float("nan")
    """mean over the clips fitted now"""

    def text(self) -> str:
        """Lines for the user."""
        lines = [f"clips fitted: {self.fitted}, mean confidence {self.confidence:.2f}; had coefficients: {self.kept}"]
        return "\n".join([*lines, *(f"not fitted, left out of training: {line}" for line in self.failed)])


def fit_corpus(
    corpus: Corpus,
    spec: str,
    *,
    photometric: bool = True,
    workers: int | None = None,
    fresh: bool = False,
    device: str = "cpu",
) -> FitReport:
    """Write `coefficients.npz` into every clip of a corpus that has none of the face model `spec`.

    Each file is written when its clip is done, so that a run that was killed goes on where it stopped.

    Args:
        corpus: with talking clips.
        spec: of `load_face_model`.
        photometric: refine by colours, which also gives albedo and light.
        workers: processes; 0 works in this one, None takes all cores.
        fresh: fit clips again that have coefficients of this model.
        device: torch device of the fits.

    Raises:
        UserError: no clips, another model's coefficients without `fresh`, an unknown or missing face model.
    """
    load_face_model(spec)  # a wrong name should fail before anything is done
    folders = [corpus.file(str(path)) for path in corpus.items(kind="clip")["path"]]
    if not folders:
        raise UserError(f"{corpus.root} holds no talking clips")
    todo = [folder for folder in folders if fresh or not _has(folder, spec)]
    report = FitReport(kept=len(folders) - len(todo))
    work = partial(fit_clip, spec=spec, photometric=photometric, device=device)
    sure = []
    done = _done(todo, work, worker_count(workers, len(todo)))
    for folder, found in counted(done, "fitting clips", len(todo)):
        if isinstance(found, str):
            report.failed.append(f"{folder.relative_to(corpus.root)}: {found}")
        else:
            report.fitted += 1
            sure.append(found)
    report.failed.sort()
    report.confidence = float(np.mean(sure)) if sure else float("nan")
    return report


def fit_clip(folder: Path, *, spec: str, photometric: bool, device: str = "cpu") -> float | str:
    """Fit one clip and write its coefficients; returns the mean confidence, or why there is nothing to fit.

    A clip without a face gets coefficients of confidence 0, so that training leaves it out and no later run tries it.
    """
    clip, model = Clip(folder), load_face_model(spec)
    points = clip.landmarks
    failure, found = "", None
    if points is None:
        failure = "it has no landmarks"
    else:
        try:
            images = _frames(clip) if photometric else None
            fit = fit_sequence(model.to(device), points, size=clip.size, images=images)
            found = ClipCoefficients.from_fit(fit, model, spec)
        except UserError as error:
            failure = str(error)
    if found is None:
        found = _nothing(len(clip), model, spec)
    with atomic_path(folder / COEFFICIENTS) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **found.arrays())
    return failure or float(found.confidence.mean())


def _has(folder: Path, spec: str) -> bool:
    """Whether a clip has coefficients of the model; `UserError` where it has those of another."""
    if not (folder / COEFFICIENTS).exists():
        return False
    stored = ClipCoefficients.load(Clip(folder).coefficients, folder).model_spec
    if stored != spec:
        raise UserError(
            f"{folder} has coefficients of the face model {stored}, not {spec}; give --refit to replace all clips'"
        )
    return True


def _nothing(frames: int, model: FaceModel, spec: str) -> ClipCoefficients:
    people, expressions, colours = model.sizes
    return ClipCoefficients(
        model_spec=spec,
        expression_names=model.expression_names,
        identity=torch.zeros(people),
        albedo=torch.zeros(colours),
        expression=torch.zeros(frames, expressions),
        angles=torch.zeros(frames, 3),
        translation=torch.zeros(frames, 3),
        gamma=torch.zeros(frames, 27),
        confidence=torch.zeros(frames),
        matrix=torch.eye(2, 3).double().expand(frames, 2, 3),
    )


def _frames(clip: Clip) -> Iterator[np.ndarray]:
    for begin in range(0, len(clip), _CHUNK):
        yield from clip.frames(begin, min(_CHUNK, len(clip) - begin))


def _done(folders: Sequence[Path], work: "partial[float | str]", workers: int) -> Iterator[tuple[Path, float | str]]:
    """Results as they come."""
    if workers == 0:
        for folder in folders:
            yield folder, work(folder)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        futures = {pool.submit(work, folder): folder for folder in folders}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)
