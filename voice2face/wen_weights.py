"""The published weights of Wen et al.: `voice_embedding.pth` and `generator.pth` (repository in `common.weights`).

Both are plain dictionaries with keys `model.{layer}.{weight|bias|running_*}`. Which of the two networks a file holds,
and how large it is, is read from its tensors, so that retrained files of other widths load as well.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

from torch import Tensor, nn

from common.errors import UserError
from common.weights import load_state
from voice2face.networks.dcgan import DCGANGenerator
from voice2face.networks.wen_voice import WenVoiceEncoder

WenKind = Literal["voice", "generator"]
N = TypeVar("N", bound=nn.Module)
FIRST = "model.0.weight"
TITLES: dict[WenKind, str] = {"voice": "voice network", "generator": "generator"}


def wen_kind(state: Mapping[str, Tensor]) -> WenKind | None:
    """Which of Wen's networks has these named tensors; None for neither."""
    first = state.get(FIRST)
    if first is None or not all(name.startswith("model.") for name in state):
        return None
    if first.ndim == 3 and "model.1.running_mean" in state:
        return "voice"
    return "generator" if first.ndim == 4 and first.shape[2:] == (4, 4) else None


def file_kind(path: Path) -> WenKind | None:
    """Which of Wen's networks a file holds; None for any other or unreadable file."""
    try:
        return wen_kind(load_state(path))
    except UserError:
        return None


def load_wen_voice(path: Path) -> WenVoiceEncoder:
    """The voice network of a `voice_embedding.pth`, in eval mode; its embeddings are not normalised.

    Raises:
        UserError: missing, torn or unsafe file, or one that holds something else.
    """
    state = _read(path, "voice")
    weights = [value for name, value in state.items() if name.endswith(".weight") and value.ndim == 3]
    encoder = _build(
        path,
        WenVoiceEncoder,
        {"embedding_dim": len(weights[-1]), "bands": weights[0].shape[1], "width": len(weights[0])},
    )
    # PyTorch before 0.4.1 did not count batches; nothing but a cumulative average reads the count.
    counts = {name: value for name, value in encoder.state_dict().items() if name.endswith("num_batches_tracked")}
    return _fill(path, encoder, encoder, counts | state)


def load_wen_generator(path: Path) -> DCGANGenerator:
    """The generator of a `generator.pth`, in eval mode.

    Its latent is a unit vector (64 wide in the published file); `mapping.w_avg` is the origin, since the file has no
    average.

    Raises:
        UserError: as `load_wen_voice`.
    """
    state = _read(path, "generator")
    weights = [value for name, value in state.items() if name.endswith(".weight") and value.ndim == 4]
    # One 4x4 layer makes 4 px, each further one doubles, the last weight is the 1x1 layer to RGB.
    resolution = 2 ** len(weights)
    arguments = {
        "resolution": resolution,
        "z_dim": len(weights[0]),
        "channel_base": resolution * len(weights[-1]),
        "channel_max": weights[0].shape[1],
    }
    generator = _build(path, DCGANGenerator, arguments)
    return _fill(path, generator, generator.synthesis, state)


def _read(path: Path, wanted: WenKind) -> dict[str, Tensor]:
    state = load_state(path)
    kind = wen_kind(state)
    if kind != wanted:
        names = ", ".join(list(state)[:4])
        found = f"it is Wen's {TITLES[kind]}" if kind else f"its tensors are {names}, …"
        raise UserError(f"{path} does not hold the {TITLES[wanted]} of Wen et al.: {found}; name the other file")
    return state


def _build(path: Path, network: type[N], arguments: dict[str, int]) -> N:
    try:
        return network(**arguments)
    except (ValueError, UserError) as error:
        raise UserError(f"{path} has the keys of Wen's {network.__name__}, but a strange size: {error}") from error


def _fill(path: Path, network: N, target: nn.Module, state: Mapping[str, Tensor]) -> N:
    try:
        target.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path} has other layers than Wen's network: {str(error)[:300]}") from error
    return network.eval()
