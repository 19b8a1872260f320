"""The data doctor: what is wrong with the clips of a corpus, or with a folder of raw videos, one row a clip.

It measures and shows; raw data are never changed. `common.doctor_treat` writes a treated copy of a corpus.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from common.data.corpus import MANIFEST, SAMPLE_RATE, Corpus, Item
from common.data.engine import Drop, Engine, Job, Outcome, Product, Record, Unit, begin, run_units
from common.data.folder import digest, stamp_of
from common.data.prepare import worker_count
from common.data.talking import Recording, TalkingKit, TalkingSettings, TalkingTools
from common.data.talking_clip import measure_written, write_take
from common.data.talking_filter import PLAIN, ClipFilter
from common.data.talking_measures import (
    FPS,
    Measures,
    count_chars,
    face_measures,
    sound_measures,
    spread,
)
from common.data.talking_plan import plan_clips
from common.data.talking_prepare import Kit, find_syncnet
from common.data.talking_takes import main_person, takes_of
from common.data.talking_unit import sound_of, track_faces
from common.doctor_findings import Examination, Finding, out_of_step, write_table
from common.doctor_page import page
from common.errors import UserError
from common.files import write_text
from common.provenance import read_label
from common.video import Clip, probe_video
from common.video.reader import encodable_path

_THUMBNAIL = 112
_FACES_AT = 8
_EXCERPT = 10 * FPS


@dataclass(frozen=True)
class Patient:
    """One clip or raw video: the payload of a unit."""

    name: str
    """A clip's id, or a video's path below the folder."""
    path: str
    """The clip's folder, or the video."""
    identity: str
    split: str = ""
    recording: Recording | None = None
    """Of a raw video."""
    text: str = ""
    """What is said in a clip, where the manifest tells."""


def examine(
    target: Path,
    html: Path,
    *,
    bounds: ClipFilter = PLAIN,
    sync: str = "auto",
    backend: str = "dlib",
    workers: int | None = None,
    engine: Engine = "local",
    device: str = "cpu",
    toolkit: Kit = TalkingKit,
) -> Examination:
    """Measure every clip of a corpus, or every video below a folder; write the page and, beside it, the table.

    Args:
        target: a corpus with clips, or a folder of videos.
        html: the page; the table gets its name with the suffix .parquet.
        bounds: what counts as a problem.
        sync: SyncNet weights, see `prepare_talking`.
        backend: face backend.
        workers: processes; 0 works in this one, None takes all cores.
        engine: local, or ray.
        device: torch device of the networks.
        toolkit: makes the factory of the models; for tests.

    Returns:
        The findings in the order of the corpus or of the paths; their thumbnails are gone.

    Raises:
        UserError: neither a corpus with clips nor a folder of videos, or the page cannot be written.
    """
    weights, extractor = find_syncnet(sync)
    units, drops = _patients(target)
    settings = TalkingSettings(backend=backend, sync=extractor)
    work = html.with_name(f".{html.stem}.doctor")
    options = {"target": str(target.resolve()), "backend": backend, "sync": extractor}
    try:
        begin(work, options)
    except UserError:  # left by an examination of something else
        begin(work, options, fresh=True)
    job = Job(work, diagnose, toolkit(settings, device, weights), describe)
    count = worker_count(workers, len(units))
    records = run_units(units, job, workers=count, label="examining", engine=engine)
    findings = [_finding(record, unit.payload, bounds, work) for record, unit in zip(records, units, strict=True)]
    findings += [Finding(drop.source, "", "", Measures(), (drop.reason,)) for drop in drops]
    notes = [] if extractor else ["AV offset and confidence are empty: no SyncNet weights are here (syncnet_v2.model)"]
    examination = Examination(target, extractor, bounds, findings, notes)
    write_table(html.with_suffix(".parquet"), examination)
    write_text(html, page(examination))
    shutil.rmtree(work, ignore_errors=True)
    return replace(examination, findings=[replace(finding, thumbnail=None) for finding in findings])


def describe(unit: Unit) -> str:
    """A unit by its clip."""
    patient: Patient = unit.payload
    return patient.name


def diagnose(unit: Unit, tools: TalkingTools) -> Outcome:
    """Measure one `Patient`: a thumbnail with the measures as its columns."""
    patient: Patient = unit.payload
    if patient.recording is None:
        measures, image, video = _of_clip(patient, tools)
    else:
        measures, image, video = _of_video(patient.recording, tools)
    columns = {name: value for name, value in measures.columns().items() if value is not None}
    identifier = f"faces/{unit.key}"
    item = Item(identifier, patient.identity, "train", "face", f"{identifier}.png")
    return Outcome([Product(item, _thumbnail(image), {**columns, "synthetic": int(_is_labelled(video))})])


def _patients(target: Path) -> tuple[list[Unit], list[Drop]]:
    if (target / MANIFEST).exists():
        corpus = Corpus.open(target)
        clips = corpus.items(kind="clip")
        if not len(clips):
            raise UserError(f"the corpus {target} holds no clips; the doctor examines talking clips only")
        return [_clip_unit(corpus, row) for row in clips.to_dict("records")], []
    plan = plan_clips(target)
    units = []
    for unit in plan.units:
        recording: Recording = unit.payload
        patient = Patient(recording.source, recording.path, recording.identity, recording=recording)
        units.append(replace(unit, payload=patient))
    return units, plan.drops


def _clip_unit(corpus: Corpus, row: dict[Any, Any]) -> Unit:
    folder = corpus.file(row["path"])
    try:
        stamps = [f"{path.name} {stamp_of(path)}" for path in sorted(folder.iterdir())]
    except OSError as error:
        raise UserError(f"cannot read the clip {folder}: {error.strerror or error}") from error
    text = row.get("text")
    patient = Patient(row["id"], str(folder), row["identity"], row["split"], text=text if isinstance(text, str) else "")
    return Unit(digest(row["id"], 24), digest(f"{stamps}{patient.text}", 16), patient)


def _of_clip(patient: Patient, tools: TalkingTools) -> tuple[Measures, np.ndarray, Path]:
    """A clip's measures, in the pixels of its own pictures."""
    folder = Path(patient.path)
    clip = Clip(folder)
    wave, count = clip.wave(), len(clip)
    if not wave.shape[0]:
        raise UserError("its sound is empty")
    seconds = count / float(clip.fps)
    faces = [len(tools.faces.boxes(clip.frames(place, 1)[0])) for place in spread(count, _FACES_AT)]
    sound = sound_measures(wave, tools.speech(wave, SAMPLE_RATE))
    measures = Measures(
        seconds=seconds,
        fps=float(clip.fps),
        frames=count,
        av_difference=sound["audio_seconds"] - seconds,
        faces=max(faces),
        n_chars=count_chars(patient.text) if patient.text else None,
        **sound,
        **_face_of_clip(clip),
    )
    image = clip.frames(count // 2, 1)[0]
    scorer = tools.sync if clip.fps == FPS else None
    return measure_written(folder, measures, scorer), image, folder / "video.mp4"


def _face_of_clip(clip: Clip) -> dict[str, float]:
    """Face measures from the stored landmarks; the box is what they span."""
    points = clip.landmarks
    if points is None:
        return {}
    boxes = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)
    return face_measures(boxes, points, clip.size)


def _of_video(recording: Recording, tools: TalkingTools) -> tuple[Measures, np.ndarray, Path]:
    """A raw video's measures, in its own pixels, at 25 fps; sharpness and sync from 10 s of its longest take."""
    with encodable_path(Path(recording.path)) as path, encodable_path(Path(recording.audio or recording.path)) as audio:
        info = probe_video(path)
        sound = sound_of(recording, path, audio)
        tracking = track_faces(recording, path, tools)
    takes = takes_of(tracking, tools.settings.speaker)
    person = main_person(takes)
    own = [take for take in takes if take.person == person]
    boxes = np.concatenate([take.boxes for take in own])
    points = np.concatenate([np.where(take.found[:, None, None], take.landmarks, np.nan) for take in own])
    face = face_measures(boxes, points, tracking.size)
    found = sum(int(take.found.sum()) for take in own)
    heard = sound_measures(sound.wave(0, len(sound)), sound.speech(tools.speech))
    measures = Measures(
        seconds=info.seconds,
        fps=float(info.fps),
        frames=info.frames,
        av_difference=heard["audio_seconds"] - info.seconds,
        faces=max(take.faces for take in takes),
        n_chars=count_chars(recording.text) if recording.text else None,
        **{**heard, **face, "missing": 1 - found / tracking.frames},
    )
    longest = max(own, key=len)
    excerpt = longest.part(0, _EXCERPT)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_take(folder, recording, excerpt, sound, tools.settings)
        measures = measure_written(folder, measures, tools.sync)
        image = Clip(folder).frames(len(excerpt) // 2, 1)[0]
    return measures, image, Path(recording.path)


def _finding(record: Record, patient: Patient, bounds: ClipFilter, work: Path) -> Finding:
    if not record.items:
        reasons = tuple(drop.reason for drop in record.drops)
        return Finding(patient.name, patient.identity, patient.split, Measures(), reasons)
    item = record.items[0]
    columns = dict(record.extra[item.id])
    synthetic = bool(columns.pop("synthetic"))
    measures = Measures(**columns)
    problems = (*out_of_step(measures), *bounds.broken(measures))
    return Finding(patient.name, patient.identity, patient.split, measures, problems, synthetic, work / item.path)


def _thumbnail(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _is_labelled(video: Path) -> bool:
    try:
        return bool(read_label(video))
    except UserError:
        return False
