"""Own training of SyncNet: losses against loops, windows against the clip, resuming, and that it learns a toy."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.audio.psf import psf_mfcc
from common.checkpoints import LAST
from common.config import config_hash, from_dict, load, to_dict
from common.data.corpus import Corpus, Item, write_manifest
from common.data.sampling import Draw
from common.errors import UserError
from common.metrics.lse import injected_offsets
from common.syncnet import SyncNet, embed_frames, fingerprint, load_syncnet, prepare_frames
from common.syncnet_train import (
    SyncClips,
    SyncConfig,
    SyncDataConfig,
    SyncTraining,
    SyncWindows,
    build_syncnet,
    embed_video,
    infonce_loss,
    margin_loss,
    squared_distances,
    train_syncnet,
)
from common.video import Clip
from tests.common.toy_sync import toy_clip, toy_corpus

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments" / "common").glob("*.yaml"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return toy_corpus(tmp_path_factory.mktemp("sync") / "corpus")


def config(corpus: Corpus, out: Path, *words: str) -> SyncConfig:
    base = [
        f"data.root={corpus.root}", f"run.out={out}", "run.package=common", "run.name=toy", "wandb.mode=disabled",
        "trainer.accelerator=cpu", "trainer.devices=1", "trainer.progress=false", "trainer.log_every=1",
        "trainer.val_every=0", "trainer.save_every=1", "model.width=0.03", "data.clips=2", "data.windows=8",
    ]  # fmt: skip
    return load(SyncConfig, None, [*base, *words])


def test_distances_equal_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 7, generator=generator), torch.randn(2, 5, 7, generator=generator)
    found = squared_distances(a, b)
    for clip in range(2):
        for i in range(3):
            for j in range(5):
                assert float(found[clip, i, j]) == pytest.approx(float((a[clip, i] - b[clip, j]).square().sum()), 1e-4)
    assert (squared_distances(a, a).diagonal(dim1=1, dim2=2).abs() < 1e-5).all()


def test_infonce_equals_a_loop_and_falls_to_zero_for_right_pairs() -> None:
    distances = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1)) * 3
    expected = 0.0
    for matrix in (*distances, *distances.mT):
        for i in range(6):
            scores = torch.exp(-matrix[i] / 0.5)
            expected -= float(torch.log(scores[i] / scores.sum())) / 36
    assert float(infonce_loss(distances, 0.5)) == pytest.approx(expected, rel=1e-5)
    apart = torch.full((1, 6, 6), 200.0)
    apart[0].fill_diagonal_(0)
    assert float(infonce_loss(apart)) == pytest.approx(0, abs=1e-6)


def test_margin_equals_the_published_loop() -> None:
    distances = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(2)) * 9
    right = [float(matrix[i, i]) for matrix in distances for i in range(5)]
    others = sorted(float(matrix[i, j]) for matrix in distances for i in range(5) for j in range(5) if i != j)
    wrong = [max(0.0, 2 - value**0.5) ** 2 for value in others]
    assert float(margin_loss(distances, 2.0)) == pytest.approx((sum(right) / 10 + sum(wrong) / 40) / 2, rel=1e-5)
    assert float(margin_loss(distances, 2.0, 0.2)) == pytest.approx(
        (sum(right) / 10 + sum(wrong[:8]) / 8) / 2, rel=1e-5
    )
    apart = torch.full((1, 4, 4), 99.0)
    apart[0].fill_diagonal_(0)
    assert float(margin_loss(apart, 4.0)) == 0
    points = torch.zeros(1, 3, 2, requires_grad=True)
    margin_loss(squared_distances(points, points)).backward()
    assert points.grad is not None
    assert points.grad.isfinite().all()


@pytest.mark.parametrize("offset", [0, 3, -3])
@pytest.mark.parametrize("cache", [True, False])
def test_windows_are_cut_where_picture_and_moved_sound_meet(tmp_path: Path, offset: int, cache: bool) -> None:
    corpus = toy_corpus(tmp_path / "c")
    rows = [
        Item(row.id, row.identity, row.split, "clip", row.path, row.frames, row.fps, row.samples, sync_offset=offset)
        for row in corpus.items(kind="clip").itertuples()
    ]
    write_manifest(corpus.root, rows)
    cfg = SyncDataConfig(windows=8, cache=cache, flip=False)
    data = SyncWindows(Corpus.open(corpus.root), "train", cfg, SyncNet(width=0.03, size=64))
    assert len(data) == 3
    assert len(data.left_out) == 1
    clip = Clip(corpus.root / "clips" / "a0")
    frames = torch.from_numpy(clip.frames()).permute(0, 3, 1, 2)
    whole, cepstra = prepare_frames(frames, 64, data.region).byte(), psf_mfcc(clip.wave()[None])[0]
    starts = set()
    for seed in range(12):
        item = data[Draw(0, seed)]
        assert item["video"].shape == (3, 12, 64, 64)
        assert item["cepstra"].shape == (1, 13, 48)
        (start,) = [t for t in range(29) if torch.equal(whole[t : t + 12].transpose(0, 1), item["video"])][:1]
        sound = 4 * (start - offset)
        torch.testing.assert_close(item["cepstra"], cepstra[..., sound : sound + 48], rtol=1e-5, atol=1e-4)
        starts.add(start)
    assert len(starts) > 4
    assert torch.equal(data[Draw(0, 3)]["video"], data[Draw(0, 3)]["video"])


def test_mirrored_windows_are_pure_functions_of_the_draw(corpus: Corpus) -> None:
    data = SyncWindows(corpus, "train", SyncDataConfig(windows=8), SyncNet(width=0.03, size=64))
    items = [data[Draw(0, seed)]["video"] for seed in range(6)]
    assert all(torch.equal(item, data[Draw(0, seed)]["video"]) for seed, item in enumerate(items))
    assert len({tuple(item[:, 0].float().mean(dim=(0, 1)).tolist()) for item in items}) > 1


def module(corpus: Corpus, out: Path, *words: str) -> SyncTraining:
    found = SyncTraining(config(corpus, out, *words))
    found.trainer = SimpleNamespace(global_rank=0, world_size=1)
    return found


def test_louder_sound_moves_the_energy_alone(corpus: Corpus, tmp_path: Path) -> None:
    wave = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)) * 0.05
    difference = psf_mfcc(wave * 10 ** (6 / 20)) - psf_mfcc(wave)
    assert difference[:, :, 0].sub(6 * 0.2302585).abs().max() < 2e-2
    assert difference[:, :, 1:].abs().max() < 0.2  # rounding to int16
    batch = {"video": torch.zeros(4, 3, 12, 64, 64), "cepstra": torch.zeros(4, 1, 13, 48)}
    varied = module(corpus, tmp_path, "data.timbre=0").varied(batch)["cepstra"]
    assert 0 < varied[:, :, 0].abs().max() <= 6 * 0.2303
    assert (varied[:, :, 1:] == 0).all()
    assert len(set(varied[:, 0, 0, 0].tolist())) == 4


def test_variation_keeps_time_and_range_and_can_be_switched_off(corpus: Corpus, tmp_path: Path) -> None:
    still = torch.randint(0, 256, (4, 3, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = {"video": still.expand(-1, -1, 12, -1, -1), "cepstra": torch.randn(4, 1, 13, 48)}
    strong = module(corpus, tmp_path, "data.light=1.0", "data.zoom=0.3").varied(batch)
    assert strong["video"].min() >= 0
    assert strong["video"].max() <= 255
    assert torch.equal(strong["video"], strong["video"][:, :, :1].expand_as(strong["video"]))
    offset = strong["cepstra"] - batch["cepstra"]
    assert (offset - offset[..., :1]).abs().max() < 1e-5
    off = module(corpus, tmp_path, *(f"data.{name}=0" for name in ("jitter", "zoom", "light", "gain", "timbre")))
    none = off.varied(batch)
    torch.testing.assert_close(none["video"], batch["video"].float(), rtol=0, atol=1e-2)
    assert torch.equal(none["cepstra"], batch["cepstra"])


def test_pictures_move_by_the_stated_fraction(corpus: Corpus, tmp_path: Path) -> None:
    """A ramp over columns: what a column shows tells where it came from."""
    ramp = torch.arange(64.0).expand(32, 3, 12, 64, 64)
    moved = module(corpus, tmp_path, "data.light=0", "data.zoom=0", "data.jitter=0.25").varied(
        {"video": ramp, "cepstra": torch.zeros(32, 1, 13, 48)}
    )
    shifts = moved["video"][:, 0, 0, 32, 32] - 32
    assert 8 < shifts.abs().max() <= 16.01


def test_embedding_in_pieces_equals_the_stream(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = SyncNet(width=0.03, size=64).eval()
    data = SyncClips(corpus, "val", SyncDataConfig(), net)
    item = data[Draw(0, 0)]
    monkeypatch.setattr("common.syncnet_train._CHUNK", 7)
    again = SyncClips(corpus, "val", SyncDataConfig(), net)[Draw(0, 0)]
    assert torch.equal(item["video"], again["video"])
    frames = Clip(corpus.root / "clips" / "c3").frames()
    torch.testing.assert_close(embed_video(net, item["video"]), embed_frames(net, frames), rtol=1e-4, atol=1e-5)


def losses(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def test_training_validates_resumes_to_the_bit_and_loads(corpus: Corpus, tmp_path: Path) -> None:
    whole = train_syncnet(config(corpus, tmp_path / "a", "trainer.steps=4", "trainer.val_every=4"))
    assert {
        "train/loss_within",
        "train/loss_across",
        "train/top1",
        "val/lse_c",
        "val/lse_d",
        "val/offset_accuracy",
    } <= set(losses(whole)[0])
    train_syncnet(config(corpus, tmp_path / "b", "trainer.steps=4", "trainer.kwargs={limit_train_batches: 2}"))
    split = train_syncnet(config(corpus, tmp_path / "b", "trainer.steps=4"), resume=True)
    assert [row["train/loss"] for row in losses(split)] == [row["train/loss"] for row in losses(whole)]
    net = load_syncnet(split / LAST)
    assert (net.width, net.size, net.training) == (0.03, 64, False)
    assert net.name == f"own:{fingerprint(net)}" == load_syncnet(whole / LAST).name


def test_margin_trains_as_well(corpus: Corpus, tmp_path: Path) -> None:
    folder = train_syncnet(config(corpus, tmp_path, "trainer.steps=2", "loss.name=margin"))
    assert len(losses(folder)) == 2


def test_refuses_what_cannot_be_trained_on(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no corpus"):
        train_syncnet(config(corpus, tmp_path, "data.root=''"))
    with pytest.raises(UserError, match="no clip of the train split has 25 fps and 105 frames; clips in it: "):
        train_syncnet(config(corpus, tmp_path, "data.windows=100"))
    for words, message in (
        (["model.region=[0.5, 0, 0.2, 1]"], "model.region"),
        (["model.size=32"], "size >= 51"),
        (["data.windows=1"], "windows >= 2"),
        (["loss.name=triplet"], "triplet"),
    ):
        with pytest.raises(UserError, match=message):
            config(corpus, tmp_path, *words)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_loads_builds_and_says_how_it_is_run(path: Path) -> None:
    cfg = load(SyncConfig, path)
    assert (cfg.run.package, cfg.run.name) == ("common", path.stem)
    assert config_hash(from_dict(SyncConfig, to_dict(cfg))) == config_hash(cfg)
    with torch.device("meta"):
        assert sum(p.numel() for p in build_syncnet(cfg.model).parameters()) > 0
    head = path.read_text().split("\n")[:4]
    assert [line.split(":")[0] for line in head[1:]] == ["# command", "# time", "# metric"]
    assert path.name in head[1]


@pytest.mark.slow
def test_it_learns_to_find_offsets_of_clips_that_it_never_saw(tmp_path: Path) -> None:
    corpus = toy_corpus(tmp_path / "corpus", frames=100)
    folder = train_syncnet(
        config(corpus, tmp_path, "trainer.steps=120", "model.width=0.08", "data.clips=4", "data.windows=16")
    )
    net = load_syncnet(folder / LAST)
    pairs = []
    for seed in range(50, 54):
        images, wave = toy_clip(seed, 80)
        pairs += injected_offsets(net, embed_frames(net, images), wave)
    assert sum(abs(a - b) <= 1 for a, b in pairs) >= 0.9 * len(pairs)
