"""Fitting a corpus: every clip once, foreign coefficients refused, clips without a face left out of training."""

from pathlib import Path

import numpy as np
import pytest

import dubbing3d.prepare as module
from common.data.corpus import Corpus
from common.errors import UserError
from common.face3d.morphable import load_face_model
from common.video import Clip
from dubbing3d.clips import DubClips
from dubbing3d.coefficients import ClipCoefficients, FaceModelMark
from dubbing3d.config import DataConfig
from dubbing3d.prepare import fit_clip, fit_corpus
from tests.dubbing3d.toy_dub import toy_dub


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Clips without coefficients; the second shows no face."""
    corpus = toy_dub(tmp_path / "corpus", frames=8, train=2)
    for path in corpus.root.rglob("coefficients.npz"):
        path.rename(path.with_name("truth.npz"))
    np.save(corpus.root / "clips" / "b1" / "landmarks.npy", np.full((8, 68, 2), np.nan, np.float32))
    return corpus


def test_every_clip_is_fitted_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    report = fit_corpus(corpus, "builtin", photometric=False, workers=0)
    assert (report.fitted, report.kept, len(report.failed)) == (5, 0, 1)
    assert "clips/b1" in report.text()
    clip = Clip(corpus.file("clips/a0"))
    found = ClipCoefficients.load(clip.coefficients)
    model = load_face_model("builtin")
    assert (found.model_spec, len(found)) == ("builtin", 8)
    assert found.confidence.min() > 0.5
    with np.load(clip.folder / "truth.npz") as truth:
        jaw = model.expression_index("jawOpen")
        assert np.corrcoef(found.expression[:, jaw].numpy(), truth["expression"][:, jaw])[0, 1] > 0.9
    lost = ClipCoefficients.load(Clip(corpus.file("clips/b1")).coefficients)
    assert not lost.confidence.any()
    clips = DubClips(corpus, "train", FaceModelMark.of(model, "builtin"), DataConfig(), 64, 8)
    assert clips.ids == ["clips/a0"]
    monkeypatch.setattr(module, "fit_clip", lambda *_, **__: pytest.fail("a clip is fitted again"))
    again = fit_corpus(corpus, "builtin", photometric=False, workers=0)
    assert (again.fitted, again.kept) == (0, 6)


def test_a_killed_run_goes_on(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Path] = []

    def stop(folder: Path, **words: object) -> float | str:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(folder)
        return fit_clip(folder, spec="builtin", photometric=False)

    monkeypatch.setattr(module, "fit_clip", stop)
    with pytest.raises(KeyboardInterrupt):
        fit_corpus(corpus, "builtin", workers=0)
    monkeypatch.undo()
    report = fit_corpus(corpus, "builtin", photometric=False, workers=0)
    assert (report.fitted + len(report.failed), report.kept) == (4, 2)


def test_another_models_coefficients_are_not_replaced_unasked(corpus: Corpus) -> None:
    path = corpus.file("clips/a0") / "coefficients.npz"
    path.with_name("truth.npz").rename(path)
    with np.load(path) as stored:
        np.savez(path, **(dict(stored) | {"face_model": np.array("ict")}))
    with pytest.raises(UserError, match="give --refit"):
        fit_corpus(corpus, "builtin", workers=0)
    with pytest.raises(UserError, match="unknown face model"):
        fit_corpus(corpus, "flame", workers=0)
