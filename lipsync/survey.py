"""The user study of paper 3, table 3: one page with blinded videos of several methods, and its key in another file.

The page is all that a rater needs: the videos are in it, and it saves the ratings as a file that the rater sends back.
`lipsync.survey_ratings` turns these into means.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from common.config import config_hash
from common.errors import UserError
from common.files import atomic_path, sha256, write_json
from common.score_videos import video_files
from lipsync.survey_page import after_video, before_video, head, tail

KINDS = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm"}
"""What browsers play."""
KEY_SUFFIX = ".key.json"
_CHUNK = 3 << 18  # bytes encoded at once, a multiple of three


def parse_methods(words: Sequence[str]) -> dict[str, Path]:
    """Folders by the names of the methods, from words `NAME=FOLDER`.

    Raises:
        UserError: another form, a name twice, or no such folder.
    """
    found: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        name = name.strip()
        if not equals or not name or not folder:
            raise UserError(f"--method wants NAME=FOLDER, such as Wav2Lip=videos/wav2lip, not {word!r}")
        if name in found:
            raise UserError(f"the method {name!r} is given twice")
        if not Path(folder).is_dir():
            raise UserError(f"no folder of videos at {folder}")
        found[name] = Path(folder)
    return found


def make_survey(methods: Mapping[str, Path], out: Path, *, clips: int, megabytes: float, seed: int) -> str:
    """Write the page `out` and its key beside it; return the words to print.

    Every method shows the same clips. Which video is whose stands in the key alone: neither names of methods nor of
    files are on the page, and the order of all videos is drawn by `seed`. The bytes of the videos are taken as they
    are, so that their labels as synthetic stay in them.

    Args:
        methods: folder of videos by method; videos of one clip have one name.
        out: ends in .html.
        clips: of each method, at most, spread evenly over those that all have.
        megabytes: of videos, at most.
        seed: of the order.

    Raises:
        UserError: no clip that all methods have, videos that no browser plays, too many bytes, an unwritable place.
    """
    if out.suffix.lower() not in {".html", ".htm"}:
        raise UserError(f"the survey is a page: {out} does not end in .html")
    files = {name: _videos(folder) for name, folder in methods.items()}
    shared = _shared(files)
    places = np.linspace(0, len(shared) - 1, min(clips, len(shared))).round().astype(int)
    chosen = [shared[place] for place in places]
    pairs = [(name, clip) for clip in chosen for name in files]
    order = np.random.default_rng(seed).permutation(len(pairs))
    videos = [(*pairs[place], files[pairs[place][0]][pairs[place][1]]) for place in order]
    size = sum(path.stat().st_size for *_, path in videos) / 1e6
    if size > megabytes:
        raise UserError(
            f"{len(videos)} videos have {size:.1f} MB, more than the {megabytes:g} MB that the page may hold; "
            "give fewer --clips, smaller videos or more --megabytes"
        )
    digests = [(name, clip, sha256(path)) for name, clip, path in videos]
    survey, names = config_hash({"seed": seed, "videos": digests}), [f"v{i:03d}" for i in range(1, len(videos) + 1)]
    with atomic_path(out) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as page:
        page.write(head(survey, len(videos)))
        for number, (name, (*_, path)) in enumerate(zip(names, videos, strict=True), start=1):
            page.write(before_video(name, number, KINDS[path.suffix.lower()]))
            _encode(path, page)
            page.write(after_video(name))
        page.write(tail())
    items = {name: {"method": method, "clip": clip} for name, (method, clip, _) in zip(names, videos, strict=True)}
    key = out.with_suffix(KEY_SUFFIX)
    write_json(key, {"survey": survey, "seed": seed, "methods": list(methods), "items": items})
    return (
        f"{len(videos)} videos: {len(chosen)} clips by {len(methods)} methods, {size:.1f} MB, survey {survey}\n"
        f"written: {out} (for the raters), {key} (keep it to yourself)"
    )


def _videos(folder: Path) -> dict[str, Path]:
    """Videos that browsers play, by their names without suffix."""
    found: dict[str, Path] = {}
    for path in video_files(folder):
        if path.suffix.lower() in KINDS:
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def _shared(files: Mapping[str, Mapping[str, Path]]) -> list[str]:
    """Names that all methods have; UserError where there are none."""
    for name, found in files.items():
        if not found:
            raise UserError(f"{name} has no videos that browsers play ({', '.join(sorted(KINDS))})")
    shared = set.intersection(*(set(found) for found in files.values()))
    if not shared:
        examples = "; ".join(f"{name}: {min(found)}" for name, found in files.items())
        raise UserError(f"no clip is there by all methods: videos of one clip must have one name ({examples})")
    return sorted(shared)


def _encode(path: Path, page: TextIO) -> None:
    """The file's base64, a piece at a time."""
    with open(path, "rb") as file:
        while piece := file.read(_CHUNK):
            page.write(base64.b64encode(piece).decode("ascii"))
