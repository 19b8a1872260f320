"""The embedded corpus can be learnt from, and only through its pairs: unseen people are found by their voice, unless
training was shown wrong pairs."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.config import load
from common.data.corpus import Corpus, Item, write_manifest
from common.data.sampling import Draw
from common.metrics.retrieval import RetrievalResult, retrieval
from common.run import fit
from common.synthetic.build import IdentityCorpusOptions, build_identity_corpus
from voice2face.config import Config
from voice2face.data import VoiceFaceData, WholeRecordings
from voice2face.encoder_module import VoiceFaceContrast

SMOKE = Path(__file__).parents[2] / "experiments" / "voice2face" / "smoke.yaml"
PEOPLE = 240


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus whose test people are nowhere in training."""
    options = IdentityCorpusOptions(PEOPLE, voices=4, faces=4, size=32, max_yaw=12, split_by="identity")
    return build_identity_corpus(tmp_path_factory.mktemp("people") / "corpus", options)


def with_wrong_pairs(corpus: Corpus, out: Path) -> Corpus:
    """The same files, but each training voice is filed under the next training person."""
    shutil.copytree(corpus.root, out)
    train = corpus.identities("train")
    following = dict(zip(train, np.roll(train, 1), strict=True))
    fields = Item.__dataclass_fields__
    items = [Item(**{name: row[name] for name in fields}) for row in corpus.table.to_dict("records")]
    moved = [
        replace(item, identity=following[item.identity]) if item.kind == "voice" and item.split == "train" else item
        for item in items
    ]
    write_manifest(out, moved, split_by=corpus.split_by)
    return Corpus.open(out)


def find_unseen_people(corpus: Corpus, out: Path) -> RetrievalResult:
    """Train stage A for a minute and look for the test people's faces by their voices."""
    words = [f"run.out={out}", "wandb.mode=disabled", "trainer.steps=600", "trainer.val_every=0", "data.cache=true"]
    words += ["encoder.batch_size=48", "encoder.cycle=600", "encoder.lr=0.05", "data.crop_seconds=[1.0,1.5]"]
    cfg = load(Config, SMOKE, words)
    data = VoiceFaceData(corpus, cfg.data, seed=0, batch_size=cfg.encoder.batch_size)
    module = VoiceFaceContrast(cfg, len(data.pairs.people))
    fit(module, data, cfg)
    module.eval()
    recordings = WholeRecordings(corpus, "test", cfg.data)
    items = [recordings[Draw(index, 0)] for index in range(len(recordings))]
    with torch.no_grad():
        voices = torch.cat([module(item["wave"][None]) for item in items])
        faces, identities = recordings.real_faces()
        found = module.embed_faces(faces)
    return retrieval(voices, [item["identity"] for item in items], found, identities.tolist(), embedder="face tower")


@pytest.mark.slow
def test_true_pairs_teach_to_find_unseen_people(people: Corpus, tmp_path: Path) -> None:
    result = find_unseen_people(people, tmp_path)
    assert result.gallery_size == PEOPLE // 4
    assert result.above_chance(1)
    assert result.above_chance(5)


@pytest.mark.slow
def test_wrong_pairs_teach_nothing(people: Corpus, tmp_path: Path) -> None:
    result = find_unseen_people(with_wrong_pairs(people, tmp_path / "corpus"), tmp_path)
    assert not result.above_chance(1)
    assert not result.above_chance(5)
