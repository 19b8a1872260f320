"""Names and shapes of the published files' tensors, and plain forward passes of them, written from the layer tables.

Nothing here uses the networks' code. `width` scales the channels as in the networks, so that tests stay small.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Shapes = dict[str, tuple[int, ...]]
# (inputs, outputs, kernel, stride, padding); "R" is a residual 3x3, "T" in front a transposed convolution.
Layer = tuple[int, int, int | tuple[int, int], int | tuple[int, int], int] | str

FACE_ENCODER: list[list[Layer]] = [
    [(6, 16, 7, 1, 3)],
    [(16, 32, 3, 2, 1), "R", "R"],
    [(32, 64, 3, 2, 1), "R", "R", "R"],
    [(64, 128, 3, 2, 1), "R", "R"],
    [(128, 256, 3, 2, 1), "R", "R"],
    [(256, 512, 3, 2, 1), "R"],
    [(512, 512, 3, 1, 0), (512, 512, 1, 1, 0)],
]
_SPEECH: list[Layer] = [
    (1, 32, 3, 1, 1), "R", "R",
    (32, 64, 3, (3, 1), 1), "R", "R",
    (64, 128, 3, 3, 1), "R", "R",
    (128, 256, 3, (3, 2), 1), "R",
]  # fmt: skip
_SPEECH_END: list[Layer] = [(256, 512, 3, 1, 0), (512, 512, 1, 1, 0)]
GENERATOR_SPEECH = [*_SPEECH, *_SPEECH_END]
EXPERT_SPEECH = [*_SPEECH, "R", *_SPEECH_END]
FACE_DECODER: list[list[Layer]] = [
    [(512, 512, 1, 1, 0)],
    [(1024, 512, 3, 1, 0), "R"],
    [(1024, 512, 3, 2, 1), "R", "R"],
    [(768, 384, 3, 2, 1), "R", "R"],
    [(512, 256, 3, 2, 1), "R", "R"],
    [(320, 128, 3, 2, 1), "R", "R"],
    [(160, 64, 3, 2, 1), "R", "R"],
]
EXPERT_FACE: list[Layer] = [
    (15, 32, 7, 1, 3),
    (32, 64, 5, (1, 2), 1), "R", "R",
    (64, 128, 3, 2, 1), "R", "R", "R",
    (128, 256, 3, 2, 1), "R", "R",
    (256, 512, 3, 2, 1), "R", "R",
    (512, 512, 3, 2, 1), (512, 512, 3, 1, 0), (512, 512, 1, 1, 0),
]  # fmt: skip
QUALITY: list[list[Layer]] = [
    [(3, 32, 7, 1, 3)],
    [(32, 64, 5, (1, 2), 2), (64, 64, 5, 1, 2)],
    [(64, 128, 5, 2, 2), (128, 128, 5, 1, 2)],
    [(128, 256, 5, 2, 2), (256, 256, 5, 1, 2)],
    [(256, 512, 3, 2, 1), (512, 512, 3, 1, 1)],
    [(512, 512, 3, 2, 1), (512, 512, 3, 1, 1)],
    [(512, 512, 3, 1, 0), (512, 512, 1, 1, 0)],
]
_SUMS = {1024: (512, 512), 768: (512, 256), 320: (256, 64), 160: (128, 32), 80: (64, 16)}


def _channels(count: int, width: float, *, joined: bool = False) -> int:
    parts = (384, 128) if joined and count == 512 else _SUMS.get(count, (count,)) if joined else (count,)
    return sum(max(1, round(part * width)) for part in parts)


def _block(name: str, shape: tuple[int, ...], outputs: int, norm: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.conv_block.0.weight": shape, f"{name}.conv_block.0.bias": (outputs,)}
    if norm:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.conv_block.1.{part}"] = (outputs,)
        shapes[f"{name}.conv_block.1.num_batches_tracked"] = ()
    return shapes


def _chain(prefix: str, layers: list[Layer], width: float, *, norm: bool = True, decoder: bool = False) -> Shapes:
    shapes: Shapes = {}
    outputs = 0
    for index, layer in enumerate(layers):
        if isinstance(layer, str):
            shape = (outputs, outputs, 3, 3)
        else:
            fixed = layer[0] in (1, 3, 6, 15)
            kernel = (layer[2], layer[2]) if isinstance(layer[2], int) else layer[2]
            transposed = decoder and kernel == (3, 3)
            inputs = layer[0] if fixed else _channels(layer[0], width, joined=transposed)
            outputs = _channels(layer[1], width)
            shape = (inputs, outputs, *kernel) if transposed else (outputs, inputs, *kernel)
        shapes |= _block(f"{prefix}.{index}", shape, outputs, norm)
    return shapes


def generator_shapes(width: float = 1.0) -> Shapes:
    """All tensors of wav2lip.pth."""
    shapes: Shapes = {}
    for index, layers in enumerate(FACE_ENCODER):
        shapes |= _chain(f"face_encoder_blocks.{index}", layers, width)
    shapes |= _chain("audio_encoder", GENERATOR_SPEECH, width)
    for index, layers in enumerate(FACE_DECODER):
        shapes |= _chain(f"face_decoder_blocks.{index}", layers, width, decoder=True)
    last = _channels(32, width)
    shapes |= _block("output_block.0", (last, _channels(80, width, joined=True), 3, 3), last)
    return shapes | {"output_block.1.weight": (3, last, 1, 1), "output_block.1.bias": (3,)}


def expert_shapes(width: float = 1.0) -> Shapes:
    """All tensors of lipsync_expert.pth."""
    return _chain("face_encoder", EXPERT_FACE, width) | _chain("audio_encoder", EXPERT_SPEECH, width)


def quality_shapes(width: float = 1.0) -> Shapes:
    """All tensors of visual_quality_disc.pth."""
    shapes: Shapes = {}
    for index, layers in enumerate(QUALITY):
        shapes |= _chain(f"face_encoder_blocks.{index}", layers, width, norm=False)
    return shapes | {"binary_pred.0.weight": (1, _channels(512, width), 1, 1), "binary_pred.0.bias": (1,)}


def random_state(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Weights under which maps neither vanish nor explode, with batch statistics that are not those of a new net."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = 0.5 + noise.abs()
        elif len(shape) == 4:
            transposed = "decoder" in name and name.endswith(".0.conv_block.0.weight") and shape[-1] == 3
            inputs = shape[0] if transposed else shape[1]
            state[name] = noise * (inputs * shape[2] * shape[3]) ** -0.5
        elif name.endswith("conv_block.1.weight"):
            state[name] = 1 + 0.2 * noise
        else:
            state[name] = 0.1 * noise
    return state


def _run(x: Tensor, state: Mapping[str, Tensor], name: str, layer: Layer, *, slope: float = 0.0) -> Tensor:
    weight, bias = state[f"{name}.conv_block.0.weight"], state[f"{name}.conv_block.0.bias"]
    stride, padding = (1, 1) if isinstance(layer, str) else layer[3:]
    if "decoder" in name and name.endswith(".0") and weight.shape[-1] == 3:
        y = F.conv_transpose2d(x, weight, bias, stride, padding, output_padding=1 if stride == 2 else 0)
    else:
        y = F.conv2d(x, weight, bias, stride, padding)
    if f"{name}.conv_block.1.weight" in state:
        mean, variance, scale, shift = (
            state[f"{name}.conv_block.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        y = F.batch_norm(y, mean, variance, scale, shift)
    return F.leaky_relu(y + x if layer == "R" else y, slope)


def _run_chain(x: Tensor, state: Mapping[str, Tensor], prefix: str, layers: list[Layer]) -> Tensor:
    for index, layer in enumerate(layers):
        x = _run(x, state, f"{prefix}.{index}", layer)
    return x


def generator(state: Mapping[str, Tensor], audio: Tensor, faces: Tensor) -> Tensor:
    """Windows (N,1,80,16) and faces (N,6,96,96) -> faces (N,3,96,96), in eval mode."""
    x = _run_chain(audio, state, "audio_encoder", GENERATOR_SPEECH)
    maps = []
    for index, layers in enumerate(FACE_ENCODER):
        faces = _run_chain(faces, state, f"face_encoder_blocks.{index}", layers)
        maps.append(faces)
    for index, layers in enumerate(FACE_DECODER):
        x = torch.cat([_run_chain(x, state, f"face_decoder_blocks.{index}", layers), maps[6 - index]], dim=1)
    x = _run(x, state, "output_block.0", (80, 32, 3, 1, 1))
    return torch.sigmoid(F.conv2d(x, state["output_block.1.weight"], state["output_block.1.bias"]))


def expert(state: Mapping[str, Tensor], audio: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Windows (N,1,80,16) and lower halves (N,15,48,96) -> unit embeddings of both, in eval mode."""
    a = _run_chain(audio, state, "audio_encoder", EXPERT_SPEECH).flatten(1)
    v = _run_chain(frames, state, "face_encoder", EXPERT_FACE).flatten(1)
    return a / a.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)


def quality(state: Mapping[str, Tensor], frames: Tensor) -> Tensor:
    """Lower halves (N,3,48,96) -> logits (N,1)."""
    for index, layers in enumerate(QUALITY):
        for position, layer in enumerate(layers):
            frames = _run(frames, state, f"face_encoder_blocks.{index}.{position}", layer, slope=0.01)
    return F.conv2d(frames, state["binary_pred.0.weight"], state["binary_pred.0.bias"]).flatten(1)
