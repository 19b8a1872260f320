"""One deterministic report on a trained model: image quality, retrieval, cosine, matching, path length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.data.corpus import Corpus
from common.data.sampling import ValidationBatchSampler, make_loader
from common.errors import UserError
from common.faces import IdentityEmbedder, load_embedder
from common.metrics.fid import FeatureExtractor, extract, image_quality, load_extractor, to_uint8
from common.metrics.identity import collapse_alarm, identity_similarity, matching_accuracy
from common.metrics.jackknife import fid_estimate
from common.metrics.leakage import refuse_leakage
from common.metrics.path_length import different_pairs
from common.metrics.retrieval import retrieval
from voice2face.config import Config, EvaluationConfig
from voice2face.data import WholeRecordings
from voice2face.infer import VoiceToFace
from voice2face.paths import voice_path_length

FACE_TOWER = "face_tower"
"""Stage A's own image encoder, as a name among the networks of the training loss."""


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


@dataclass(frozen=True)
class Judges:
    """The networks that measure, none of which the model was trained with unless allowed."""

    extractor: FeatureExtractor
    embedder: IdentityEmbedder
    second: IdentityEmbedder | None
    warnings: list[str]
    """what a report by these judges has to say of them"""


def trained_with(cfg: Config) -> list[str]:
    """Names of the face networks that the portrait's training loss goes through."""
    weights, extra = cfg.weights, cfg.progressive
    towers = [weights.match] + ([extra.margin, extra.contrast] if cfg.generator.name == "progressive" else [])
    found = [FACE_TOWER] if any(weight > 0 for weight in towers) else []
    return found + ([load_embedder(weights.perceptual_by).name] if weights.perceptual > 0 else [])


def load_judges(cfg: Config) -> Judges:
    """The judges of `cfg.evaluation`.

    Raises UserError for an unknown one, one without weights, and one from the training loss, unless
    `evaluation.allow_leakage` is set.
    """
    settings = cfg.evaluation
    extractor, embedder = load_extractor(settings.extractor), load_embedder(settings.embedder)
    second = load_embedder(settings.second_embedder) if settings.second_embedder else None
    used = trained_with(cfg)
    said = [
        refuse_leakage(judge.name, used, allow=settings.allow_leakage)
        for judge in (extractor, embedder, second)
        if judge is not None
    ]
    return Judges(extractor, embedder, second, list(dict.fromkeys(filter(None, said))))


def evaluate(model: VoiceToFace, corpus: Corpus, cfg: Config) -> Evaluation:
    """Measure `model` on the recordings and faces of `cfg.evaluation.split`.

    Identity is measured on one portrait a recording, drawn without noise; FID and KID on `portraits` of them. On the
    CPU the same checkpoint, corpus, configuration and number of threads give the same numbers to the last digit;
    another number of threads changes path lengths in the third, since float32 hardly resolves their steps of 1e-4.

    Raises UserError as `load_judges` does, and for a gallery larger than the split has people.
    """
    settings = cfg.evaluation
    judges = load_judges(cfg)
    recordings = WholeRecordings(corpus, settings.split, cfg.data)
    _check_galleries(settings.gallery_sizes, len(recordings.people))
    loader = make_loader(recordings, ValidationBatchSampler(len(recordings), 1, seed=0))
    embeddings, identities, waves = [], [], []
    for batch in loader:
        waves.append(batch["wave"][0])
        embeddings.append(model.embed([batch["wave"][0]]))
        identities.append(int(batch["identity"]))
    embedding, identity = torch.stack(embeddings), torch.tensor(identities)
    portraits = [_draw(model, embedding, settings, seed) for seed in range(settings.portraits)]
    real, real_identity = recordings.real_faces()
    people = np.array(recordings.people)
    names, real_names = people[identity], people[real_identity]
    groups, unknown = person_groups(corpus, recordings.people, settings.group)
    faces = (portraits[0], names, real, real_names)
    metrics = {
        "split": settings.split,
        "corpus": corpus.root.name,
        "split_by": corpus.split_by,
        "identities": len(people),
        "recordings": len(identity),
        "real_faces": len(real),
        "image_size": cfg.data.image_size,
        "trained_with": trained_with(cfg),
        "quality": _quality(judges.extractor, real, real_names, torch.cat(portraits), names, settings),
        "identity": _identity(judges.embedder, *faces, groups, settings),
        "path_length": _path_length(model, embedding, names, settings),
    }
    if judges.second is not None:
        metrics["second_identity"] = _identity(judges.second, *faces, groups, settings)
    metrics["warnings"] = [*judges.warnings, *_alarms(metrics), *([unknown] if unknown else [])]
    return Evaluation(metrics, recordings.people, identity, portraits[0], waves, real, real_identity)


def person_groups(corpus: Corpus, people: Sequence[str], column: str) -> tuple[dict[str, str] | None, str]:
    """Person -> entry in a column of the manifest, and why there is none although the manifest has the column."""
    if not column or column not in corpus.table:
        return None, ""
    told = corpus.table.dropna(subset=[column]).drop_duplicates("identity")
    known = dict(zip(told["identity"], told[column].astype(str), strict=True))
    missing = [person for person in people if person not in known]
    if missing:
        return None, f"no matching within groups: {len(missing)} of {len(people)} people have no {column}"
    return {person: known[person] for person in people}, ""


def _check_galleries(sizes: Sequence[int], people: int) -> None:
    if wide := [size for size in sizes if size > people]:
        raise UserError(f"evaluation.gallery_sizes: a gallery of {wide[0]} needs as many people; there are {people}")


def _alarms(metrics: dict[str, Any]) -> list[str]:
    """Raised mode-collapse alarms."""
    parts = [metrics[name] for name in ("identity", "second_identity") if name in metrics]
    raised = [part for part in parts if part["collapse"]["raised"]]
    return [f"by {part['retrieval']['embedder']}, {part['collapse']['text']}" for part in raised]


def _draw(model: VoiceToFace, embedding: Tensor, settings: EvaluationConfig, seed: int) -> Tensor:
    """One portrait per recording on the CPU; seed 0 is the voice's own latent, others add noise."""
    source = torch.Generator().manual_seed(seed) if seed else None
    parts = embedding.split(settings.batch_size)
    return torch.cat([model.synthesise(model.styles(part, generator=source)).cpu() for part in parts])


def _quality(
    extractor: FeatureExtractor,
    real: Tensor,
    real_names: np.ndarray,
    fake: Tensor,
    names: np.ndarray,
    settings: EvaluationConfig,
) -> dict[str, Any]:
    """FID and KID; `fid_interval` leaves out groups of people in turn. `fake` holds all first portraits, then ..."""
    features = [extract(extractor, images.split(settings.batch_size)) for images in (real, fake)]
    found = image_quality(features[0], features[1], extractor.name).to_dict()
    if settings.fid_groups:
        drawn = np.tile(names, len(fake) // len(names))
        interval = fid_estimate(features[0], real_names, features[1], drawn, groups=settings.fid_groups)
        found["fid_interval"] = interval.to_dict()
    return found


def _identity(
    embedder: IdentityEmbedder,
    portraits: Tensor,
    names: np.ndarray,
    real: Tensor,
    real_names: np.ndarray,
    groups: dict[str, str] | None,
    settings: EvaluationConfig,
) -> dict[str, Any]:
    """Retrieval among everybody and in galleries of the configured sizes, cosine, the collapse alarm, matching."""
    generated, truth = (
        embedder.embed(list(to_uint8(images).permute(0, 2, 3, 1).numpy())) for images in (portraits, real)
    )
    arguments = (generated, names, truth, real_names)
    options: dict[str, Any] = {"embedder": embedder.name, "samples": settings.bootstrap}
    people = len(np.unique(real_names))
    found = retrieval(*arguments, **options)
    galleries = [
        retrieval(*arguments, **options, gallery_size=size, galleries=people // size) for size in settings.gallery_sizes
    ]
    similar = identity_similarity(*arguments, **options)
    return {
        "retrieval": found.to_dict(),
        "galleries": [gallery.to_dict() for gallery in galleries],
        "similarity": similar.to_dict(),
        "collapse": collapse_alarm(found, similar).to_dict(),
        "matching": matching_accuracy(*arguments, **options, groups=groups).to_dict()
        | ({} if groups is None else {"group": settings.group}),
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
