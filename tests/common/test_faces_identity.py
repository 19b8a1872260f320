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
from common.faces.identity import DlibEmbedder


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
    network = dlib.face_recognition_model_v1(str(dlib_weights("dlib_face_recognition_resnet_model_v1.dat")))
    parts = [dlib.point(int(x), int(y)) for x, y in landmarks]
    own = network.compute_face_descriptor(image, dlib.full_object_detection(dlib.rectangle(0, 0, 9, 9), parts))
    reference = torch.nn.functional.normalize(torch.tensor(own), dim=0)
    crops = [align_face(image, landmarks, size) for size in (64, 224)]
    small, large, direct = torch.cat([embedder.embed(crops), embedder.embed([image], [landmarks])])
    assert large @ reference > 0.998
    assert direct @ reference > 0.998
    assert small @ reference > 0.98


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
