"""Windows of stage 1 and frames of stage 2 are functions of their draw, and hostile corpora are refused in one line."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from common.config import load
from common.data.corpus import Corpus
from common.data.sampling import Draw
from common.errors import UserError
from common.face3d.morphable import load_face_model
from common.video import Clip
from dubbing3d.clips import DubClips, corpus_model
from dubbing3d.config import DataConfig, DubbingConfig
from dubbing3d.data import ExpressionData, ExpressionWindows, longest_run
from dubbing3d.guide import project
from dubbing3d.renderer_data import RenderedFrames, RendererData, faces_of
from dubbing3d.speech import SpeechWindows
from dubbing3d.train import fitted_speech
from tests.dubbing3d.toy_dub import toy_coefficients, toy_dub

SMOKE = Path(__file__).parents[2] / "experiments" / "dubbing3d" / "smoke.yaml"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    confidence = np.ones(24, np.float32)
    confidence[4:7] = 0.1
    return toy_dub(tmp_path_factory.mktemp("dub") / "corpus", confidence=confidence)


def config(corpus: Corpus, *words: str) -> DubbingConfig:
    return load(DubbingConfig, SMOKE, [f"data.root={corpus.root}", *words])


def clips(corpus: Corpus, split: str = "train", shortest: int = 8, **data: bool) -> DubClips:
    cfg = config(corpus).data
    _, mark = corpus_model(corpus, cfg)
    return DubClips(corpus, split, mark, DataConfig(**(vars(cfg) | data)), 64, shortest)


def test_clips_know_where_coefficients_are_sure(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    found = clips(corpus)
    assert len(found) == 3
    assert found.left_out == ["clips/a6"]
    assert "clips/a6" in capsys.readouterr().out
    assert found.starts(0, 8).tolist() == list(range(7, 17))
    assert found.starts(1, 8).tolist() == list(range(17))
    assert longest_run(found.matrices[0]) == (7, 17)
    with pytest.raises(UserError, match="25 fps, landmarks, and coefficients"):
        clips(corpus, shortest=25)


def test_windows_are_functions_of_their_draw(corpus: Corpus) -> None:
    speech = fitted_speech(corpus)
    plain, cached = (ExpressionWindows(clips(corpus, cache=cache), speech, 8) for cache in (False, True))
    for index in range(3):
        item, again, kept = plain[Draw(index, 5)], plain[Draw(index, 5)], cached[Draw(index, 5)]
        assert all(torch.equal(value, again[name]) and torch.equal(value, kept[name]) for name, value in item.items())
    assert item["mfcc"].shape == (8, 28, 12)
    stored = toy_coefficients(2, 24)
    start = next(s for s in range(17) if np.array_equal(stored["expression"][s : s + 8], item["expression"].numpy()))
    assert torch.equal(item["angles"], torch.from_numpy(stored["angles"][start : start + 8]))
    assert torch.equal(item["mfcc"], speech(Clip(corpus.file("clips/c2")).wave, start, 8))
    starts = {plain[Draw(1, seed)]["angles"][0, 0].item() for seed in range(20)}
    assert len(starts) > 5


def test_validation_reads_the_longest_stretch(corpus: Corpus) -> None:
    cfg = config(corpus)
    _, mark = corpus_model(corpus, cfg.data)
    data = ExpressionData(corpus, cfg, mark, SpeechWindows())
    assert [len(data.val_set[Draw(i, 0)]["mfcc"]) for i in range(2)] == [24, 22]
    rows = [toy_coefficients(i, 24)["expression"] for i in range(3)]
    rows[0] = np.delete(rows[0], slice(4, 7), axis=0)
    assert np.allclose(data.mean_expression().numpy(), np.concatenate(rows).mean(0), atol=1e-6)


def test_a_measured_offset_moves_the_sound(corpus: Corpus, tmp_path: Path) -> None:
    plain = clips(corpus)
    late = clips(corpus)
    late.offsets = [2] * 3
    speech = SpeechWindows()
    for cache in (False, True):
        plain.cached = late.cached = cache
        before, after = (ExpressionWindows(found, speech, 0)[Draw(1, 0)]["mfcc"] for found in (plain, late))
        assert torch.allclose(after[2:], before[:-2], atol=1e-5)


@pytest.mark.parametrize("cache", [False, True])
def test_rendered_frames_lie_in_their_crops(corpus: Corpus, cache: bool) -> None:
    cfg = config(corpus, "renderer.references=2", "renderer.recurrent=true", f"data.cache={cache}".lower())
    _, mark = corpus_model(corpus, cfg.data)
    data = RendererData(corpus, cfg, mark)
    item = data.train_set[Draw(0, 3)]
    assert item["target"].shape == item["before"].shape == (3, 64, 64)
    assert item["references"].shape == (2, 3, 64, 64)
    assert all(torch.equal(value, data.train_set[Draw(0, 3)][name]) for name, value in item.items())
    batch = torch.utils.data.default_collate([item, data.train_set[Draw(1, 4)]])
    model = load_face_model("builtin")
    faces, crops = faces_of(batch, slice(0, 1))
    xy, _, _ = project(model, faces, crops)
    assert torch.allclose(model.landmarks(xy), batch["landmarks"], atol=1e-2)
    faces, crops = faces_of(batch, slice(1, 3))
    assert (len(faces), crops.shape) == (4, (4, 2, 3))
    assert torch.equal(faces.expression[2:], batch["expression"][1, 1:3])
    faces, crops = faces_of(batch, slice(3, None))
    xy, _, _ = project(model, faces, crops)
    assert torch.allclose(model.landmarks(xy), batch["landmarks_before"], atol=1e-2)
    assert len(data.val_set) == 4


def test_the_frame_before_is_the_one_before_and_known(corpus: Corpus) -> None:
    cfg = config(corpus, "renderer.recurrent=true").renderer
    found = clips(corpus, shortest=11)
    found.matrices[0][[1, *range(7, 24)]] = np.nan
    known = set(np.flatnonzero(np.isfinite(found.matrices[0][:, 0, 0])))
    frames = RenderedFrames(found, cfg)
    expression = found.coefficients(0).expression
    seen = set()
    for step in range(30):
        item = frames[Draw(0, step)]
        target, before = (int((expression == row).all(dim=1).nonzero()[0, 0]) for row in item["expression"][[0, -1]])
        assert bool(item["follows"]) == (target - 1 in known)
        assert before == target - int(item["follows"])
        assert torch.equal(item["before"], found.crops(0, np.array([before]))[0])
        seen.add(target)
    assert seen == known


def test_references_lie_apart_and_frames_vary(corpus: Corpus) -> None:
    cfg = config(corpus).renderer
    frames = RenderedFrames(clips(corpus, shortest=11), cfg)
    found = clips(corpus, shortest=11).coefficients(0).expression
    for seed in range(10):
        rows = frames[Draw(0, seed)]["expression"]
        target, reference = (int(torch.nonzero((found == row).all(1))[0]) for row in rows)
        assert abs(target - reference) >= 10
        assert {target, reference}.isdisjoint({4, 5, 6})


def test_hostile_corpora_are_refused_in_one_line(tmp_path: Path) -> None:
    cases = {
        "foreign": ({"face_model": np.array("ict")}, "but builtin"),
        "longer": ({"confidence": np.ones(23, np.float32)}, "confidence is"),
        "nan": ({"angles": np.full((24, 3), np.nan, np.float32)}, "no numbers in angles"),
    }
    for name, (change, message) in cases.items():
        corpus = toy_dub(tmp_path / name, **change)
        cfg = config(corpus, "data.face_model=builtin")
        _, mark = corpus_model(corpus, cfg.data)
        with pytest.raises(UserError, match=message) as error:
            ExpressionData(corpus, cfg, mark, SpeechWindows())
        assert "\n" not in str(error.value)
        assert "a0" in str(error.value)
    bare = toy_dub(tmp_path / "bare")
    (bare.root / "clips" / "a0" / "coefficients.npz").unlink()
    with pytest.raises(UserError, match="python -m dubbing3d prepare"):
        corpus_model(bare, config(bare).data)
    (bare.root / "clips" / "a0" / "coefficients.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot read"):
        corpus_model(bare, config(bare).data)
    short = toy_dub(tmp_path / "short")
    found = toy_coefficients(0, 20)
    np.savez(short.root / "clips" / "a0" / "coefficients.npz", **found)
    _, mark = corpus_model(short, config(short).data)
    with pytest.raises(UserError, match="24 frames but coefficients of 20"):
        DubClips(short, "train", mark, config(short).data, 64, 8)


def test_a_corpus_without_clips_is_refused(identity_corpus: Corpus) -> None:
    with pytest.raises(UserError, match="holds no talking clips"):
        corpus_model(identity_corpus, DataConfig(root=str(identity_corpus.root)))
    assert isinstance(identity_corpus.items(kind="clip"), pd.DataFrame)
