"""Evaluation on held-out clips: who is measured against what, intervals, determinism, other methods' videos."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.audio.lipsync_features import speech_features
from common.clip_scores import ClipScore, ClipScorer, HeldOut, held_out_clips, paired_difference, report
from common.data.corpus import Corpus
from common.errors import UserError
from common.metrics.image import image_quality, mouth_boxes
from common.metrics.lse import score_clip
from common.provenance import Provenance, ProvenanceConfig, read_label
from common.score_videos import names_of, score_folder
from common.syncnet import SyncNet
from common.video import VideoWriter, read_frames
from lipsync.evaluation import (
    COPIED,
    DUB,
    MASKED,
    REAL,
    Evaluation,
    dubbed,
    evaluate,
    other_speech,
    references,
)
from lipsync.infer import LipSync
from lipsync.networks import Wav2Lip
from lipsync.report import frame_rows, sheet, summary, warnings_of
from tests.lipsync.toy_talk import toy_landmarks, toy_talk


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return toy_talk(tmp_path_factory.mktemp("talk") / "corpus", train=1, frames=18)


@pytest.fixture(scope="module")
def clips(corpus: Corpus) -> list[HeldOut]:
    return held_out_clips(corpus, "val", shortest=12)


@pytest.fixture(scope="module")
def net() -> SyncNet:
    torch.manual_seed(0)
    return SyncNet(width=0.05, size=51).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> LipSync:
    torch.manual_seed(0)
    return LipSync(Wav2Lip(rows=80, size=32, width=0.06), speech_features("mel"), whole=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def result(model: LipSync, clips: list[HeldOut], net: SyncNet, saved: Path) -> Evaluation:
    return evaluate(model, clips, net, save=saved, label=Provenance.create(ProvenanceConfig(), config_hash="0"))


def test_held_out_clips_are_those_of_the_split_with_faces(corpus: Corpus) -> None:
    found = held_out_clips(corpus, "val")
    assert [clip.person for clip in found] == ["y"] * 3
    assert [clip.frames for clip in found] == [18, 16, 14]
    assert [clip.id for clip in held_out_clips(corpus, "val", limit=2)] == [found[0].id, found[2].id]
    with pytest.raises(UserError, match=r"the test split has .* and 19 frames .*; clips in it: 1, of 18 to 18"):
        held_out_clips(corpus, "test", shortest=19)


def test_references_lie_half_a_clip_away_and_have_faces() -> None:
    present = np.ones(11, bool)
    present[[0, 4]] = False
    sources = references(present)
    assert sources.tolist() == [-1, 6, 7, 8, -1, 9, 10, 1, 2, 3, 5]
    assert sorted(sources[present]) == sorted(np.flatnonzero(present))


def test_every_clip_gets_the_speech_of_another(clips: list[HeldOut]) -> None:
    assert [clip.id for clip in other_speech(clips)] == [clips[1].id, clips[2].id, clips[0].id]


def test_baselines_are_what_the_network_sees(model: LipSync, clips: list[HeldOut]) -> None:
    batches = list(dubbed(model, clips[0], clips[0]))
    assert [batch.first for batch in batches] == [0, 16]
    frames = {name: np.stack([f for batch in batches for f in batch.frames[name]]) for name in batches[0].frames}
    real = clips[0].clip.frames()
    assert (frames[REAL] == real).all()
    middle = toy_landmarks(1)[0, 48:68].mean(axis=0).astype(int)
    assert (frames[MASKED][:, middle[1], middle[0]] == 0).all()
    assert (frames[MASKED][:, :10] == real[:, :10]).all()
    # The mouth of the frame half a clip away, but for being resampled twice.
    other = np.roll(real, -9, axis=0)
    box = (slice(None), slice(middle[1] - 3, middle[1] + 4), slice(middle[0] - 5, middle[0] + 6))
    errors = [np.abs(frames[COPIED][box].astype(float) - source[box]).mean() for source in (other, real)]
    assert errors[0] < errors[1] / 3
    assert (frames[DUB] != real).any()


def test_frames_without_a_face_pass_through(model: LipSync, clips: list[HeldOut]) -> None:
    points = clips[0].landmarks.copy()
    points[:3] = np.nan
    hidden = HeldOut("x", "x", clips[0].clip, points, 0)
    first = next(iter(dubbed(model, hidden, hidden)))
    real = clips[0].clip.frames(0, 4)
    assert all((np.stack(images[:3]) == real[:3]).all() for images in first.frames.values())
    assert (first.frames[MASKED][3] != real[3]).any()


def test_figures_are_those_of_the_metrics_themselves(
    result: Evaluation, model: LipSync, clips: list[HeldOut], net: SyncNet
) -> None:
    clip = clips[1]
    frames = [image for batch in dubbed(model, clip, clip) for image in batch.frames[DUB]]
    figures = result.metrics["scores"][DUB][clip.id]
    sync = score_clip(net, frames, clip.clip.wave())
    assert figures["lse_d"] == pytest.approx(sync.distance, rel=1e-6)
    assert figures["lse_c"] == pytest.approx(sync.confidence, rel=1e-5)
    made, real = (torch.from_numpy(np.stack(list(part))).permute(0, 3, 1, 2) for part in (frames, clip.clip.frames()))
    image = image_quality(made, real, mouth_boxes(torch.from_numpy(clip.landmarks), 64, 64))
    for name in ("psnr", "ssim", "mouth_psnr", "mouth_ssim"):
        assert figures[name] == pytest.approx(float(image[name].double().mean()), rel=1e-6)


def test_every_method_is_measured_by_what_it_allows(result: Evaluation, clips: list[HeldOut]) -> None:
    methods = result.metrics["methods"]
    assert list(methods) == [REAL, DUB, MASKED, COPIED]
    assert all(figure["n"] == len(clips) for figures in methods.values() for figure in figures.values())
    assert [name for name, figures in methods.items() if "ssim" not in figures] == [REAL]
    assert [name for name, figures in methods.items() if "other_lse_d" in figures] == [REAL, DUB]
    assert methods[MASKED]["mouth_ssim"]["value"] < methods[COPIED]["mouth_ssim"]["value"]
    against = result.metrics["against"][MASKED]["mouth_ssim"]
    expected = methods[DUB]["mouth_ssim"]["value"] - methods[MASKED]["mouth_ssim"]["value"]
    assert against["value"] == pytest.approx(expected, abs=1e-7)
    assert against["low"] < against["value"] < against["high"]


def test_the_report_repeats_to_the_last_digit(
    result: Evaluation, model: LipSync, clips: list[HeldOut], net: SyncNet
) -> None:
    again = evaluate(model, clips, net)
    text = json.dumps(result.metrics, allow_nan=False)
    assert text == json.dumps(again.metrics, allow_nan=False)


def test_pictures_stand_side_by_side(result: Evaluation) -> None:
    rows = frame_rows(result)
    assert rows.shape == (128, 6 * 64, 3)  # two of each of three clips
    assert sheet(result).ndim == 3
    assert (rows[:64] != rows[64:]).any()


def test_the_summary_names_methods_and_warnings(result: Evaluation) -> None:
    metrics = result.metrics | {"split": "val"}
    metrics["warnings"] = warnings_of(metrics)
    text = summary(metrics)
    assert "3 clips of 1 people" in text
    for words in ("dubbed: LSE-D", "LSE-C with other speech", "dubbed minus masked input: ", "one person only"):
        assert words in text
    real = metrics["methods"][REAL]
    metrics["methods"] = metrics["methods"] | {REAL: real | {"other_lse_c": real["lse_c"]}}
    assert any("its LSE says nothing here" in warning for warning in warnings_of(metrics))


def test_saved_videos_score_as_the_frames_did(
    result: Evaluation, saved: Path, clips: list[HeldOut], net: SyncNet
) -> None:
    found = score_folder(net, saved, clips)
    assert (found.failed, found.unknown, found.resized) == ([], [], 0)
    for score in found.scores:
        before = result.metrics["scores"][DUB][score.clip]
        assert score.figures["ssim"] == pytest.approx(before["ssim"], abs=0.05)
        assert score.figures["psnr"] == pytest.approx(before["psnr"], abs=2)
        assert score.note == ""
    assert read_label(saved / f"{names_of(clips[0].id)[-1]}.mp4")["AIGC"]["Label"] == "1"


def test_other_methods_videos_may_be_larger_shorter_missing_or_broken(
    saved: Path, clips: list[HeldOut], net: SyncNet, tmp_path: Path
) -> None:
    frames = [
        frame.image.repeat(2, axis=0).repeat(2, axis=1) for frame in read_frames(clips[0].clip.folder / "video.mp4")
    ]
    path = tmp_path / f"{clips[0].id}.mp4"
    path.parent.mkdir(parents=True)
    with VideoWriter(path, (128, 128), 25) as writer:
        for image in frames[:15]:
            writer.write(image)
    (tmp_path / f"{names_of(clips[1].id)[-1]}.mp4").write_bytes(b"no video")
    shutil.copy(path, tmp_path / "stranger.mp4")
    (tmp_path / ".half.mp4").write_bytes(b"")
    found = score_folder(net, tmp_path, clips)
    assert [score.clip for score in found.scores] == [clips[0].id]
    assert found.scores[0].note == "the video is 3 frames shorter than the clip; only what both have is measured"
    assert found.scores[0].figures["ssim"] > 0.95
    assert found.resized == 1
    assert found.unknown == ["stranger"]
    assert found.failed[1] == (clips[2].id, "there is no video of it")
    with pytest.raises(UserError, match=r"holds no video of a held-out clip; name them after the clips, such as y"):
        score_folder(net, _empty(tmp_path), clips)
    with pytest.raises(UserError, match="no folder of videos at"):
        score_folder(net, tmp_path / "absent", clips)


def _empty(folder: Path) -> Path:
    made = folder / "empty"
    made.mkdir()
    return made


def scores(values: list[float], people: str) -> list[ClipScore]:
    return [
        ClipScore(f"c{i}", person, 10, {"lse_d": v}) for i, (v, person) in enumerate(zip(values, people, strict=True))
    ]


def test_intervals_are_over_people_where_there_are_enough() -> None:
    values = [float(i) for i in range(10)]
    assert report({"dub": scores(values, "aabbccddee")}, "toy")["resampled"] == "people"
    found = report({"dub": scores(values, "aabbccddaa")}, "toy")
    assert found["resampled"] == "clips"
    figure = found["methods"]["dub"]["lse_d"]
    assert figure["value"] == 4.5
    assert figure["high"] - figure["low"] == pytest.approx(2 * 1.96 * np.std(values) / np.sqrt(10), rel=0.1)


def test_paired_differences_use_the_clips_of_both() -> None:
    first = report({"dub": scores([1.0, 2.0, 3.0], "abc")}, "toy")["scores"]["dub"]
    second = report({"dub": scores([2.0, 3.5], "ab")}, "toy")["scores"]["dub"]
    found = paired_difference(first, second, "lse_d")
    assert found is not None
    assert (found.value, found.n) == (-1.25, 2)
    assert paired_difference(first, second, "ssim") is None


def test_a_clip_that_is_too_short_says_so(net: SyncNet, clips: list[HeldOut]) -> None:
    scorer = ClipScorer(net)
    scorer.add(list(clips[0].clip.frames(0, 5)))
    with pytest.raises(UserError, match="fewer than 6 frames of picture"):
        scorer.finish(clips[0], clips[0].clip.wave())


class Loudness(nn.Module):
    """A generator whose faces are as bright as their speech is loud."""

    rows, size = 80, 32

    def forward(self, audio: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
        return (audio.mean(dim=(1, 2, 3)) / 8 + 0.5)[:, None, None, None].expand(-1, 3, 32, 32)


def test_a_clips_own_sound_is_moved_by_its_offset(clips: list[HeldOut]) -> None:
    model = LipSync(Loudness(), speech_features("mel"), whole=True)
    clip, other = clips[0], clips[1]
    late = replace(clip, id="late", offset=2)

    def brightness(target: HeldOut, speech: HeldOut) -> np.ndarray:
        frames = [image for batch in dubbed(model, target, speech) for image in batch.frames[DUB]]
        return np.array([int(frame[32, 32, 0]) for frame in frames])

    plain = brightness(clip, clip)
    assert len(set(plain)) > 10
    assert brightness(late, late)[3:].tolist() == plain[1:-2].tolist()
    # Foreign speech lies where it is heard.
    assert brightness(late, other).tolist() == brightness(clip, other).tolist()
    assert len(brightness(clip, other)) == other.frames
