"""Builds the embedded identity corpus: people with a face and a voice, without a download or a licence."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.config import config_hash
from common.data.corpus import MANIFEST, Corpus, Item, write_manifest
from common.data.engine import Job, Outcome, Product, Unit, begin, clean, run_units
from common.errors import UserError
from common.face3d.morphable import FaceModel, load_face_model
from common.face3d.render import render
from common.faces.align import align_face
from common.provenance import Provenance, ProvenanceConfig
from common.synthetic.identity import face_coefficients, sample_identity, sample_nuisance
from common.synthetic.sentences import ENGLISH, MANDARIN
from common.synthetic.speech import speak, voice_from_vector

SENTENCES = {"zh": MANDARIN, "en": ENGLISH}
_RENDER_SCALE = 4
"""Rendered px per px of the crop, so that the aligned crop is reduced, never enlarged."""


@dataclass
class IdentityCorpusOptions:
    """What the corpus is a function of."""

    identities: int = 24
    """people"""
    voices: int = 8
    """recordings a person, alternately Mandarin and English"""
    faces: int = 12
    """pictures a person over pose, light, background and expression"""
    size: int = 64
    """side of the aligned crops in px"""
    max_yaw: float = 25.0
    """largest turn of a head in degrees"""
    seed: int = 0
    face_model: str = "builtin"
    """see `face3d.load_face_model`"""
    split_by: str = "recording"
    """`recording`: each person's last quarter of voices and of faces is the test split, the eighth before it the
    validation split. `identity`: the same shares of people."""

    def __post_init__(self) -> None:
        if self.split_by not in {"recording", "identity"}:
            raise UserError(f"split_by is {self.split_by!r}: use recording or identity")
        shared = (self.identities,) if self.split_by == "identity" else (self.voices, self.faces)
        if min(shared) < 3 or min(self.identities, self.voices, self.faces) < 1:
            raise UserError(
                f"an identity corpus split by {self.split_by} needs at least 3 of what is split, and 1 of the others: "
                f"got {self.identities} identities, {self.voices} voices, {self.faces} faces"
            )


def build_identity_corpus(out: Path, options: IdentityCorpusOptions | None = None, *, workers: int = 2) -> Corpus:
    """Build the corpus in `out`, or finish one that was interrupted; a finished one is opened as it is.

    The same options give the same bytes, whatever the number of workers. Raises `UserError` when `out` holds a corpus
    of other options or cannot be written.
    """
    options = options or IdentityCorpusOptions()
    begin(out, {"corpus": "identity", **asdict(options)})
    if not (out / MANIFEST).exists():
        clean(out)
        units = [Unit(f"{index:05d}", "1", index) for index in range(options.identities)]
        job = Job(out, partial(_person, options), partial(load_face_model, options.face_model), _name)
        records = run_units(units, job, workers=workers, label="synthetic people")
        failed = [drop for record in records for drop in record.drops]
        if failed:
            raise UserError(f"cannot build the corpus in {out}: {failed[0].source}: {failed[0].reason}")
        write_manifest(out, [item for record in records for item in record.items], split_by=options.split_by)
    return Corpus.open(out)


def _name(unit: Unit) -> str:
    return f"person{unit.payload:05d}"


def _split(options: IdentityCorpusOptions, person: int, index: int, count: int) -> str:
    """The last quarter is test, the eighth before it (at least one) val."""
    if options.split_by == "identity":
        index, count = person, options.identities
    test = max(1, count // 4)
    val = max(1, count // 8)
    if index >= count - test:
        return "test"
    return "val" if index >= count - test - val else "train"


def _person(options: IdentityCorpusOptions, unit: Unit, model: FaceModel) -> Outcome:
    """All recordings and pictures of one person."""
    vector = sample_identity(options.seed, unit.payload)
    rng = np.random.default_rng([options.seed, unit.payload, 1])
    products = [*_voices(options, unit, vector, rng), *_faces(options, unit, vector, rng, model)]
    return Outcome(products=products)


def _voices(options: IdentityCorpusOptions, unit: Unit, vector: np.ndarray, rng: np.random.Generator) -> list[Product]:
    voice = voice_from_vector(vector)
    order = {language: rng.permutation(len(sentences)) for language, sentences in SENTENCES.items()}
    products = []
    for index in range(options.voices):
        language = ("zh", "en")[index % 2]
        sentences = SENTENCES[language]
        text = sentences[order[language][(index // 2) % len(sentences)]]
        speech = speak(text, language, voice, seed=int(rng.integers(2**31)))
        products.append(_product(options, unit, "voice", index, options.voices, speech.wave, language))
    return products


def _faces(
    options: IdentityCorpusOptions, unit: Unit, vector: np.ndarray, rng: np.random.Generator, model: FaceModel
) -> list[Product]:
    side = _RENDER_SCALE * options.size
    identity, albedo = (c.expand(options.faces, -1) for c in face_coefficients(vector, model))
    nuisance = sample_nuisance(model, rng, options.faces, side, max_yaw=options.max_yaw)
    with torch.inference_mode():
        rendered = render(
            model,
            identity,
            nuisance.expression,
            albedo,
            nuisance.angles,
            nuisance.translation,
            nuisance.gamma,
            side,
            nuisance.background,
        )
    images = (rendered.image * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [
        _product(options, unit, "face", index, options.faces, align_face(image, landmarks, options.size))
        for index, (image, landmarks) in enumerate(zip(images, rendered.landmarks.numpy(), strict=True))
    ]


def _product(
    options: IdentityCorpusOptions, unit: Unit, kind: str, index: int, count: int, data: Any, language: str = ""
) -> Product:
    name, options_hash = _name(unit), config_hash(options)
    folder, suffix = ("voices", "wav") if kind == "voice" else ("faces", "png")
    item = Item(
        id=f"{folder}/{name}/{index:03d}",
        identity=name,
        split=_split(options, unit.payload, index, count),
        kind=kind,
        path=f"{folder}/{name}/{index:03d}.{suffix}",
        samples=len(data) if kind == "voice" else 0,
        language=language,
    )
    label = Provenance.create(ProvenanceConfig(), config_hash=options_hash, content=f"{options_hash} {item.id}")
    return Product(item, data, provenance=label)
