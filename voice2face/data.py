"""Pairs of a recording and a face of the same person, and whole recordings for evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from common.audio.features import tile_to
from common.audio.io import load_audio
from common.config import config_hash
from common.data.corpus import MANIFEST, SAMPLE_RATE, Corpus
from common.data.sampling import Draw
from common.errors import UserError
from common.hardware import cores
from common.memo import Memo
from common.rng import StepRandom
from common.synthetic.build import build_identity_corpus
from common.training import TrainData
from voice2face.config import DataConfig


def open_corpus(cfg: DataConfig) -> Corpus:
    """The corpus of `cfg.root`, or the embedded one, built on first use into `corpora/`."""
    if cfg.root:
        return Corpus.open(Path(cfg.root))
    folder = Path("corpora") / f"identity-{config_hash(cfg.embedded)}"
    if not (folder / MANIFEST).exists():
        print(f"building the embedded corpus first: {folder}", flush=True)
    return build_identity_corpus(folder, cfg.embedded, workers=cores())


def crop_batch(waves: Tensor, cfg: DataConfig, seed: int, step: int) -> Tensor:
    """The first L samples of waves (B,n), one L for the whole step and every rank, uniform in `crop_seconds`.

    Starts were drawn per item by the dataset. One length a batch, as in paper 2's source (Wen et al. 2019).
    """
    low, high = cfg.crop_seconds
    share = float(StepRandom(seed).uniform(step, "crop", (1,)))
    return waves[:, : round((low + (high - low) * share) * SAMPLE_RATE)]


def load_face(path: Path, size: int) -> Tensor:
    """A face image as (3,size,size) in [-1,1] (paper 2, section 3.2); larger images are reduced by area."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
            if image.size != (size, size):
                image = image.resize(
                    (size, size), Image.Resampling.BOX if image.width > size else Image.Resampling.BICUBIC
                )
    except OSError as error:
        raise UserError(f"cannot read the face image {path}: {error}; prepare the corpus again") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


class VoiceFacePairs(Dataset[dict[str, Any]]):
    """A face, and a random window of a random recording of the same person.

    Item of a `Draw`: `wave` (samples,) tiled where the recording is shorter, `face` (3,S,S) in [-1,1], `identity`
    (position in `people`). A pure function of the draw. The window has the longest crop's length; the training step
    takes one shorter length for the whole batch from it.
    """

    def __init__(self, corpus: Corpus, split: str, cfg: DataConfig) -> None:
        self.corpus, self.cfg = corpus, cfg
        voices, faces = (corpus.items(kind=kind, split=split) for kind in ("voice", "face"))
        self.people = sorted(set(voices["identity"]) & set(faces["identity"]))
        if not self.people:
            raise UserError(
                f"{corpus.root}: no identity of the {split} split has both a voice and a face; {corpus.stock(split)}"
            )
        self.voices = {str(name): list(group["path"]) for name, group in voices.groupby("identity")}
        self.faces = [(str(row.path), str(row.identity)) for row in faces.itertuples() if row.identity in self.voices]
        self.samples = round(cfg.crop_seconds[1] * SAMPLE_RATE)
        self.read_voice: Callable[[str], Tensor] = self._read_voice
        self.read_face: Callable[[str], Tensor] = self._read_face
        if cfg.cache:
            self.read_voice = Memo(self._read_voice)
            self.read_face = Memo(self._read_face)

    def _read_voice(self, path: str) -> Tensor:
        return load_audio(self.corpus.file(path), SAMPLE_RATE, max_seconds=self.cfg.max_seconds)

    def _read_face(self, path: str) -> Tensor:
        return load_face(self.corpus.file(path), self.cfg.image_size)

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        rng = draw.generator()
        path, person = self.faces[draw.index]
        recordings = self.voices[person]
        wave = self.read_voice(recordings[rng.integers(len(recordings))])
        wave = tile_to(wave, self.samples)
        start = int(rng.integers(len(wave) - self.samples + 1))
        face = self.read_face(path)
        if self.cfg.flip and rng.random() < 0.5:
            face = face.flip(-1)
        return {
            "wave": wave[start : start + self.samples].clone(),
            "face": face,
            "identity": self.people.index(person),
        }


class WholeRecordings(Dataset[dict[str, Any]]):
    """Every recording of a split in full, for people who have a face there; items of batch size 1.

    `limit` > 0 keeps that many, spread evenly.
    """

    def __init__(self, corpus: Corpus, split: str, cfg: DataConfig, *, limit: int = 0) -> None:
        self.corpus, self.cfg = corpus, cfg
        faces = corpus.items(kind="face", split=split)
        self.faces = {str(name): list(group["path"]) for name, group in faces.groupby("identity")}
        voices = corpus.items(kind="voice", split=split)
        self.rows = [(str(row.path), str(row.identity)) for row in voices.itertuples() if row.identity in self.faces]
        if not self.rows:
            raise UserError(
                f"{corpus.root}: no recording of the {split} split belongs to a person with a face there; "
                f"{corpus.stock(split)}"
            )
        if 0 < limit < len(self.rows):
            self.rows = [self.rows[i] for i in np.linspace(0, len(self.rows) - 1, limit).round().astype(int)]
        self.people = sorted({person for _, person in self.rows})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        path, person = self.rows[draw.index]
        wave = load_audio(self.corpus.file(path), SAMPLE_RATE, max_seconds=self.cfg.max_seconds)
        return {"wave": wave, "identity": self.people.index(person), "path": path}

    def real_faces(self) -> tuple[Tensor, Tensor]:
        """All real faces of these people: (N,3,S,S) in [-1,1], and positions in `people` (N,)."""
        pairs = [(path, i) for i, person in enumerate(self.people) for path in self.faces[person]]
        images = torch.stack([load_face(self.corpus.file(path), self.cfg.image_size) for path, _ in pairs])
        return images, torch.tensor([i for _, i in pairs])


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Training pairs are stacked; whole recordings, whose lengths differ, stay a list of waves."""
    if "path" not in items[0]:
        return dict(default_collate(items))
    return {
        "wave": [item["wave"] for item in items],
        "identity": torch.tensor([item["identity"] for item in items]),
        "path": [item["path"] for item in items],
    }


class VoiceFaceData(TrainData):
    """Training pairs by step, and validation recordings one at a time (their lengths differ).

    Args:
        corpus: with train and val splits.
        cfg: `data` of the configuration.
        seed: of the run.
        batch_size: items of one step over all processes; `cfg.batch_size` unless given (stage A has its own).
        validation_voices: recordings of the val split that a validation measures; 0: all.
    """

    def __init__(
        self,
        corpus: Corpus,
        cfg: DataConfig,
        *,
        seed: int,
        batch_size: int | None = None,
        validation_voices: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size or cfg.batch_size, seed=seed, workers=cfg.workers, val_batch_size=1, collate=collate
        )
        self.train_set = self.pairs = VoiceFacePairs(corpus, "train", cfg)
        self.val_set = self.recordings = WholeRecordings(corpus, "val", cfg, limit=validation_voices)
