"""Stage 2 resumes to the same bits, follows the three phases, and hides what it must not see."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from common.checkpoints import LAST, load_checkpoint
from common.config import load
from common.data.corpus import Corpus
from common.data.sampling import Draw
from common.errors import UserError
from dubbing3d.build import EXPRESSION_KIND, KIND, load_expression, load_renderer
from dubbing3d.clips import corpus_model
from dubbing3d.config import DubbingConfig
from dubbing3d.data import open_corpus
from dubbing3d.motion import carried
from dubbing3d.networks import RenderOutput
from dubbing3d.renderer_data import RendererData, faces_of
from dubbing3d.renderer_module import RendererTraining, pasted, phase_epsilon
from dubbing3d.train import judge_frames, train, train_renderer
from tests.dubbing3d.toy_dub import toy_dub

SMOKE = Path(__file__).parents[2] / "experiments" / "dubbing3d" / "smoke.yaml"
STEPS = ["trainer.steps=3", "trainer.val_every=2", "renderer.align_steps=1", "renderer.early_steps=1"]
STEPS += ["renderer.recurrent=true"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return toy_dub(tmp_path_factory.mktemp("dub") / "corpus")


def config(corpus: Corpus, out: Path, *more: str) -> DubbingConfig:
    fixed = [f"data.root={corpus.root}", f"run.out={out}", "wandb.mode=disabled", "trainer.progress=false"]
    return load(DubbingConfig, SMOKE, [*fixed, "trainer.threads=1", "expression.train=false", *more])


def losses(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    """The run folder of three steps, one in each phase."""
    return train(config(corpus, tmp_path_factory.mktemp("whole"), *STEPS))


def test_a_run_in_two_sittings_equals_one(corpus: Corpus, tmp_path: Path, whole: Path) -> None:
    train_renderer(config(corpus, tmp_path, *STEPS, "trainer.kwargs={limit_train_batches: 1}"), corpus)
    folder = train(config(corpus, tmp_path, *STEPS), resume=True)
    assert losses(folder) == losses(whole)
    ours, theirs = (load_checkpoint(path / LAST, KIND) for path in (folder, whole))
    assert all(torch.equal(ours["state_dict"][key], value) for key, value in theirs["state_dict"].items())
    assert ours["state_dict"]["renderer.rbfin.recall.weight"].any()  # 0 at first


def test_the_log_has_the_houses_keys_and_the_phases(whole: Path) -> None:
    rows = losses(whole)
    assert [float(row["train/epsilon"]) for row in rows] == pytest.approx([0, 0.1, 0.2])
    texture = {f"train/loss_e_{name}" for name in ("rec", "ssim", "perceptual", "wgan", "correspondence")}
    inpainting = {f"train/loss_i_{name}" for name in ("rec", "ssim", "perceptual", "style", "wgan")}
    assert texture | inpainting | {"train/g_loss", "train/d_loss"} <= set(rows[0])
    assert not any(rows[0][name] for name in inpainting)
    assert all(rows[1][name] for name in texture | inpainting)
    for prefix in ("", "texture_", "copy_"):
        assert all(rows[1][f"val/{prefix}{name}"] for name in ("psnr", "ssim", "mouth_psnr", "mouth_ssim"))
    assert list((whole / "samples").glob("*.png"))


def test_checkpoints_hold_no_model_and_no_judge(whole: Path) -> None:
    state = load_checkpoint(whole / LAST, KIND)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"renderer", "critic"}
    found = load_renderer(whole / LAST)
    assert (found.mark.spec, found.network.image_size, found.network.training) == ("builtin", 64, False)
    with pytest.raises(UserError, match=f"{EXPRESSION_KIND!r} is needed"):
        load_expression(whole / LAST)


def module(corpus: Corpus, out: Path, *more: str) -> tuple[RendererTraining, dict[str, Tensor]]:
    """A fresh module without judges and a batch of two frames."""
    cfg = config(corpus, out, *more)
    model, mark = corpus_model(corpus, cfg.data)
    data = RendererData(corpus, cfg, mark)
    found = RendererTraining(cfg, model, mark)
    found.trainer = SimpleNamespace(global_rank=0, world_size=1)
    return found, default_collate([data.train_set[Draw(index, 3 + index)] for index in range(2)])


def test_the_renderer_does_not_see_what_is_hidden(corpus: Corpus, tmp_path: Path) -> None:
    found, batch = module(corpus, tmp_path)
    inputs = found.inputs(batch)
    assert inputs.mask.amax() == 1
    assert 0.05 < float(inputs.mask.mean()) < 0.5
    hidden = (inputs.mask == 1).expand_as(inputs.target)
    changed = batch | {"target": torch.where(hidden, 255 - batch["target"], batch["target"])}
    again = found.inputs(changed)
    assert torch.equal(again.crop, inputs.crop)
    assert torch.equal(again.guide, inputs.guide)
    assert torch.equal(
        inputs.crop[~(inputs.mask > 0).expand_as(inputs.target)],
        inputs.target[~(inputs.mask > 0).expand_as(inputs.target)],
    )
    assert (inputs.crop[hidden] == 0).all()
    assert torch.equal(pasted(torch.zeros_like(inputs.target), inputs)[hidden], torch.zeros(int(hidden.sum())))


def test_the_guide_shows_the_targets_expression_and_the_mask_does_not(corpus: Corpus, tmp_path: Path) -> None:
    found, batch = module(corpus, tmp_path)
    jaw = found._frozen[0].expression_index("jawOpen")
    other = batch | {"expression": batch["expression"].clone()}
    other["expression"][:, 0, jaw] = 1 - other["expression"][:, 0, jaw]
    before, after = found.inputs(batch), found.inputs(other)
    assert not torch.equal(before.guide, after.guide)
    assert torch.equal(before.mask, after.mask)
    other["expression"][:, 1:] = 0.5
    assert torch.equal(found.inputs(other).guide, after.guide)


@pytest.mark.parametrize(
    "words",
    [
        ["renderer.references=3", "renderer.reference_guide=true", "renderer.guide_mask=true"],
        ["renderer.recurrent=true", "renderer.scale=one"],
        ["renderer.warp=false", "renderer.enhance=false", "renderer.align_steps=0"],
        ["renderer.enhance=false", "weights.wgan=0"],
        ["renderer.scales=[low]", "renderer.mask=landmark"],
        ["renderer.msaf=false"],
    ],
    ids=lambda words: words[0],
)
def test_every_form_draws_and_learns(corpus: Corpus, tmp_path: Path, words: list[str]) -> None:
    found, batch = module(corpus, tmp_path, *words)
    inputs = found.inputs(batch, recall=torch.tensor([False, True]))
    assert (inputs.previous is not None) == found.renderer.recurrent
    if inputs.previous is not None:
        assert inputs.previous[0].abs().max() == 0 < inputs.previous[1].abs().max()
    output = found(inputs)
    assert isinstance(output, RenderOutput)
    terms = found.terms(output, inputs)
    assert ("wgan" in terms["i"]) == (found.critic is not None)
    loss = sum(value for side in terms.values() for value in side.values())
    loss.backward()
    rbfin = found.renderer.rbfin
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in rbfin.parameters())
    optimizers = found.configure_optimizers()
    assert len(optimizers) == 1 + (found.critic is not None)
    assert {id(p) for group in optimizers[0].param_groups for p in group["params"]} == {
        id(p) for p in found.renderer.parameters()
    }


def test_the_frame_before_is_shown_as_it_was_drawn_where_the_face_is_now(corpus: Corpus, tmp_path: Path) -> None:
    found, batch = module(corpus, tmp_path, "renderer.recurrent=true", "renderer.references=2")
    assert batch["follows"].all()
    found.eval()
    inputs = found.inputs(batch)
    target = found.inputs(batch, recall=False)
    assert target.previous is None
    before = batch | {"target": batch["before"], "landmarks": batch["landmarks_before"]}
    for name in ("expression", "angles", "translation", "gamma", "matrix", "crops"):
        before[name] = batch[name].roll(1, dims=1)  # the frame before is the last row
    alone = found.inputs(before, recall=False)
    with torch.no_grad():
        drawn = found(alone._replace(references=target.references)).image_i
    moved = carried(found._frozen[0], drawn, *faces_of(batch, slice(3, 4)), *faces_of(batch, slice(0, 1)))
    assert inputs.previous is not None
    assert torch.equal(inputs.previous, moved)
    assert (moved - drawn).abs().max() > 0.05
    hidden = (alone.mask == 1).expand_as(alone.target)
    truth = torch.where(hidden, 255 - batch["before"], batch["before"])
    unchanged = found.inputs(batch | {"before": truth}).previous
    first = found.inputs(batch | {"follows": torch.tensor([True, False])}).previous
    assert unchanged is not None
    assert first is not None
    assert torch.equal(unchanged, inputs.previous)
    assert torch.equal(first[0], inputs.previous[0])
    assert not first[1].any()


def test_a_renderer_without_memory_moves_no_picture(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dubbing3d.renderer_module.carried", None)
    found, batch = module(corpus, tmp_path)
    assert found.inputs(batch).previous is None
    assert "before" not in batch


def test_epsilon_has_three_phases(corpus: Corpus, tmp_path: Path) -> None:
    cfg = config(corpus, tmp_path, "renderer.align_steps=3", "renderer.early_steps=2", "renderer.epsilon=[0.3, 0.4]")
    assert [phase_epsilon(cfg.renderer, step) for step in range(7)] == [0, 0, 0, 0.3, 0.3, 0.4, 0.4]


def test_judges_see_frames_of_all_clips(corpus: Corpus, tmp_path: Path) -> None:
    cfg = config(corpus, tmp_path)
    _, mark = corpus_model(corpus, cfg.data)
    frames = judge_frames(RendererData(corpus, cfg, mark).clips, most=30)
    assert frames.shape == (30, 3, 64, 64)
    assert frames.min() >= -1
    assert frames.max() <= 1


def test_wrong_forms_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    for words, message in (
        ("renderer.size=100", "multiple of 32"),
        ("renderer.scales=[low,middle]", "middle is none of"),
        ("renderer.warp=false", "nothing to align|need renderer.warp"),
        ("weights.style=-1", "none can be negative"),
        ("renderer.train=false", "nothing to train"),
        ("data.min_confidence=2", "0 to 1"),
    ):
        more = ["renderer.enhance=false"] if words == "renderer.warp=false" else []
        with pytest.raises(UserError, match=message) as error:
            config(corpus, tmp_path, words, *more)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no corpus at"):
        open_corpus(config(corpus, tmp_path, "data.root=nowhere").data)
