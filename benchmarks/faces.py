"""Faces: detection, alignment, and the identity network beside dlib's own implementation of it."""

import time
from collections.abc import Callable

import numpy as np
import torch
from skimage.data import astronaut

from common.faces import align_face, load_backend
from common.faces.dlib_backend import dlib_weights, import_dlib
from common.faces.identity import DlibEmbedder

BATCH = 32


def best_of(function: Callable[[], object], repeats: int = 5) -> float:
    """The shortest of several runs in seconds, after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print milliseconds per picture."""
    image = astronaut()
    backend = load_backend("dlib")
    (face,) = backend.detect([image])[0]
    print(f"threads: {torch.get_num_threads()}")
    print(f"dlib detection and 68 landmarks, 512 px: {best_of(lambda: backend.detect([image])) * 1e3:.1f} ms")
    for size in (64, 224):
        seconds = best_of(lambda size=size: align_face(image, face.landmarks, size))  # type: ignore[misc]
        print(f"sub-pixel alignment, 512 px to {size} px: {seconds * 1e3:.1f} ms")
    crops = [align_face(image, face.landmarks, 128)] * BATCH
    embedder = DlibEmbedder()
    ours = best_of(lambda: embedder.embed(crops), 3) / BATCH
    own = import_dlib().face_recognition_model_v1(str(dlib_weights("dlib_face_recognition_resnet_model_v1.dat")))
    chips = [np.zeros((150, 150, 3), np.uint8)] * 4
    theirs = best_of(lambda: own.compute_face_descriptor(chips), 1) / len(chips)
    print(f"identity embedding, batch {BATCH}: {ours * 1e3:.1f} ms")
    print(f"the same by dlib: {theirs * 1e3:.1f} ms, {theirs / ours:.1f} times as long")
    if torch.cuda.is_available():
        on_gpu = DlibEmbedder(device="cuda")
        images = torch.zeros(256, 3, 128, 128, device="cuda")

        def embed() -> None:
            with torch.inference_mode():
                on_gpu.embed_tensor(images)
            torch.cuda.synchronize()

        print(f"identity embedding on the GPU, batch 256: {best_of(embed) / 256 * 1e3:.3f} ms")


if __name__ == "__main__":
    main()
