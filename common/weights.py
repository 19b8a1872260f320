"""External weights by name: where they come from, under which licence, where to put them; safe loading.

Nothing here is needed for the embedded quick starts. Checksums are SHA-256 digests; a shorter one is the
prefix that the publisher writes into the file name (the convention of torch.hub).
"""

import importlib.util
import os
import pickle
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from safetensors import SafetensorError

from common.errors import UserError
from common.files import atomic_path, sha256

if TYPE_CHECKING:  # the list of weights should not wait for torch
    from torch import Tensor


@dataclass(frozen=True)
class WeightEntry:
    """One file that a user may fetch: `page` is for people, `url` (where there is one) for `fetch_weights`."""

    name: str
    file_name: str
    page: str
    licence: str
    used_by: str
    sha256: str | None = None
    """Hexadecimal digest or its leading digits; None where no publisher states one."""
    url: str | None = None
    """Direct address of the very file, for what may be fetched without signing anything."""
    package: str | None = None
    """Installed distribution path (`package/inner/path`) that already contains the file."""
    note: str = ""


_TORCHVISION = "https://download.pytorch.org/models/"
_FAN = "https://www.adrianbulat.com/downloads/python-fan/"

_ENTRIES = (
    WeightEntry(
        "inception2015",
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights",
        "Apache-2.0",
        "common/metrics/fid.py: FID and KID as the papers compute them",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
        note="torch-fidelity publishes the same bytes as weights-inception-2015-12-05-6726825d.pth",
    ),
    WeightEntry(
        "lpips_alex",
        "lpips_alex.pth",
        "https://github.com/richzhang/PerceptualSimilarity",
        "BSD-2-Clause",
        "LPIPS head over AlexNet",
        sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        package="torchmetrics/functional/image/lpips_models/alex.pth",
    ),
    WeightEntry(
        "lpips_vgg",
        "lpips_vgg.pth",
        "https://github.com/richzhang/PerceptualSimilarity",
        "BSD-2-Clause",
        "LPIPS head over VGG16 (path length)",
        sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        package="torchmetrics/functional/image/lpips_models/vgg.pth",
    ),
    WeightEntry(
        "vgg16",
        "vgg16-397923af.pth",
        "https://pytorch.org/vision/stable/models/vgg.html",
        "BSD-3-Clause; trained on ImageNet (non-commercial research)",
        "LPIPS backbone, perceptual losses",
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        url=_TORCHVISION + "vgg16-397923af.pth",
    ),
    WeightEntry(
        "vgg19",
        "vgg19-dcbb9e9d.pth",
        "https://pytorch.org/vision/stable/models/vgg.html",
        "BSD-3-Clause; trained on ImageNet (non-commercial research)",
        "perceptual and style losses (judges.vgg of dubbing3d)",
        sha256="dcbb9e9d",
        url=_TORCHVISION + "vgg19-dcbb9e9d.pth",
    ),
    WeightEntry(
        "raft_large",
        "raft_large_C_T_SKHT_V2-ff5fadd5.pth",
        "https://pytorch.org/vision/stable/models/raft.html",
        "BSD-3-Clause",
        "the correspondence loss of dubbing3d (judges.raft)",
        sha256="ff5fadd5",
        url=_TORCHVISION + "raft_large_C_T_SKHT_V2-ff5fadd5.pth",
    ),
    WeightEntry(
        "alexnet",
        "alexnet-owt-7be5be79.pth",
        "https://pytorch.org/vision/stable/models/alexnet.html",
        "BSD-3-Clause; trained on ImageNet (non-commercial research)",
        "LPIPS backbone",
        sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        url=_TORCHVISION + "alexnet-owt-7be5be79.pth",
    ),
    WeightEntry(
        "facenet_vggface2",
        "20180402-114759-vggface2.pt",
        "https://github.com/timesler/facenet-pytorch/releases/tag/v2.2.9",
        "MIT (code); trained on VGGFace2 (non-commercial research)",
        "identity embedding of the SF2F protocol",
        sha256="281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b",
        url="https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/20180402-114759-vggface2.pt",
    ),
    WeightEntry(
        "s3fd",
        "s3fd-619a316812.pth",
        "https://github.com/1adrianb/face-alignment",
        "BSD-3-Clause (code); trained on WIDER FACE",
        "common/faces: detector of the face_alignment backend",
        sha256="619a31681264d3f7f7fc7a16a42cbbe8b23f31a256f75a366e5a1bcd59b33543",
        url=_FAN + "s3fd-619a316812.pth",
    ),
    WeightEntry(
        "fan",
        "2DFAN4-11f355bf06.pth.tar",
        "https://github.com/1adrianb/face-alignment",
        "BSD-3-Clause (code); trained on 300W-LP",
        "common/faces: 68 landmarks of the face_alignment backend",
        sha256="11f355bf0693120222f5955ce3f9dc8fb5763ebb30a47d7906e509490d32e4aa",
        url=_FAN + "2DFAN4-11f355bf06.pth.tar",
    ),
    WeightEntry(
        "stylegan2_ffhq",
        "stylegan2-ffhq-256x256.pkl",
        "https://catalog.ngc.nvidia.com/orgs/nvidia/teams/research/models/stylegan2",
        "NVIDIA Source Code License (non-commercial)",
        "voice2face: generator and discriminator to start from",
        note="a pickle in NVIDIA's PyTorch layout, read by the inert importer",
    ),
    WeightEntry(
        "rosinality_ffhq256",
        "550000.pt",
        "https://github.com/rosinality/stylegan2-pytorch",
        "MIT (code); trained on FFHQ (CC BY-NC-SA 4.0)",
        "voice2face: generator and discriminator to start from",
        note="linked from the page's section Pretrained Checkpoints",
    ),
    WeightEntry(
        "wen_voice_embedding",
        "voice_embedding.pth",
        "https://github.com/cmu-mlsp/reconstructing_faces_from_voices",
        "GPL-3.0",
        "voice2face: the DCGAN baseline's voice network",
        note="folder pretrained_models of the repository",
    ),
    WeightEntry(
        "wen_generator",
        "generator.pth",
        "https://github.com/cmu-mlsp/reconstructing_faces_from_voices",
        "GPL-3.0",
        "voice2face: the DCGAN baseline's generator",
        note="folder pretrained_models of the repository",
    ),
    WeightEntry(
        "syncnet_v2",
        "syncnet_v2.model",
        "https://www.robots.ox.ac.uk/~vgg/software/lipsync/",
        "MIT (code); trained on BBC recordings (research)",
        "lipsync: LSE-C and LSE-D",
        sha256="961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
    ),
    WeightEntry(
        "wav2lip_gan",
        "wav2lip_gan.pth",
        "https://github.com/Rudrabha/Wav2Lip",
        "personal, research and non-commercial use only (trained on LRS2)",
        "lipsync: import of the published generator",
    ),
    WeightEntry(
        "deep3d_epoch20",
        "epoch_20.pth",
        "https://github.com/sicxu/Deep3DFaceRecon_pytorch",
        "MIT (code); of use only with the licensed BFM09",
        "dubbing3d: coefficients of real faces",
    ),
    WeightEntry(
        "sadtalker_256",
        "SadTalker_V0.0.2_256.safetensors",
        "https://github.com/OpenTalker/SadTalker/releases/tag/v0.0.2-rc",
        "Apache-2.0 (early versions MIT); the coefficients are of use only with the licensed BFM09",
        "dubbing3d: coefficients of real faces, the same network as deep3d_epoch20",
    ),
    WeightEntry(
        "ict_facekit",
        "ict_facekit.npz",
        "https://github.com/ICT-VGL/ICT-FaceKit",
        "MIT (Copyright 2020 USC Institute for Creative Technologies)",
        "common/face3d: the ICT face model",
        note="written by the loader from a clone's FaceXModel folder",
    ),
    WeightEntry(
        "bfm09",
        "01_MorphableModel.mat",
        "https://faces.dmi.unibas.ch/bfm/main.php?nav=1-2&id=downloads",
        "Basel Face Model licence: sign on the page; non-commercial, no redistribution",
        "common/face3d: the BFM09 face model",
        note="put Exp_Pca.bin (linked from Deep3DFaceRecon_pytorch) beside it",
    ),
    WeightEntry(
        "bfm09_front",
        "BFM_model_front.mat",
        "https://faces.dmi.unibas.ch/bfm/main.php?nav=1-2&id=downloads",
        "Basel Face Model licence: sign on the page; non-commercial, no redistribution",
        "common/face3d: the BFM09 face model, ready made",
        note="written by Deep3DFaceRecon_pytorch from 01_MorphableModel.mat and Exp_Pca.bin",
    ),
    WeightEntry(
        "bfm09_expression",
        "Exp_Pca.bin",
        "https://github.com/Juyong/3DFace",
        "research purposes only (Guo et al. 2019)",
        "common/face3d: expressions of the BFM09 face model",
        note="linked from https://github.com/sicxu/Deep3DFaceRecon_pytorch, whose folder BFM (MIT) has std_exp.txt, "
        "facemodel_info.mat, BFM_front_idx.mat and BFM_exp_idx.mat; put all beside 01_MorphableModel.mat",
    ),
)

WEIGHTS: dict[str, WeightEntry] = {entry.name: entry for entry in _ENTRIES}


def weights_folder() -> Path:
    """`$SPEECHFACE_WEIGHTS`, or `speechface/weights` below the user's cache (XDG base directories)."""
    chosen = os.environ.get("SPEECHFACE_WEIGHTS")
    if chosen:
        return Path(chosen).expanduser()
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache_home.is_absolute():  # the XDG standard: unset, empty and relative values are ignored
        cache_home = Path.home() / ".cache"
    return cache_home / "speechface" / "weights"


def find_weights(name: str, path: Path | None = None) -> Path:
    """The file of entry `name`: `path` (a file, or a folder that holds it), else the weights folder, else a package.

    A file under its published name must have the published checksum. A file that `path` names otherwise is the
    user's own (fine-tuned, converted) and is taken as it is.

    Raises:
        UserError: unknown name, missing file (says what to put where), or a checksum that differs.
    """
    entry = _entry(name)
    candidates = [path / entry.file_name if path.is_dir() else path] if path else _usual_places(entry)
    for candidate in candidates:
        if candidate.is_file():
            if path is None or candidate.name == entry.file_name:
                _check(entry, candidate)
            return candidate
    raise UserError(_how_to_get(entry, candidates[0]))


def fetch_weights(name: str, timeout: float = 10.0) -> Path:
    """As `find_weights`, but fetches an absent file into the weights folder where it has a direct address.

    `timeout` is in seconds, per network operation. The file appears under its name only when it is whole and
    its checksum is right.

    Raises:
        UserError: as `find_weights`; and when the address cannot be reached or sends other bytes.
    """
    entry = _entry(name)
    target = weights_folder() / entry.file_name
    if entry.url is None or any(place.is_file() for place in _usual_places(entry)):
        return find_weights(name)
    try:
        response = urllib.request.urlopen(entry.url, timeout=timeout)
    except OSError as error:
        raise UserError(f"{entry.url} cannot be reached ({error}); {_how_to_get(entry, target)}") from error
    with response, atomic_path(target) as temporary:
        with open(temporary, "wb") as file:
            while block := _receive(response, entry.url):
                file.write(block)
        _check(entry, temporary, shown=entry.url)
    return target


def load_state(path: Path, key: str | None = None) -> "dict[str, Tensor]":
    """Named tensors of a PyTorch or safetensors file, on the CPU; the format is told by content, not by suffix.

    `key` picks one dictionary of several in the file (`net_recon`, `g_ema`, ...); without it a lone `state_dict`
    is unwrapped. Nothing in the file is executed.

    Raises:
        UserError: missing or torn file, a pickle that holds anything but tensors, no such `key`.
    """
    from torch import Tensor

    content = _read(path)
    if key is None and isinstance(content.get("state_dict"), Mapping):
        key = "state_dict"
    if key is not None:
        if not isinstance(content.get(key), Mapping):
            raise UserError(f"{path} has no dictionary {key!r}; it holds {_some(content)}")
        content = content[key]
    strangers = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if strangers or not content:
        raise UserError(f"{path} is not a plain dictionary of tensors: it holds {_some(content)}; name one part of it")
    return dict(content)


def report() -> str:
    """A table, one line per entry: name, present | absent | damaged, file, licence, use, page."""
    rows = [("name", "state", "file", "licence", "used by", "from")]
    for entry in _ENTRIES:
        try:
            find_weights(entry.name)
            state = "present"
        except UserError:
            state = "damaged" if any(place.is_file() for place in _usual_places(entry)) else "absent"
        rows.append((entry.name, state, entry.file_name, entry.licence, entry.used_by, entry.page))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    places = f"weights folder: {weights_folder()} (what comes inside a package is present without it)"
    return "\n".join([places, *lines])


def _entry(name: str) -> WeightEntry:
    if name not in WEIGHTS:
        raise UserError(f"unknown weights {name!r}; known: {', '.join(WEIGHTS)}")
    return WEIGHTS[name]


def _usual_places(entry: WeightEntry) -> list[Path]:
    places = [weights_folder() / entry.file_name]
    if entry.package:
        package, _, inner = entry.package.partition("/")
        found = importlib.util.find_spec(package)
        if found and found.submodule_search_locations:
            places.append(Path(found.submodule_search_locations[0]) / inner)
    return places


def _how_to_get(entry: WeightEntry, place: Path) -> str:
    note = f" ({entry.note})" if entry.note else ""
    return (
        f"weights {entry.name!r} are missing: get {entry.file_name} from {entry.page}{note}, licence: "
        f"{entry.licence}; put it at {place} or set SPEECHFACE_WEIGHTS to its folder"
    )


def _receive(response: IO[bytes], url: str) -> bytes:
    try:
        return response.read(1 << 20)
    except (OSError, HTTPException) as error:
        raise UserError(f"the connection to {url} broke ({error!r}); try again") from error


def _check(entry: WeightEntry, path: Path, shown: str | None = None) -> None:
    if entry.sha256 is None:
        return
    status = path.stat()
    digest = _digest(path, status.st_size, status.st_mtime_ns)
    if not digest.startswith(entry.sha256):
        raise UserError(
            f"{shown or path} has SHA-256 {digest[:16]}…, expected {entry.sha256[:16]}…: it is torn or another file; "
            f"get {entry.file_name} again from {entry.page}"
        )


@cache
def _digest(path: Path, size: int, modified_ns: int) -> str:
    """SHA-256 of a file; size and time are part of the cache key, so that a replaced file is read again."""
    return sha256(path)


def _read(path: Path) -> Mapping[str, Any]:
    import torch
    from safetensors.torch import load_file

    try:
        with open(path, "rb") as file:
            head = file.read(9)
        if head[8:9] == b"{":  # safetensors: 8 bytes of header length, then JSON
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read weights {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is torn, or a pickle with code or objects besides tensors, which is never run"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        # hostile and torn bytes make the restricted reader fail in any of these ways
        words = str(error)[:120]
        said = f": {words}" if " " in words else ""  # a bare number or key tells nobody anything
        raise UserError(f"{path} is not a readable weights file: torn, or of another kind{said}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def _some(content: Mapping[str, Any]) -> str:
    shown = ", ".join(str(name) for name in list(content)[:6]) or "nothing"
    return shown + (", …" if len(content) > 6 else "")
