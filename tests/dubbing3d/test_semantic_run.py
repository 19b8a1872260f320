"""Drawn mouths from end to end: they hide the true one, and stage 1 trains on them, is measured and dubs with them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.audio.lipsync_features import speech_features
from common.checkpoints import LAST
from common.config import load
from common.data.corpus import Corpus
from common.runfolder import METRICS
from common.video import Clip, probe_video
from dubbing3d.build import load_expression
from dubbing3d.clips import DubClips, corpus_model
from dubbing3d.config import DataConfig, DubbingConfig
from dubbing3d.dub import dub_files
from dubbing3d.dubber import DubSettings
from dubbing3d.report import DubbingSettings, evaluate_checkpoint
from dubbing3d.semantic import DrawnMouths, far_frames
from dubbing3d.train import train
from lipsync.infer import LipSync
from tests.common.toy_faces import ToyEmbedder
from tests.dubbing3d.test_dub_command import save_teacher
from tests.dubbing3d.test_expression_training import SMOKE, losses
from tests.dubbing3d.toy_film import Film, save_speech
from tests.lipsync.toy_dub import save_exactly


class Tell(nn.Module):
    """In place of a generator: shows all that it is shown."""

    size, rows = 32, 80

    def forward(self, _: Tensor, faces: Tensor) -> Tensor:
        return (faces[:, :3] + faces[:, 3:]) / 2


def test_the_true_mouth_does_not_reach_the_images(talking_corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the mouths of the frames look like, the images are the same; their references' are seen."""
    tell = LipSync(Tell(), speech_features("mel"), whole=True)
    monkeypatch.setattr(LipSync, "load", classmethod(lambda *_, **__: (tell, None)))
    _, mark = corpus_model(talking_corpus, DataConfig())
    clips = DubClips(talking_corpus, "test", mark, DataConfig(), 64, 8)
    count = len(clips.clips[0])
    references = set(far_frames(np.isfinite(clips.matrices[0]).all(axis=(1, 2))).tolist())
    chosen = [start for start in (3, count // 2 - 6, count - 12) if not references & set(range(start, start + 9))]
    assert len(chosen) > 1
    drawn = DrawnMouths(clips, Path("lips.ckpt"), 32)
    before = {start: drawn(0, start, 9) for start in chosen}
    points, read = clips.clips[0].landmarks, Clip.frames
    assert points is not None

    def with_other_mouths(of: set[int], clip: Clip, start: int, length: int) -> np.ndarray:
        images = read(clip, start, length).copy()
        for frame in of & set(range(start, start + length)):
            top = int(points[frame, 48:, 1].min())
            images[frame - start, top:] = 255 - images[frame - start, top:]
        return images

    monkeypatch.setattr(Clip, "frames", lambda *given: with_other_mouths(set(range(count)) - references, *given))
    assert all(torch.equal(drawn(0, start, 9), images) for start, images in before.items())
    monkeypatch.setattr(Clip, "frames", lambda *given: with_other_mouths(references, *given))
    assert not any(torch.equal(drawn(0, start, 9), images) for start, images in before.items())


def test_stage_one_trains_is_measured_and_dubs_with_drawn_mouths(
    talking_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = save_teacher(tmp_path / "lips.ckpt")
    fixed = [f"data.root={talking_corpus.root}", f"run.out={tmp_path}", "wandb.mode=disabled", "trainer.threads=1"]
    fixed += ["trainer.progress=false", "renderer.train=false", "expression.semantic=true", "data.cache=true"]
    folder = train(load(DubbingConfig, SMOKE, [*fixed, f"semantic.checkpoint={teacher}", "semantic.size=32"]))
    assert all(np.isfinite(float(row["train/loss"])) for row in losses(folder))
    network = load_expression(folder / LAST).network
    heard, generator = torch.zeros(1, 8, 28, 12), torch.Generator().manual_seed(0)
    looks = [torch.rand(1, 8, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2)]
    assert network.semantic
    assert not torch.equal(*(network(heard, images) for images in looks))

    evaluate_checkpoint(folder / LAST, "", folder, "cpu", DubbingSettings("none", frames=12))
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    assert metrics["methods"]["predicted"]["aed"]["value"] > 0

    film = Film([0.0, 0.2, 0.4, 0.2])
    monkeypatch.setattr("common.faces.track.load_embedder", lambda *_, **__: ToyEmbedder())
    monkeypatch.setattr("dubbing3d.dub.load_backend", lambda *_: film)
    video, speech = save_exactly(tmp_path / "v.mp4", list(film.frames)), save_speech(tmp_path / "a.wav", 0.2)
    settings = DubSettings(colours=False)
    dub_files(folder / LAST, "warp", video, speech, tmp_path / "o.mp4", settings, semantic=teacher)
    assert probe_video(tmp_path / "o.mp4").frames == 5
