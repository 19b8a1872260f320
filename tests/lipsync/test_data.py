"""Windows of both stages against plain loops over the clip, whatever is cached, moved or missing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.audio.lipsync_features import speech_features
from common.config import load
from common.data.corpus import Corpus
from common.data.sampling import Draw
from common.errors import UserError
from common.faces.tracks import crop_frames, crop_matrices
from common.video import Clip
from lipsync.clips import SpeakingClips
from lipsync.config import DataConfig, ExpertConfig, LipSyncConfig
from lipsync.data import SHORTEST, DrawnWindows, ExpertData, ExpertStretches, ExpertWindows, LipSyncData, open_corpus
from tests.lipsync.toy_talk import toy_talk

EXPERT = ExpertConfig(windows=5, span=20)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return toy_talk(tmp_path_factory.mktemp("talk") / "corpus")


def faces_of(corpus: Corpus, name: str) -> torch.Tensor:
    """Face crops (3,T,32,32) BGR, one after the other, as dubbing cuts them."""
    clip = Clip(corpus.root / "clips" / name)
    points = clip.landmarks
    assert points is not None
    crops = crop_frames(clip.frames(), crop_matrices(points, (0,), 32, framing="face"), 32)
    return torch.from_numpy(np.stack(list(crops))[..., ::-1].copy()).permute(3, 0, 1, 2)


@pytest.mark.parametrize("cache", [True, False])
def test_expert_windows_hold_the_frames_and_the_sound_beside_them(corpus: Corpus, cache: bool) -> None:
    clips = SpeakingClips(corpus, "train", 32, EXPERT.span, cache=cache)
    assert clips.people == ["a", "b", "c"]
    assert clips.left_out == ["clips/a7"]
    speech = speech_features("mel")
    data = ExpertWindows(clips, speech, EXPERT, flip=False)
    whole, features = faces_of(corpus, "b1"), speech(Clip(corpus.root / "clips" / "b1").wave()[None])[0]
    begins = set()
    for seed in range(8):
        item = data[Draw(1, seed)]
        assert torch.equal(item["frames"], data[Draw(1, seed)]["frames"])
        (begin,) = [t for t in range(21) if torch.equal(whole[:, t : t + 20], item["frames"])]
        assert item["starts"].tolist() == sorted(set(item["starts"].tolist()))
        for row, start in enumerate(item["starts"].tolist()):
            first = int(80 * (begin + start) / 25)
            torch.testing.assert_close(item["audio"][row, 0], features[:, first : first + 16], rtol=1e-5, atol=1e-5)
        begins.add(begin)
    assert len(begins) > 3


def test_drawn_windows_have_a_reference_apart_and_the_trainings_alignment(corpus: Corpus) -> None:
    clips = SpeakingClips(corpus, "train", 32, SHORTEST, cache=True)
    speech, judge = speech_features("mel+mfcc"), speech_features("mel")
    data = DrawnWindows(clips, speech, judge, landmarks=True)
    clip = Clip(corpus.root / "clips" / "c2")
    whole = faces_of(corpus, "c2")
    heard, judged = (found(clip.wave()[None])[0] for found in (speech, judge))
    starts = set()
    for seed in range(30):
        item = data[Draw(2, seed)]
        places = {
            name: next(t for t in range(36) if torch.equal(whole[:, t : t + 5], item[name]))
            for name in ("target", "reference")
        }
        start = places["target"]
        assert abs(start - places["reference"]) >= 5
        for frame in range(5):
            first = int(80 * (start + frame - 1) / 25)
            torch.testing.assert_close(item["audio"][frame, 0], heard[:, first : first + 16])
        assert first + 16 <= heard.shape[1]
        begin = int(80 * start / 25)
        torch.testing.assert_close(item["sync_audio"][0], judged[:, begin : begin + 16])
        starts.add(start)
    assert min(starts) >= 1
    mouth = item["landmarks"][:, 48:68].mean(dim=(0, 1))
    assert 10 < mouth[0] < 22
    assert 17 < mouth[1] < 30  # in the half that is masked


def test_frames_without_a_face_are_never_drawn(tmp_path: Path) -> None:
    corpus = toy_talk(tmp_path / "c", train=1, hidden=(12, 24))
    clips = SpeakingClips(corpus, "train", 32, SHORTEST)
    assert clips.starts(0, 5).tolist() == [*range(8), *range(24, 36)]
    assert clips.starts(0, 20).tolist() == []
    data = DrawnWindows(clips, speech_features("mel"), speech_features("mel"))
    whole = SpeakingClips(corpus, "train", 32, SHORTEST, cache=True)
    for seed in range(20):
        torch.testing.assert_close(
            data[Draw(0, seed)]["target"],
            DrawnWindows(whole, data.speech.speech, data.speech.speech)[Draw(0, seed)]["target"],
        )
    with pytest.raises(UserError, match=r"no clip of the train split has .* a face in 20 .*; clips in it"):
        SpeakingClips(corpus, "train", 32, 20)


@pytest.mark.parametrize("offset", [3, -4])
def test_a_measured_offset_moves_the_sound(tmp_path: Path, offset: int) -> None:
    moved, plain = (toy_talk(tmp_path / str(value), train=1, offset=value) for value in (offset, None))
    speech = speech_features("mel")
    windows = [
        DrawnWindows(SpeakingClips(corpus, "train", 32, SHORTEST), speech, speech).speech for corpus in (moved, plain)
    ]
    frames = np.arange(10, 20)
    torch.testing.assert_close(windows[0].sync(0, frames), windows[1].sync(0, frames - offset))
    torch.testing.assert_close(windows[0].drawing(0, frames), windows[1].drawing(0, frames - offset))
    assert [item.clips.unmeasured for item in windows] == [0, 1]


def test_stretches_are_the_same_at_each_call_and_no_longer_than_wanted(corpus: Corpus) -> None:
    clips = SpeakingClips(corpus, "val", 32, 20)
    speech = speech_features("mel")
    for longest, count in ((100, 40), (30, 30)):
        item = ExpertStretches(clips, speech, longest)[Draw(0, 0)]
        assert item["frames"].shape[1] == count
        assert item["starts"].tolist() == list(range(count - 4))
        assert torch.equal(item["frames"], ExpertStretches(clips, speech, longest)[Draw(0, 5)]["frames"])


def test_mirroring_is_shared_by_target_and_reference(corpus: Corpus) -> None:
    clips, speech = SpeakingClips(corpus, "train", 32, SHORTEST, cache=True), speech_features("mel")
    plain, flipped = (DrawnWindows(clips, speech, speech, flip=flip) for flip in (False, True))
    mirrored = 0
    for seed in range(10):
        a, b = plain[Draw(0, seed)], flipped[Draw(0, seed)]
        change = -1 if torch.equal(a["target"].flip(-1), b["target"]) else 3
        mirrored += change == -1
        for name in ("target", "reference"):
            assert torch.equal(a[name].flip(-1) if change == -1 else a[name], b[name])
    assert 1 < mirrored < 9


def test_data_of_both_stages_and_what_cannot_be_cut(corpus: Corpus) -> None:
    words = ["run.package=lipsync", "data.size=32", "expert.span=20", "evaluation.validation_windows=3"]
    cfg = load(LipSyncConfig, None, words)
    speech = speech_features("mel")
    assert len(ExpertData(corpus, cfg, speech).val_set or ()) == 3
    data = LipSyncData(corpus, cfg, speech, speech)
    assert len(data.shown) == 9
    assert open_corpus(DataConfig(root=str(corpus.root))).root == corpus.root
    with pytest.raises(UserError, match="expert: wants"):
        load(LipSyncConfig, None, ["expert.windows=30"])
    with pytest.raises(UserError, match="multiple of 32"):
        load(LipSyncConfig, None, ["data.size=100"])
    with pytest.raises(UserError, match="min_offset"):
        load(LipSyncConfig, None, ["expert.min_offset=[1, 5]"])
    with pytest.raises(UserError, match="sum of at most 1"):
        load(LipSyncConfig, None, ["weights.sync=0.8", "weights.adversarial=0.3"])
