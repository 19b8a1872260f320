"""One deterministic report on a trained model: image quality, retrieval, cosine, matching, path length."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.data.corpus import Corpus
from common.data.sampling import ValidationBatchSampler, make_loader
from common.faces import load_embedder
from common.metrics.fid import extract, image_quality, load_extractor, to_uint8
from common.metrics.identity import collapse_alarm, identity_similarity, matching_accuracy
from common.metrics.path_length import different_pairs
from common.metrics.retrieval import retrieval
from voice2face.config import Config, EvaluationConfig
from voice2face.data import WholeRecordings
from voice2face.infer import VoiceToFace
from voice2face.paths import voice_path_length


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found, and what a sample sheet needs."""

    metrics: dict[str, Any]
    """plain values, ready for JSON"""
    people: list[str]
    """the identities"""
    identities: Tensor
    """(R,) position in `people` of each recording"""
    portraits: Tensor
    """(R,3,S,S) in [-1,1], without latent noise"""
    waves: list[Tensor]
    """the recordings"""
    real: Tensor
    """(N,3,S,S) in [-1,1]"""
    real_identities: Tensor
    """(N,)"""


def evaluate(model: VoiceToFace, corpus: Corpus, cfg: Config) -> Evaluation:
    """Measure `model` on the recordings and faces of `cfg.evaluation.split`.

    Identity is measured on one portrait a recording, drawn without noise; FID and KID on `portraits` of them. On the
    CPU the same checkpoint, corpus and configuration give the same numbers.
    """
    settings = cfg.evaluation
    recordings = WholeRecordings(corpus, settings.split, cfg.data)
    loader = make_loader(recordings, ValidationBatchSampler(len(recordings), 1, seed=0))
    embeddings, identities, waves = [], [], []
    for batch in loader:
        waves.append(batch["wave"][0])
        embeddings.append(model.embed([batch["wave"][0]]))
        identities.append(int(batch["identity"]))
    embedding, identity = torch.stack(embeddings), torch.tensor(identities)
    portraits = [_draw(model, embedding, settings, seed) for seed in range(settings.portraits)]
    real, real_identity = recordings.real_faces()
    names = np.array(recordings.people)
    metrics = {
        "split": settings.split,
        "corpus": corpus.root.name,
        "split_by": corpus.split_by,
        "identities": len(names),
        "recordings": len(identity),
        "real_faces": len(real),
        "image_size": cfg.data.image_size,
        "quality": _quality(real, torch.cat(portraits), settings),
        "identity": _identity(portraits[0], names[identity], real, names[real_identity], settings),
        "path_length": _path_length(model, embedding, names[identity], settings),
    }
    return Evaluation(metrics, recordings.people, identity, portraits[0], waves, real, real_identity)


def _draw(model: VoiceToFace, embedding: Tensor, settings: EvaluationConfig, seed: int) -> Tensor:
    """One portrait per recording on the CPU; seed 0 is the voice's own latent, others add noise."""
    source = torch.Generator().manual_seed(seed) if seed else None
    parts = embedding.split(settings.batch_size)
    return torch.cat([model.synthesise(model.styles(part, generator=source)).cpu() for part in parts])


def _quality(real: Tensor, fake: Tensor, settings: EvaluationConfig) -> dict[str, Any]:
    extractor = load_extractor(settings.extractor)
    features = [extract(extractor, images.split(settings.batch_size)) for images in (real, fake)]
    return image_quality(features[0], features[1], extractor.name).to_dict()


def _identity(
    portraits: Tensor, names: np.ndarray, real: Tensor, real_names: np.ndarray, settings: EvaluationConfig
) -> dict[str, Any]:
    embedder = load_embedder(settings.embedder)
    generated, truth = (
        embedder.embed(list(to_uint8(images).permute(0, 2, 3, 1).numpy())) for images in (portraits, real)
    )
    arguments = (generated, names, truth, real_names)
    name, samples = embedder.name, settings.bootstrap
    found = retrieval(*arguments, embedder=name, samples=samples)
    similar = identity_similarity(*arguments, embedder=name, samples=samples)
    return {
        "retrieval": found.to_dict(),
        "similarity": similar.to_dict(),
        "collapse": collapse_alarm(found, similar).to_dict(),
        "matching": matching_accuracy(*arguments, embedder=name, samples=samples).to_dict(),
    }


def _path_length(
    model: VoiceToFace, embedding: Tensor, names: np.ndarray, settings: EvaluationConfig
) -> dict[str, Any]:
    """Between the latents of two people's voices; StyleGAN2's `wend` with the crop, and `2_wend` without."""
    pairs = different_pairs(list(names), settings.path_length_samples)
    starts, ends = model.styles(embedding)[pairs].unbind(dim=1)
    results: dict[str, Any] = {}
    for crop in (True, False):
        results |= voice_path_length(model.synthesise, starts, ends, settings, crop=crop).to_dict()
    results.pop("crop")
    return results
