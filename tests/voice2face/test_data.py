import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.corpus import SAMPLE_RATE, Corpus
from common.data.sampling import Draw
from common.errors import UserError
from voice2face.config import DataConfig
from voice2face.data import VoiceFacePairs, WholeRecordings, crop_batch, load_face


@pytest.fixture
def cfg() -> DataConfig:
    return DataConfig(image_size=32, crop_seconds=(0.5, 0.75), workers=0)


def test_a_pair_is_a_pure_function_of_its_draw(identity_corpus: Corpus, cfg: DataConfig) -> None:
    pairs = VoiceFacePairs(identity_corpus, "train", cfg)
    first, again, other = (pairs[Draw(1, seed)] for seed in (5, 5, 6))
    assert torch.equal(first["wave"], again["wave"])
    assert torch.equal(first["face"], again["face"])
    assert not torch.equal(first["wave"], other["wave"])
    assert first["wave"].shape == (12_000,)
    assert first["face"].shape == (3, 32, 32)
    assert -1 <= float(first["face"].min()) < float(first["face"].max()) <= 1


def test_voice_and_face_of_a_pair_belong_to_one_person(identity_corpus: Corpus, cfg: DataConfig) -> None:
    cfg.flip = False
    pairs = VoiceFacePairs(identity_corpus, "train", cfg)
    for index, (path, person) in enumerate(pairs.faces):
        item = pairs[Draw(index, 0)]
        assert pairs.people[item["identity"]] == person
        assert torch.equal(item["face"], load_face(identity_corpus.file(path), 32))
        waves = [pairs.read_voice(p) for p in pairs.voices[person]]
        window = item["wave"][:4000]
        assert any((w.unfold(0, 4000, 1) == window).all(dim=1).any() for w in waves)


def test_caching_changes_nothing(identity_corpus: Corpus, cfg: DataConfig) -> None:
    plain = VoiceFacePairs(identity_corpus, "train", cfg)
    cfg.cache = True
    cached = VoiceFacePairs(identity_corpus, "train", cfg)
    for _ in range(2):
        a, b = plain[Draw(0, 3)], cached[Draw(0, 3)]
        assert torch.equal(a["wave"], b["wave"])
        b["wave"].zero_()


def test_pairs_reach_a_spawned_worker(identity_corpus: Corpus, cfg: DataConfig) -> None:
    cfg.cache = True
    pairs = VoiceFacePairs(identity_corpus, "train", cfg)
    copy = pickle.loads(pickle.dumps(pairs))
    assert torch.equal(copy[Draw(0, 3)]["wave"], pairs[Draw(0, 3)]["wave"])


def test_short_recordings_are_tiled(identity_corpus: Corpus, cfg: DataConfig) -> None:
    cfg.crop_seconds = (30.0, 30.0)
    item = VoiceFacePairs(identity_corpus, "train", cfg)[Draw(0, 0)]
    assert item["wave"].shape == (30 * SAMPLE_RATE,)
    assert item["wave"][-SAMPLE_RATE:].abs().max() > 0.01


def test_crop_lengths_are_one_a_step_and_in_range(cfg: DataConfig) -> None:
    waves = torch.arange(24_000.0).repeat(2, 1)[:, :12_000]
    lengths = {crop_batch(waves, cfg, 0, step).shape[1] for step in range(30)}
    assert min(lengths) >= 8_000
    assert max(lengths) <= 12_000
    assert len(lengths) > 20
    assert torch.equal(crop_batch(waves, cfg, 0, 3), crop_batch(waves, cfg, 0, 3))


def test_whole_recordings_keep_their_length_and_a_limit_spreads(identity_corpus: Corpus, cfg: DataConfig) -> None:
    recordings = WholeRecordings(identity_corpus, "test", cfg)
    rows = identity_corpus.items(kind="voice", split="test")
    assert [len(recordings[Draw(i, 0)]["wave"]) for i in range(len(recordings))] == list(rows["samples"])
    assert len(WholeRecordings(identity_corpus, "test", cfg, limit=2)) == 2
    faces, people = recordings.real_faces()
    assert faces.shape == (3, 3, 32, 32)
    assert people.tolist() == [0, 1, 2]


def test_faces_are_scaled_as_the_paper_says_and_reduced_by_area(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    full = load_face(tmp_path / "x.png", 64)
    np.testing.assert_allclose(full.permute(1, 2, 0).numpy(), (image - 127.5) / 127.5, atol=1e-6)
    half = load_face(tmp_path / "x.png", 32)
    means = image.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(half.permute(1, 2, 0).numpy(), means / 127.5 - 1, atol=1.01 / 127.5)
    (tmp_path / "x.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"cannot read the face image .*x\.png"):
        load_face(tmp_path / "x.png", 64)


@pytest.mark.parametrize("wrong", [{"crop_seconds": (0.1, 3.0)}, {"crop_seconds": (3.0, 2.0)}, {"image_size": 48}])
def test_impossible_values_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"data\."):
        DataConfig(**wrong)
