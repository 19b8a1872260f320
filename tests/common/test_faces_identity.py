"""Identity embedding: against dlib's own pipeline, over crop sizes, and on real people."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from common.errors import UserError
from common.faces import align_face, load_backend, load_embedder, read_image
from common.faces.dlib_backend import DlibBackend, dlib_weights, import_dlib
from common.faces.dlib_resnet import load_dlib_resnet
from common.faces.identity import DlibEmbedder

WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"


@pytest.fixture(scope="module")
def embedder() -> DlibEmbedder:
    return DlibEmbedder()


@pytest.fixture(scope="module")
def portrait() -> tuple[np.ndarray, np.ndarray]:
    """A photograph and its landmarks."""
    image = astronaut()
    return image, load_backend("dlib").detect([image])[0][0].landmarks


def test_embeddings_are_unit_rows_and_repeatable(embedder: DlibEmbedder) -> None:
    rng = np.random.default_rng(0)
    crops = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (31, 64)]
    first = embedder.embed(crops)
    assert first.shape == (2, embedder.dim) == (2, 128)
    assert first.dtype == torch.float32
    torch.testing.assert_close(first.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(embedder.embed(crops), first, atol=0, rtol=0)
    torch.testing.assert_close(embedder.embed(crops[1:]), first[1:], atol=1e-5, rtol=0)
    assert embedder.embed([]).shape == (0, 128)
    assert embedder.name == "dlib_resnet_v1"


def test_a_crop_embeds_as_dlibs_own_pipeline_embeds_the_photograph(
    embedder: DlibEmbedder, portrait: tuple[np.ndarray, np.ndarray]
) -> None:
    image, landmarks = portrait
    dlib = import_dlib()
    network = dlib.face_recognition_model_v1(str(dlib_weights(WEIGHTS)))
    parts = [dlib.point(int(x), int(y)) for x, y in landmarks]
    own = network.compute_face_descriptor(image, dlib.full_object_detection(dlib.rectangle(0, 0, 9, 9), parts))
    reference = torch.nn.functional.normalize(torch.tensor(own), dim=0)
    crops = [align_face(image, landmarks, size) for size in (64, 224)]
    small, large, direct = torch.cat([embedder.embed(crops), embedder.embed([image], [landmarks])])
    assert large @ reference > 0.998
    assert direct @ reference > 0.998
    assert small @ reference > 0.98


def test_the_network_gives_dlibs_own_numbers() -> None:
    chips = [np.random.default_rng(seed).integers(0, 256, (150, 150, 3), dtype=np.uint8) for seed in (0, 1)]
    chips.append(np.ascontiguousarray(astronaut()[40:190, 150:300]))
    own = import_dlib().face_recognition_model_v1(str(dlib_weights(WEIGHTS))).compute_face_descriptor(chips)
    network = load_dlib_resnet(dlib_weights(WEIGHTS))
    batch = torch.from_numpy(np.stack(chips)).permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(network(batch), torch.from_numpy(np.array(own)).float(), atol=1e-5, rtol=0)


def test_weights_that_are_torn_or_of_another_network_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "torn.dat").write_bytes(dlib_weights(WEIGHTS).read_bytes()[:1_000_000])
    (tmp_path / "text.dat").write_text("hello")
    (tmp_path / "long.dat").write_bytes(dlib_weights(WEIGHTS).read_bytes() + bytes(5000))
    for name in ("torn.dat", "text.dat", "long.dat", "absent.dat"):
        with pytest.raises(UserError, match=name):
            load_dlib_resnet(tmp_path / name)
    with pytest.raises(UserError, match="mmod_human"):
        load_dlib_resnet(dlib_weights("mmod_human_face_detector.dat"))


def test_a_batch_tensor_embeds_as_the_crops_do_and_carries_gradients(embedder: DlibEmbedder) -> None:
    rng = np.random.default_rng(3)
    crops = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(2)]
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
    images.requires_grad_()
    vectors = embedder.embed_tensor(images)
    torch.testing.assert_close(vectors.detach(), embedder.embed(crops), atol=1e-5, rtol=0)
    (vectors[0] @ vectors[1]).backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in embedder._network.parameters())


def test_the_margin_of_the_crops_is_taken_into_account(portrait: tuple[np.ndarray, np.ndarray]) -> None:
    image, landmarks = portrait
    tight = load_embedder("dlib", margin=0.25).embed([align_face(image, landmarks, 150, 0.25)])
    wide = load_embedder("dlib", margin=0.7).embed([align_face(image, landmarks, 400, 0.7)])
    assert tight[0] @ wide[0] > 0.998


def test_unusable_input_is_refused_in_one_line(embedder: DlibEmbedder) -> None:
    with pytest.raises(UserError, match="square"):
        embedder.embed([np.zeros((64, 65, 3), np.uint8)])
    with pytest.raises(UserError, match="uint8"):
        embedder.embed([np.zeros((64, 64, 3), np.float32)])
    with pytest.raises(UserError, match="choose dlib"):
        load_embedder("arcface")


@pytest.mark.media
def test_one_person_is_nearer_to_herself_than_to_anyone_else(media: Path, embedder: DlibEmbedder) -> None:
    backend = DlibBackend()
    people = []
    for path in sorted((media / "real" / "photos").glob("*.png")):
        image = read_image(path)
        landmarks = backend.detect([image])[0][0].landmarks
        darker = (image * 0.7).astype(np.uint8)
        mirrored = np.ascontiguousarray(image[:, ::-1])
        crops = [align_face(picture, landmarks, size) for picture, size in ((image, 224), (image, 64), (darker, 96))]
        crops.append(align_face(mirrored, backend.detect([mirrored])[0][0].landmarks, 128))
        people.append(embedder.embed(crops))
    assert len(people) >= 5
    same = min(float((vectors @ vectors.T).min()) for vectors in people)
    other = max(float((a @ b.T).max()) for a, b in combinations(people, 2))
    assert same > other
