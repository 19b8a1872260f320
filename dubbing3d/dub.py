"""Dub a video through a 3D face model: lips that follow other speech, everything else as it was.

Three passes in constant memory. The first finds the faces. The second fits the face model to the chosen one through
the whole clip: one identity, smooth poses. The third draws: speech gives expressions, of which those of jaw, mouth and
tongue replace the fitted ones (lids, brows, cheeks and nose stay the video's), the renderer draws the lower face with
them, and it is blended back into the frame at its full resolution, which is encoded once.

A network speaks with the corpus's mouths: its silence is laid over the person's own closed mouth, and where nobody
speaks the mouth is just that.
"""

from dataclasses import asdict, replace
from pathlib import Path

from common.audio.vad import speech_segments
from common.config import config_hash
from common.dubbing.places import check_output
from common.dubbing.report import DubReport
from common.dubbing.speech import Detector
from common.dubbing.stream import Scene, dub_stream, ordinary_ending
from common.errors import UserError
from common.face3d.morphable import load_face_model
from common.faces.base import FaceBackend, load_backend
from common.files import sha256
from common.provenance import Provenance, ProvenanceConfig
from dubbing3d.build import load_expression, load_renderer
from dubbing3d.dubber import Dubber, DubSettings, Performer
from dubbing3d.infer import Adapting, FaceRenderer, LearnedRenderer
from dubbing3d.warp_renderer import WarpRenderer

WARP = "warp"


def check_renderer(renderer: str) -> Path | None:
    """The checkpoint that a `--renderer` names, None for the renderer without one; UserError for any other word."""
    if renderer == WARP:
        return None
    if not Path(renderer).exists():
        raise UserError(f"--renderer {renderer}: no such file; give a checkpoint, or the word {WARP}")
    return Path(renderer)


def load_performer(
    expression: Path, renderer: str, *, semantic: Path | None, face_model: str | None, device: str
) -> Performer:
    """From files.

    Args:
        expression: stage 1's checkpoint.
        renderer: stage 2's checkpoint, or "warp".
        semantic: a lipsync checkpoint, for a stage 1 that looks at drawn mouths.
        face_model: None is the one that the expression checkpoint names.
        device: torch device.

    Raises:
        UserError: a file of another kind, or parts of different face models.
    """
    first = load_expression(expression, device)
    model = load_face_model(face_model or first.mark.spec).to(device)
    first.mark.check_model(model, expression)
    drawing: FaceRenderer
    checkpoint = check_renderer(renderer)
    if checkpoint is None:
        drawing = WarpRenderer(model)
    else:
        second = load_renderer(checkpoint, device)
        second.mark.check_model(model, renderer)
        drawing = LearnedRenderer(second, model)
    return Performer(first, drawing, model, semantic)


def dub(
    performer: Performer,
    video: Path,
    audio: Path,
    out: Path,
    settings: DubSettings | None = None,
    *,
    backend: FaceBackend | None = None,
    detect: Detector = speech_segments,
    provenance: Provenance | None = None,
    sheet: Path | None = None,
    progress: bool = True,
) -> DubReport:
    """Write `out`, the video with lips that follow the speech; see above.

    Args:
        performer: the networks and the face model.
        video, audio, out: see `common.dubbing.stream.dub_stream`.
        settings: None is the default.
        backend: finds faces; None is dlib.
        detect: finds speech in the sound.
        provenance: the output's label; None is one without a checkpoint.
        sheet: where the debug sheet goes, a PNG; None makes none.
        progress: show how far it is.

    Raises:
        UserError: inputs that cannot be read or have no picture, face or sound; an output that cannot be written;
            `adapt` for a renderer that learns nothing.
    """
    settings = settings or DubSettings()
    if settings.adapt and not isinstance(performer.renderer, Adapting):
        raise UserError(f"the renderer {performer.renderer.name} learns nothing from a clip: leave --adapt out")
    if sheet is not None:
        check_output(sheet, ".png", (video, audio))
    made: list[Dubber] = []

    def prepare(scene: Scene) -> Dubber:
        made.append(Dubber(performer, scene, settings, debug=sheet is not None))
        return made[0]

    label = provenance or Provenance.create(ProvenanceConfig(), config_hash=config_hash(settings))
    report = dub_stream(
        video,
        audio,
        out,
        prepare,
        when_shorter=settings.when_shorter,
        crf=settings.crf,
        backend=backend,
        detect=detect,
        label=label,
        progress=progress,
    )
    if sheet is not None and made[0].sheet is not None:
        made[0].sheet.save(sheet, label)
    return report


def dub_files(
    expression: Path,
    renderer: str,
    video: Path,
    audio: Path,
    out: Path,
    settings: DubSettings,
    *,
    semantic: Path | None = None,
    face_model: str | None = None,
    sheet: Path | None = None,
    device: str = "cpu",
) -> DubReport:
    """`dub` with the networks of files, under a label that names them; an ending by SIGTERM leaves nothing behind.

    Raises:
        UserError: as `load_performer` and `dub`.
    """
    performer = load_performer(expression, renderer, semantic=semantic, face_model=face_model, device=device)
    answerable = replace(performer.expression.cfg.provenance, visible=settings.visible_label)
    used = {"expression": sha256(expression), "renderer": renderer if renderer == WARP else sha256(Path(renderer))}
    label = Provenance.create(
        answerable,
        config_hash=config_hash(asdict(settings) | used),
        checkpoint_sha256=used["expression" if renderer == WARP else "renderer"],
    )
    with ordinary_ending():
        found = load_backend(settings.backend, device)
        return dub(performer, video, audio, out, settings, backend=found, provenance=label, sheet=sheet)
