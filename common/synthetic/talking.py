"""Builds the embedded talking corpus: people who never lived, saying sentences, with ground truth for everything.

A clip is `clips/<person>/<number>/` with the video, sound, landmarks and coefficients of `common.video.write_clip`, and

- `coefficients.npz`: identity (Ki,), albedo (Ka,), expression (T,Ke), angles (T,3), translation (T,3), gamma (T,27),
  size () and face_model (), from which `face3d.render` draws the same pictures, and expression_names (Ke,);
- `visemes.json`: text, language, the phonemes and visemes in samples, and the viseme of every frame;
- `mask.npz`: `head` (T,size,size) bool, the pixels of which the head covers half at least.

Frame t shows the mouth at (t + 0.5) / 25 s of the sound, which lies under samples 640 t to 640 (t + 1).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common.config import config_hash
from common.data.corpus import MANIFEST, Corpus, Item, write_manifest
from common.data.engine import Job, Outcome, Product, Unit, begin, clean, run_units
from common.errors import UserError
from common.face3d.morphable import FaceModel, load_face_model
from common.files import write_json
from common.hardware import cores
from common.provenance import Provenance, ProvenanceConfig
from common.synthetic.performance import FPS, Performance, Take, draw, perform, record
from common.synthetic.visemes import frame_visemes, viseme_events
from common.video import write_clip

MEAN_SECONDS = 2.45
"""Length of a clip on average (measured), by which `seconds` becomes a number of clips."""


@dataclass
class TalkingCorpusOptions:
    """What the corpus is a function of."""

    identities: int = 6
    """people, at least 3"""
    seconds: float = 120.0
    """of video in all, about: everybody has the same number of clips"""
    size: int = 128
    """side of the pictures in px, 64 to 512"""
    seed: int = 0
    face_model: str = "builtin"
    """see `face3d.load_face_model`"""
    languages: list[str] = field(default_factory=lambda: ["zh", "en"])
    """zh, en or both, in turns"""
    split_by: str = "identity"
    """`identity`: an eighth of the people (at least one) is the test split, as many the validation split.
    `recording`: the same shares of everybody's clips."""
    max_yaw: float = 12.0
    """largest turn in degrees of a clip's pose, around which the head moves"""

    def __post_init__(self) -> None:
        if self.split_by not in {"recording", "identity"}:
            raise UserError(f"split_by is {self.split_by!r}: use recording or identity")
        if not self.languages or set(self.languages) - {"zh", "en"}:
            raise UserError(f"languages are {', '.join(self.languages) or 'none'}: use zh, en or both")
        if not 64 <= self.size <= 512 or self.size % 2:
            raise UserError(f"size is {self.size}: use an even number of pixels from 64 to 512")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise UserError(f"seconds is {self.seconds}: use a positive number")
        if not 0 <= self.max_yaw <= 45:
            raise UserError(f"max_yaw is {self.max_yaw}: use 0 to 45 degrees")
        if self.identities < (3 if self.split_by == "identity" else 1):
            raise UserError(f"{self.identities} identities cannot fill train, val and test: use 3 or more")

    @property
    def clips(self) -> int:
        """Clips a person."""
        wanted = round(self.seconds / self.identities / MEAN_SECONDS)
        return max(wanted, 3 if self.split_by == "recording" else 1)


def open_talking_corpus(root: str, embedded: TalkingCorpusOptions) -> Corpus:
    """The corpus at `root`, or, where that is empty, the embedded one, built on first use into `corpora/`."""
    if root:
        return Corpus.open(Path(root))
    folder = Path("corpora") / f"talking-{config_hash(embedded)}"
    if not (folder / MANIFEST).exists():
        print(f"building the embedded corpus first, {embedded.seconds:g} s of talking people: {folder}", flush=True)
    return build_talking_corpus(folder, embedded, workers=cores())


def build_talking_corpus(out: Path, options: TalkingCorpusOptions | None = None, *, workers: int = 2) -> Corpus:
    """Build the corpus in `out`, or finish one that was interrupted; a finished one is opened as it is.

    The same options give the same bytes on one machine, whatever the number of workers. Raises `UserError` when `out`
    holds a corpus of other options or cannot be written, or the face model is not there.
    """
    options = options or TalkingCorpusOptions()
    load_face_model(options.face_model)  # a wrong name should fail before a folder is made
    begin(out, {"corpus": "talking", **asdict(options)})
    if not (out / MANIFEST).exists():
        clean(out)
        plan = [(person, index) for index in range(options.clips) for person in range(options.identities)]
        units = [Unit(_name(*pair).replace("/", "_"), "1", pair) for pair in plan]
        job = Job(out, partial(_clip, options), partial(load_face_model, options.face_model), _describe)
        records = run_units(units, job, workers=workers, label="talking clips")
        failed = [drop for record in records for drop in record.drops]
        if failed:
            raise UserError(f"cannot build the corpus in {out}: {failed[0].source}: {failed[0].reason}")
        extra = {key: value for record in records for key, value in record.extra.items()}
        items = [item for record in records for item in record.items]
        write_manifest(out, items, split_by=options.split_by, extra=extra)
    return Corpus.open(out)


def _name(person: int, index: int) -> str:
    return f"person{person:05d}/{index:04d}"


def _describe(unit: Unit) -> str:
    return _name(*unit.payload)


def _split(options: TalkingCorpusOptions, person: int, index: int) -> str:
    place, count = (person, options.identities) if options.split_by == "identity" else (index, options.clips)
    held = max(1, round(count / 8))
    if place >= count - held:
        return "test"
    return "val" if place >= count - 2 * held else "train"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are rounded the same way whatever the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _clip(options: TalkingCorpusOptions, unit: Unit, model: FaceModel) -> Outcome:
    person, index = unit.payload
    language = options.languages[(index + person) % len(options.languages)]
    take = record(options.seed, person, index, language)
    path, options_hash = f"clips/{_name(person, index)}", config_hash(options)
    item = Item(
        id=path,
        identity=f"person{person:05d}",
        split=_split(options, person, index),
        kind="clip",
        path=path,
        frames=len(take.times),
        fps=float(FPS),
        samples=len(take.wave),
        language=language,
        sync_offset=0.0,
    )
    label = Provenance.create(ProvenanceConfig(), config_hash=options_hash, content=f"{options_hash} {path}")

    def fill(folder: Path) -> None:
        with _one_thread():
            made = perform(model, take, options.seed, person, index, size=options.size, max_yaw=options.max_yaw)
            drawn = draw(model, made, options.size)
            truth = _coefficients(made, model, options)
            write_clip(folder, drawn.images, take.wave, landmarks=drawn.landmarks, coefficients=truth, provenance=label)
        np.savez_compressed(folder / "mask.npz", head=drawn.masks)
        write_json(folder / "visemes.json", _spoken(take))

    extra = {"text": take.text, "characters": len(take.text), "face_model": options.face_model}
    return Outcome(products=[Product(item, fill, extra, label)])


def _coefficients(performance: Performance, model: FaceModel, options: TalkingCorpusOptions) -> dict[str, np.ndarray]:
    values = {key: value.numpy() for key, value in performance._asdict().items() if key != "background"}
    for key in ("identity", "albedo"):
        values[key] = values[key][0]
    return values | {
        "size": np.array(options.size),
        "face_model": np.array(options.face_model),
        "expression_names": np.array(model.expression_names),
    }


def _spoken(take: Take) -> dict[str, object]:
    """What `visemes.json` holds."""
    visemes = viseme_events(take.phonemes, take.language)
    return {
        "text": take.text,
        "language": take.language,
        "phonemes": [asdict(event) for event in take.phonemes],
        "visemes": [asdict(event) for event in visemes],
        "frames": frame_visemes(visemes, take.times),
    }
