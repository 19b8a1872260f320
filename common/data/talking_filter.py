"""Which clips are good enough: bounds on what was measured, written down as data.

A bound on something that was not measured (text that nobody knows, sync without weights) does not drop a clip; the
report says so. The recipes are those of the papers.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from common.data.talking_measures import Measures
from common.errors import UserError


@dataclass(frozen=True)
class ClipFilter:
    """Bounds; None asks for nothing."""

    max_chars: int | None = None
    """Letters and characters of the text at most, where it is known."""
    min_seconds: float | None = None
    """Length of the clip at least."""
    max_seconds: float | None = None
    """Length of the clip at most."""
    max_faces: int | None = None
    """Faces seen at once at most."""
    min_face: float | None = None
    """Side of the face box at least, pixels of the source."""
    max_centre: float | None = None
    """Distance of the face from the picture's centre at most, over the picture's shorter side."""
    max_missing: float | None = None
    """Share of pictures without the face at most, 0 to 1."""
    min_sharpness: float | None = None
    """Sharpness of the face at least."""
    min_lips: float | None = None
    """Movement of the lips at least; a still face does not talk."""
    max_silence: float | None = None
    """Share of the time without speech at most, 0 to 1."""
    max_clipped: float | None = None
    """Share of clipped samples at most, 0 to 1."""
    min_confidence: float | None = None
    """SyncNet's confidence at least, where it was measured."""
    max_offset: float | None = None
    """Measured AV offset at most, video frames either way, where it was measured."""

    def __post_init__(self) -> None:
        for low, high in (("min_seconds", "max_seconds"),):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise UserError(f"the filter's {low} {least:g} is above its {high} {most:g}: no clip would be left")

    def broken(self, measures: Measures) -> list[str]:
        """What is wrong with a clip: each bound that it breaks, with its value."""
        found = []
        for name, (measure, sign, words, unit) in _RULES.items():
            bound, value = getattr(self, name), getattr(measures, measure)
            if bound is None or value is None:
                continue
            value = abs(value) if measure == "sync_offset" else value
            if (value - bound) * sign < -1e-9:
                limit = "at least" if sign > 0 else "at most"
                found.append(f"{words} {value:.4g}{unit}, {limit} {bound:g}{unit} ({name})")
        return found

    def refuse(self, measures: Measures) -> str | None:
        """Why a clip is dropped: the first bound that it breaks; None when it stays."""
        return next(iter(self.broken(measures)), None)

    def unmeasured(self, measures: Measures) -> list[str]:
        """Names of the bounds that could not be applied to a clip."""
        return [
            name
            for name, (measure, *_) in _RULES.items()
            if getattr(self, name) is not None and getattr(measures, measure) is None
        ]


_RULES: dict[str, tuple[str, int, str, str]] = {
    "max_chars": ("n_chars", -1, "the text has", " characters"),
    "min_seconds": ("seconds", 1, "it lasts", " s"),
    "max_seconds": ("seconds", -1, "it lasts", " s"),
    "max_faces": ("faces", -1, "it shows", " faces"),
    "min_face": ("face_pixels", 1, "the face has", " px"),
    "max_centre": ("centre_offset", -1, "the face is off the centre by", " of the picture"),
    "max_missing": ("missing", -1, "the face is missing in a share of", " of the pictures"),
    "min_sharpness": ("sharpness", 1, "the face has a sharpness of", ""),
    "min_lips": ("lips", 1, "the lips move by", " eye distances"),
    "max_silence": ("silence", -1, "nobody speaks in a share of", " of the time"),
    "max_clipped": ("clipped", -1, "clipped is a share of", " of the sound"),
    "max_offset": ("sync_offset", -1, "sound and lips are apart by", " frames"),
    "min_confidence": ("sync_confidence", 1, "SyncNet's confidence is", ""),
}
"""Bound -> the measure it is on, whether more or less is better, and the words of the report."""
PLAIN = ClipFilter(min_face=32.0, max_missing=0.2, min_sharpness=0.02, max_silence=0.9)
RECIPES: dict[str, ClipFilter] = {
    "none": ClipFilter(),
    "plain": PLAIN,
    "clr": replace(
        PLAIN, max_chars=29, max_seconds=3.0, max_faces=1, max_centre=0.35, max_offset=5.0, min_confidence=3.0
    ),
    "latentsync": replace(PLAIN, min_seconds=5.0, max_seconds=10.0, max_offset=6.0, min_confidence=3.0),
}
"""none: everything; plain: what is no talking face goes; clr: paper 3's CLR set, section 3.1 (one centred face, at most
3 s and 29 characters; the sync bounds are ours, the paper gives none); latentsync: LatentSync's data pipeline."""


def parse_filter(recipe: str | ClipFilter, changes: Iterable[str] = ()) -> ClipFilter:
    """A recipe, by name or as it is, with `bound=value` words applied; `none` or an empty value removes a bound.

    Raises:
        UserError: unknown recipe or bound, or a value that is no number.
    """
    if isinstance(recipe, str) and recipe not in RECIPES:
        raise UserError(f"unknown filter {recipe!r}; use one of {', '.join(RECIPES)}")
    whole = {field.name for field in fields(ClipFilter) if str(field.type).startswith("int")}
    values: dict[str, Any] = {}
    for word in changes:
        name, equals, text = word.partition("=")
        if name not in _RULES or not equals:
            raise UserError(f"{word!r} is no bound of the filter: write {'=, '.join(_RULES)}=VALUE")
        try:
            values[name] = None if text in ("", "none") else int(text) if name in whole else float(text)
        except ValueError as error:
            raise UserError(f"the filter's {name} must be a number or none, not {text!r}") from error
    return replace(RECIPES[recipe] if isinstance(recipe, str) else recipe, **values)


def describe_filter(bounds: ClipFilter) -> str:
    """The bounds in use, as `name value` words."""
    used = {name: value for name, value in asdict(bounds).items() if value is not None}
    return ", ".join(f"{name} {value:g}" for name, value in used.items()) or "none"
