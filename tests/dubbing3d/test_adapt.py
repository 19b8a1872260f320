"""A trained renderer that learns a clip's person: it gets better at them, and only for them."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import UserError
from dubbing3d.adapt import Examples, adapted
from dubbing3d.build import LoadedRenderer, build_renderer
from dubbing3d.coefficients import FaceModelMark
from dubbing3d.config import DubbingConfig
from dubbing3d.crop_mask import crop_mask
from dubbing3d.dub import dub
from dubbing3d.dubber import DubSettings, Performer
from dubbing3d.guide import draw_guide
from dubbing3d.infer import ClipFrames, LearnedRenderer
from tests.common.toy_faces import ToyEmbedder
from tests.dubbing3d.toy_film import SIDE, Film, Painter, faces, filmed, model, save_speech, stage_one
from tests.dubbing3d.toy_networks import randomise
from tests.lipsync.toy_dub import all_of_it, save_exactly

SIZE, COUNT = 64, 5
MATRICES = torch.eye(2, 3, dtype=torch.float64).expand(COUNT, 2, 3) * SIZE / SIDE


def config(**renderer: object) -> DubbingConfig:
    cfg = DubbingConfig()
    cfg.renderer.width, cfg.renderer.size, cfg.renderer.batch_size, cfg.optim.g_lr = 0.03, SIZE, 2, 1e-2
    for name, value in renderer.items():
        setattr(cfg.renderer, name, value)
    return cfg


def loaded(cfg: DubbingConfig) -> LoadedRenderer:
    torch.manual_seed(0)
    network = build_renderer(cfg)
    randomise(network)
    return LoadedRenderer(network.eval(), FaceModelMark.of(model(), "builtin"), cfg)


@pytest.fixture(scope="module")
def clip() -> ClipFrames:
    face = faces([0.3, 0.0, 0.3, 0.6, 0.2])
    images, landmarks = filmed(face)
    crops = torch.nn.functional.avg_pool2d(images * 2 - 1, SIDE // SIZE)
    masks = crop_mask(model(), face, MATRICES, SIZE)
    return ClipFrames(crops, face, MATRICES, masks, landmarks * SIZE / SIDE)


def error(renderer: LearnedRenderer, clip: ClipFrames) -> float:
    """Mean absolute error in the hidden part, of frames drawn as they are."""
    image = renderer.render(clip.crops, clip.faces, clip.faces.expression, *clip[2:]).image
    return float(((image - clip.crops).abs() * clip.masks).sum() / clip.masks.sum() / 3)


@pytest.mark.parametrize("shape", [{}, {"references": 2, "reference_guide": True, "guide_mask": True}])
def test_it_draws_the_person_better_until_the_next_clip_begins(clip: ClipFrames, shape: dict[str, object]) -> None:
    cfg = config(**shape)
    trained, done = loaded(cfg), []
    weights = {name: value.clone() for name, value in trained.network.state_dict().items()}
    renderer = LearnedRenderer(trained, model())
    with torch.inference_mode():  # as a dub does
        renderer.begin(*clip)
        before = error(renderer, clip)
        renderer.adapt([clip], 10, done.append)
        after = error(renderer, clip)
        assert after < 0.9 * before
        assert done == [1] * 10
        assert all(torch.equal(value, weights[name]) for name, value in trained.network.state_dict().items())
        renderer.adapt([clip], 10)
        assert error(renderer, clip) == after  # again from the trained weights, by the same draws
        renderer.begin(*clip)
        assert error(renderer, clip) == before


def test_no_step_is_no_change(clip: ClipFrames) -> None:
    cfg = config()
    network = loaded(cfg).network
    guides = draw_guide(model(), clip.faces, MATRICES, SIZE)[0]
    examples = Examples(guides, clip.crops, clip.masks)
    same = adapted(network, cfg, (clip.crops[None, :1], None), examples, 0)
    assert same is not network
    for old, new in zip(network.parameters(), same.parameters(), strict=True):
        assert torch.equal(old, new)


class Learner(Painter):
    """Notes from what it was to learn, and for how long."""

    def __init__(self, adapt_steps: int) -> None:
        super().__init__()
        self.adapt_steps = adapt_steps
        self.learned: list[tuple[int, list[Tensor]]] = []

    def adapt(self, frames: Iterable[ClipFrames], steps: int, progress: Callable[[int], None] | None = None) -> None:
        assert len(self.begun) == 1
        self.learned.append((steps, [part.faces.expression for part in frames]))


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renderer: Painter, adapt: int | None, count: int = 9) -> None:
    monkeypatch.setattr("common.faces.track.load_embedder", lambda *_, **__: ToyEmbedder())
    film = Film(np.linspace(0, 0.5, count).tolist())
    dub(
        Performer(stage_one(), renderer, model()),
        save_exactly(tmp_path / "v.mp4", list(film.frames)),
        save_speech(tmp_path / "a.wav", 0.2),
        tmp_path / "o.mp4",
        DubSettings(colours=False, references=2, adapt=adapt, when_shorter="keep"),
        backend=film,
        detect=all_of_it,
        progress=False,
    )


def test_a_dub_lets_it_learn_from_the_other_frames_of_the_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(7)
    run(tmp_path, monkeypatch, learner, None)
    [(steps, parts)] = learner.learned
    assert steps == 7
    assert [len(part) for part in parts] == [4, 3]  # nine without two references, in the painter's batches
    jaws = torch.cat(parts)[:, model().expression_index("jawOpen")]
    shown = torch.cat([face.expression for face in learner.old])[:, model().expression_index("jawOpen")]
    assert set(jaws.tolist()) < set(shown.tolist())
    assert (jaws.diff() > 0).all()


@pytest.mark.parametrize(("own", "adapt", "found"), [(7, 0, []), (0, 3, [3]), (7, 3, [3]), (0, None, [])])
def test_the_command_overrules_the_configuration(
    own: int, adapt: int | None, found: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(own)
    run(tmp_path, monkeypatch, learner, adapt, count=4)
    assert [steps for steps, _ in learner.learned] == found


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="painter learns nothing from a clip: leave --adapt out"):
        run(tmp_path, monkeypatch, Painter(), 3, count=3)
    assert not list(tmp_path.glob("*o.mp4*"))
    with pytest.raises(UserError, match="adapt >= 0"):
        DubSettings(adapt=-1)


def test_a_clip_without_another_frame_teaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(7)
    run(tmp_path, monkeypatch, learner, None, count=1)
    assert learner.learned == []
