"""LSE over corpora and folders: what is scored, failures by name, own weights, and going on after a kill."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common import sync_scoring
from common.cli import OWN_SYNCNET
from common.data.corpus import Corpus
from common.errors import UserError
from common.metrics.lse import SyncScore, score_clip
from common.sync_scoring import (
    Scored,
    Source,
    SyncReport,
    find_sources,
    load_extractor,
    own_config,
    own_weights,
    run_lse,
    score_sources,
)
from common.syncnet import SyncNet
from common.video import Clip, VideoWriter
from tests.common.toy_sync import toy_clip, toy_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return toy_corpus(tmp_path_factory.mktemp("lse") / "corpus", frames=30)


@pytest.fixture(scope="module")
def net() -> SyncNet:
    torch.manual_seed(0)
    found = SyncNet(width=0.03, size=64).eval()
    found.name = "own:12345678"
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Own training in two steps, into a weights folder of the test's own."""
    monkeypatch.setenv("SPEECHFACE_WEIGHTS", str(tmp_path / "weights"))

    def config(corpus: Path, device: str = "cpu") -> sync_scoring.SyncConfig:
        cfg = own_config(corpus, device)
        cfg.trainer.steps, cfg.trainer.save_every = 2, 1
        cfg.model.width, cfg.data.clips, cfg.data.windows = 0.03, 2, 8
        return cfg

    monkeypatch.setattr(sync_scoring, "own_config", config)


def video(path: Path, frames: int, *, sound: bool = True) -> Path:
    images, wave = toy_clip(0, frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, (64, 64), 25, audio=wave if sound else None) as writer:
        for image in images:
            writer.write(image)
    return path


def test_clips_of_the_wanted_splits_are_scored_with_their_own_sound(corpus: Corpus, net: SyncNet) -> None:
    (source,) = find_sources(corpus.root, ["val", "test"])
    assert (source.id, source.group) == ("clips/c3", "c")
    assert len(find_sources(corpus.root, ["train"])) == 4
    report = score_sources(net, [source], "lrs")
    clip = Clip(corpus.root / "clips" / "c3")
    assert report.items[0].scores == [score_clip(net, clip.frames(), clip.wave())]
    assert (report.result.extractor, report.result.protocol, report.result.n) == ("own:12345678", "lrs", 1)


def test_folders_and_single_videos_are_scored_as_well(tmp_path: Path) -> None:
    first, second = video(tmp_path / "b" / "x y.mp4", 12), tmp_path / "a.MKV"
    second.write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no video")
    assert [source.id for source in find_sources(tmp_path, ["val"])] == ["a.MKV", "b/x y.mp4"]
    assert [source.video for source in find_sources(first, ["val"])] == [first]
    assert find_sources(second, ["val"])[0].id == "a.MKV"


def test_what_cannot_be_scored_is_named_and_the_rest_counts(tmp_path: Path, net: SyncNet) -> None:
    video(tmp_path / "good.mp4", 20)
    video(tmp_path / "mute.mp4", 20, sound=False)
    video(tmp_path / "one.mp4", 1)
    (tmp_path / "torn.mp4").write_bytes(b"\0" * 100)
    report = score_sources(net, find_sources(tmp_path, ["val"]), "lrs")
    assert report.result.n == 1
    reasons = {item.source.id: item.failure for item in report.failures}
    assert set(reasons) == {"mute.mp4", "one.mp4", "torn.mp4"}
    assert "audio" in reasons["mute.mp4"]
    assert "too short to measure sync" in reasons["one.mp4"]
    assert all("\n" not in reason for reason in reasons.values())
    assert "3 without a score" in str(report)
    (tmp_path / "good.mp4").unlink()
    with pytest.raises(UserError, match=r"none of 3 videos has a score, mute\.mp4 since"):
        score_sources(net, find_sources(tmp_path, ["val"]), "lrs")


def test_targets_and_options_that_make_no_sense(tmp_path: Path, corpus: Corpus, net: SyncNet) -> None:
    for target, splits, message in (
        (tmp_path / "absent", ["val"], "there is nothing at"),
        (tmp_path, ["val"], "neither a corpus nor videos"),
        (corpus.root, ["test"], "no clips in the splits test"),
        (corpus.root, ["vla"], "unknown split 'vla'"),
    ):
        with pytest.raises(UserError, match=message):
            find_sources(target, splits)
    sources = find_sources(corpus.root, ["val"])
    with pytest.raises(UserError, match="unknown protocol 'lsr'"):
        score_sources(net, sources, "lsr")
    with pytest.raises(UserError, match="protocol lrs only"):
        score_sources(net, sources, "real", inject=True)
    with pytest.raises(UserError, match="unknown face backend"):
        score_sources(net, sources, "real", backend="haar")
    with pytest.raises(UserError, match="no SyncNet weights at"):
        load_extractor(str(tmp_path / "absent.ckpt"), corpus.root)
    with pytest.raises(UserError, match="is no corpus that an own SyncNet"):
        load_extractor("own", tmp_path)


def test_without_the_published_weights_the_own_ones_are_named(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECHFACE_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match="or give --weights own, which trains a SyncNet on this corpus"):
        load_extractor("official", corpus.root)
    with pytest.raises(UserError, match=r"--truth CORPUS\) with --weights own"):
        load_extractor("official", tmp_path)
    (tmp_path / "syncnet_v2.model").write_bytes(b"torn")
    with pytest.raises(UserError, match="SHA-256") as error:
        load_extractor("official", corpus.root)
    assert "own" not in str(error.value)


def test_an_interrupted_run_goes_on_with_what_it_has(
    corpus: Corpus, net: SyncNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, kept = find_sources(corpus.root, ["train"])[:3], tmp_path / "lse.json.partial"
    whole = score_sources(net, sources, "lrs", inject=True)
    seen: list[str] = []
    real = sync_scoring._score

    def spy(net_: SyncNet, source: Source, *rest: object) -> Scored:
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(source.id)
        return real(net_, source, *rest)

    monkeypatch.setattr(sync_scoring, "_score", spy)
    with pytest.raises(KeyboardInterrupt):
        score_sources(net, sources, "lrs", inject=True, kept=kept)
    with open(kept, "a") as file:
        file.write('{"id": "torn')
    monkeypatch.setattr(sync_scoring, "_score", real)
    assert score_sources(net, sources, "lrs", inject=True, kept=kept).to_dict() == whole.to_dict()
    other = SyncNet(width=0.03, size=64).eval()
    other.name = "own:87654321"
    assert score_sources(other, sources, "lrs", kept=kept).result.extractor == "own:87654321"
    assert json.loads(kept.read_text().split("\n")[0])["extractor"] == "own:87654321"


@pytest.mark.usefixtures("quick")
def test_own_weights_are_trained_once_for_each_corpus(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lse.json"
    words = {"protocol": "lrs", "splits": ["val"], "device": "cpu", "backend": "dlib", "inject": True, "out": out}
    text = run_lse(corpus.root, weights="own", **words)
    assert "training a SyncNet of its own" in capsys.readouterr().out
    values = json.loads(out.read_text())
    assert text.startswith(f"extractor {values['result']['extractor']}, protocol lrs, N 1")
    assert values["result"]["extractor"].startswith("own:")
    assert values["injected_offsets"]["n"] == 11
    assert len(values["scores"][0]["curve"]) == 31
    assert not out.with_name("lse.json.partial").exists()
    path = own_weights(corpus.root)
    said = capsys.readouterr().out
    assert "training" not in said
    assert str(path.parent) in said
    assert path.parent.parent.name in OWN_SYNCNET
    assert run_lse(corpus.root, weights=str(path), **words) == text


@pytest.mark.usefixtures("quick")
def test_own_training_goes_on_where_it_was_killed(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    config = sync_scoring.own_config
    short = config(corpus.root)
    short.trainer.kwargs["limit_train_batches"] = 1
    monkeypatch.setattr(sync_scoring, "own_config", lambda *_: short)
    path = own_weights(corpus.root)
    assert torch.load(path, weights_only=True)["step"] == 1
    monkeypatch.setattr(sync_scoring, "own_config", config)
    assert torch.load(own_weights(corpus.root), weights_only=True)["step"] == 2


def score(distance: float, confidence: float, offset: int = 0) -> SyncScore:
    return SyncScore(offset, distance, confidence, offset, distance, confidence, 10, (0.0,) * 31)


def test_latentsync_averages_the_tracks_of_a_video_and_real_counts_each(
    net: SyncNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"a": [score(6, 8, 2), score(8, 4, -1)], "b": [score(10, 1)]}
    sources = [Source(name, name, Path(name)) for name in found]
    monkeypatch.setattr(sync_scoring, "_score", lambda _, source, *__: Scored(source, found[source.id]))
    real = score_sources(net, sources, "real").result
    assert (real.n, real.lse_d.value, real.protocol) == (3, 8.0, "real[dlib]")
    mean = score_sources(net, sources, "latentsync").result
    assert (mean.n, mean.lse_d.value, mean.lse_c.value) == (2, 8.5, 3.5)
    assert mean.median_offset == 0


def test_report_lists_doubts_and_injected_offsets() -> None:
    noted = SyncScore(0, 1, 1, 0, 1, 1, 10, (0.0,) * 31, note="the sound is silent")
    source = Source("x", "x", Path("x"))
    items = [Scored(source, [noted], injected=[(k, k + (k > 3)) for k in range(-5, 6)] + [(5, 0)])] * 7
    from common.metrics.lse import summarize

    report = SyncReport(summarize([noted], extractor="own:1", protocol="lrs"), items)
    assert report.injected == (77, 84)
    assert "77 of 84 (91.7%)" in str(report)
    assert "7 doubtful scores" in str(report)
    assert "and 2 more" in str(report)
    assert np.isclose(report.to_dict()["injected_offsets"]["within_1"], 77 / 84)
