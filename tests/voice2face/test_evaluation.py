"""The report of an untrained model: the same bytes twice, galleries, groups, judges that are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config import load
from common.data.corpus import Corpus, Item, write_manifest
from common.errors import UserError
from common.faces import load_embedder
from common.metrics.fid import extract, image_quality, load_extractor
from voice2face.build import build_face_tower, build_generator, build_voice
from voice2face.config import Config
from voice2face.evaluation import Evaluation, evaluate, load_judges, person_groups, trained_with
from voice2face.infer import VoiceToFace
from voice2face.module import VoicePortrait
from voice2face.report import summary

SMOKE = Path(__file__).parents[2] / "experiments" / "voice2face" / "smoke.yaml"


def config(corpus: Corpus, *words: str) -> Config:
    return load(Config, SMOKE, [f"data.root={corpus.root}", "evaluation.portraits=2", *words])


def model(cfg: Config) -> VoiceToFace:
    torch.manual_seed(0)
    return VoiceToFace(cfg, build_voice(cfg), build_face_tower(cfg), build_generator(cfg), torch.device("cpu"))


@pytest.fixture(scope="module")
def found(identity_corpus: Corpus) -> Evaluation:
    cfg = config(identity_corpus, "evaluation.gallery_sizes=[2,3]")
    return evaluate(model(cfg), identity_corpus, cfg)


def test_the_same_model_gives_the_same_bytes(found: Evaluation, identity_corpus: Corpus) -> None:
    cfg = config(identity_corpus, "evaluation.gallery_sizes=[2,3]")
    torch.rand(3)  # the global random state must not matter
    again = evaluate(model(cfg), identity_corpus, cfg)
    first, second = (json.dumps(result.metrics, sort_keys=True, allow_nan=False) for result in (found, again))
    assert first == second


def test_fid_has_an_interval_over_people(found: Evaluation) -> None:
    quality = found.metrics["quality"]
    interval = quality["fid_interval"]
    extractor = load_extractor("dlib")
    features = [extract(extractor, [images]) for images in (found.real, found.portraits)]
    assert quality["n_fake"] == 6
    assert interval["value"] == pytest.approx(quality["fid[dlib_resnet_v1]"], rel=1e-6)
    assert interval["low"] <= interval["value"] < interval["high"]
    assert image_quality(*features, "dlib").fid != pytest.approx(interval["value"])  # one portrait each, not two


def test_retrieval_is_reported_for_each_gallery(found: Evaluation) -> None:
    identity = found.metrics["identity"]
    galleries = [identity["retrieval"], *identity["galleries"]]
    assert [(part["gallery_size"], part["galleries"], part["queries"]) for part in galleries] == [
        (3, 1, 3), (2, 1, 2), (3, 1, 3),
    ]  # fmt: skip
    assert [part["r@1"]["chance"] for part in galleries] == pytest.approx([1 / 3, 1 / 2, 1 / 3])
    assert identity["galleries"][1] == identity["retrieval"]
    assert identity["galleries"][0]["r@5"]["value"] is None
    assert "gallery of 2, dlib_resnet_v1" in summary(found.metrics)


def test_an_alarm_is_a_warning_line(found: Evaluation) -> None:
    alarm = found.metrics["identity"]["collapse"]
    assert alarm["raised"]  # untrained portraits ignore the voice
    warning = f"warning: by dlib_resnet_v1, {alarm['text']}"
    assert summary(found.metrics).splitlines()[-1] == warning
    quiet = found.metrics | {"warnings": []}
    assert "warning" not in summary(quiet)


def test_too_wide_a_gallery_ends_in_one_line(identity_corpus: Corpus) -> None:
    cfg = config(identity_corpus, "evaluation.gallery_sizes=[4]")
    with pytest.raises(UserError, match="a gallery of 4 needs as many people; there are 3"):
        evaluate(model(cfg), identity_corpus, cfg)
    with pytest.raises(UserError, match="gallery_sizes: galleries hold at least 2"):
        config(identity_corpus, "evaluation.gallery_sizes=[1]")
    with pytest.raises(UserError, match="fid_groups: wants 0, or at least 2"):
        config(identity_corpus, "evaluation.fid_groups=1")


def with_genders(corpus: Corpus, out: Path, genders: dict[str, str]) -> Corpus:
    """The corpus with a column that the rows of these people fill."""
    shutil.copytree(corpus.root, out)
    fields = Item.__dataclass_fields__
    items = [Item(**{name: row[name] for name in fields}) for row in corpus.table.to_dict("records")]
    items = [replace(item, sync_offset=None, sync_confidence=None) for item in items]
    extra = {item.id: {"gender": genders[item.identity]} for item in items if item.identity in genders}
    write_manifest(out, items, split_by=corpus.split_by, extra=extra)
    return Corpus.open(out)


def test_matching_within_groups_where_the_manifest_has_them(
    found: Evaluation, identity_corpus: Corpus, tmp_path: Path
) -> None:
    assert "same_group" not in found.metrics["identity"]["matching"]
    people = found.people
    told = with_genders(identity_corpus, tmp_path / "told", dict(zip(people, "ffm", strict=True)))
    cfg = config(told, "evaluation.fid_groups=0")
    metrics = evaluate(model(cfg), told, cfg).metrics
    matching = metrics["identity"]["matching"]
    assert matching["group"] == "gender"
    assert matching["same_group"]["n"] == 2  # the third person has no impostor of the same group
    assert matching["accuracy"] == found.metrics["identity"]["matching"]["accuracy"]
    assert "within gender" in summary(metrics)
    assert "fid_interval" not in metrics["quality"]
    partly = with_genders(identity_corpus, tmp_path / "partly", {people[0]: "f"})
    groups, why = person_groups(partly, people, "gender")
    assert groups is None
    assert why == "no matching within groups: 2 of 3 people have no gender"
    assert person_groups(partly, people, "") == (None, "")


def test_a_judge_from_the_training_loss_is_refused_unless_allowed(identity_corpus: Corpus) -> None:
    assert trained_with(config(identity_corpus)) == ["face_tower"]
    cfg = config(identity_corpus, "weights.perceptual=1", "weights.match=0")
    assert trained_with(cfg) == ["dlib_resnet_v1"]
    with pytest.raises(UserError, match=r"dlib_resnet_v1 is part of the training loss.*evaluation.allow_leakage=true"):
        evaluate(model(cfg), identity_corpus, cfg)
    cfg.evaluation.allow_leakage = True
    assert load_judges(cfg).warnings == ["dlib_resnet_v1 was part of the training loss: its figures flatter this model"]


def test_a_second_judge_is_reported_beside_the_first(identity_corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mean:
        """Embeds a crop by its mean colour."""

        name, dim = "mean", 3

        def embed(self, images: list[Any]) -> Tensor:
            return torch.stack([torch.tensor(image).float().mean(dim=(0, 1)) + 1 for image in images])

    known = load_embedder
    monkeypatch.setattr("voice2face.evaluation.load_embedder", lambda name: Mean() if name == "mean" else known(name))
    cfg = config(identity_corpus, "evaluation.second_embedder=mean", "evaluation.fid_groups=0")
    metrics = evaluate(model(cfg), identity_corpus, cfg).metrics
    assert metrics["second_identity"]["retrieval"]["embedder"] == "mean"
    assert metrics["second_identity"]["similarity"]["cosine"]["value"] > 0.8
    assert ", mean)" in summary(metrics)


def test_the_perceptual_loss_pulls_portraits_to_the_face(identity_corpus: Corpus) -> None:
    cfg = config(identity_corpus, "weights.perceptual=1")
    module = VoicePortrait(cfg, people=3)
    faces = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert module.perceptual_loss(faces, faces) == {}
    module.on_fit_start()
    names = set(module.state_dict())
    assert not any("perceiver" in name for name in names)
    assert module.perceptual_loss(faces, faces)["g_perceptual"].abs() < 1e-5
    portraits = (faces * 0.5 + 0.3).requires_grad_()
    loss = module.perceptual_loss(portraits, faces)["g_perceptual"]
    loss.backward()
    assert portraits.grad is not None
    nearer = portraits.detach() - 1e-3 * portraits.grad / portraits.grad.abs().max()
    assert module.perceptual_loss(nearer, faces)["g_perceptual"] < loss
