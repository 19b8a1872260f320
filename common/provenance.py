"""Labels that say a picture or a video is synthetic, for machines and, on request, for people.

GB 45438-2025 (and TC260's guide to it) asks for one metadata entry `AIGC`: a JSON object with seven keys. PNG files
carry it in an XMP packet (`TC260:AIGC`) and in a text chunk, MP4 files as a container tag. Beside it stand the tool's
version, the config's hash and the checkpoint's SHA-256, and in XMP the IPTC digital source type that the EU's code of
practice and the large platforms read.
"""

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin, UnidentifiedImageError

from common import __version__
from common.errors import UserError, reason_of
from common.files import atomic_path

if TYPE_CHECKING:  # reading a label should not wait for torch
    from torch import Tensor

AIGC_KEYS = (
    "Label",
    "ContentProducer",
    "ProduceID",
    "ReservedCode1",
    "ContentPropagator",
    "PropagateID",
    "ReservedCode2",
)
MP4_OPTIONS = {"movflags": "use_metadata_tags"}
"""Container options with which the mp4 muxer keeps tags that it does not know."""

_TOOL = "speechface"
_LABELS = {"1": "generated", "2": "possibly generated", "3": "suspected to be generated"}
_LONGEST_NAME = 200
_XMP_CHUNK = "XML:com.adobe.xmp"
_NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "TC260": "http://www.tc260.org.cn/ns/AIGC/1.0/",
    _TOOL: "urn:speechface:provenance:1",
}
_SYNTHETIC = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_TECHNICAL_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder"}
_CONTENT_IDS = uuid.UUID("7b0e5d1c-5a6c-4a53-9d0b-2f1f5c9f7a10")
"""Namespace of derived `ProduceID`s."""


@dataclass
class ProvenanceConfig:
    """Who answers for what is generated; written into every output."""

    producer: str = _TOOL
    """Name or registration code of the service that generates (`ContentProducer`)."""
    propagator: str = ""
    """Name or registration code of the service that distributes (`ContentPropagator`); empty when unknown."""
    visible: bool = False
    """Draw the words into a corner of the picture as well."""
    visible_font: str = ""
    """TrueType or OpenType file with Chinese glyphs; with it the words are drawn in Chinese too."""

    def __post_init__(self) -> None:
        if not self.producer.strip():
            raise ValueError("provenance.producer is empty: every output must name who generated it")
        for key, value in (("producer", self.producer), ("propagator", self.propagator)):
            if len(value) > _LONGEST_NAME:
                raise ValueError(f"provenance.{key} has {len(value)} characters; the limit is {_LONGEST_NAME}")


@dataclass(frozen=True)
class Provenance:
    """The label of one output file; make one for each, since `ProduceID` names the content."""

    aigc: Mapping[str, str]
    """The seven keys of GB 45438-2025."""
    tool: Mapping[str, str | None]
    """name, version, config_hash, checkpoint_sha256."""
    visible: bool = False
    visible_font: str = ""

    @classmethod
    def create(
        cls, cfg: ProvenanceConfig, *, config_hash: str, checkpoint_sha256: str | None = None, content: str = ""
    ) -> "Provenance":
        """Label new content under a fresh UUID, or under one derived from `content` where outputs must repeat exactly.

        Args:
            cfg: who produces and propagates.
            config_hash: `common.config.config_hash` of the run.
            checkpoint_sha256: of the checkpoint (`common.files.sha256`); None when no file was used.
            content: what the output is a function of, in words; empty for a random UUID.
        """
        number = str(uuid.uuid5(_CONTENT_IDS, content) if content else uuid.uuid4())
        values = ("1", cfg.producer, number, "", cfg.propagator, number if cfg.propagator else "", "")
        tool = {
            "name": _TOOL,
            "version": __version__,
            "config_hash": config_hash,
            "checkpoint_sha256": checkpoint_sha256,
        }
        return cls(dict(zip(AIGC_KEYS, values, strict=True)), tool, cfg.visible, cfg.visible_font)

    def tags(self) -> dict[str, str]:
        """Container tags for a writer that muxes an MP4 itself; open it with `MP4_OPTIONS`.

        The JSON is ASCII, so that no muxer, chunk type or XML parser meets a character that it would change.
        """
        return {"AIGC": json.dumps(dict(self.aigc)), _TOOL: json.dumps(dict(self.tool)), "comment": "AI-generated"}

    def as_dict(self) -> dict[str, Any]:
        """What `read_label` gives back: {"AIGC": ..., "speechface": ...}."""
        return {"AIGC": dict(self.aigc), _TOOL: dict(self.tool)}


def write_png(path: Path, image: "np.ndarray | Tensor", provenance: Provenance) -> None:
    """Write a labelled PNG, whole or not at all; the label is read back before the file gets its name.

    Args:
        path: ends in .png.
        image: uint8 (H,W,3) RGB, or a float tensor (3,H,W) in [-1,1], which is clamped.
        provenance: the label; with `visible` the words are drawn too.

    Raises:
        UserError: another suffix, an unusable image (NaN, empty, too small for the words), a failed write.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"a portrait is written as PNG, which holds its label; {path} does not end in .png")
    pixels = _as_bytes(image)
    if provenance.visible:
        pixels = draw_words(pixels, provenance.visible_font)
    chunks = PngImagePlugin.PngInfo()
    tags = provenance.tags()
    chunks.add_itxt(_XMP_CHUNK, _xmp_packet(tags))
    for key in ("AIGC", _TOOL):
        chunks.add_text(key, tags[key])
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=chunks)
        _verify(temporary, provenance)


def label_mp4(path: Path, provenance: Provenance, *, source: Path | None = None) -> None:
    """Copy an MP4's video and audio packets, not re-encoded, into a labelled file.

    Args:
        path: the labelled file; replaced only by a whole, labelled one.
        provenance: the label; words cannot be drawn without re-encoding, so `visible` is for the frame writer.
        source: the file to copy; None labels `path` in place.

    Raises:
        UserError: the source is missing or no media that MP4 can hold, or a failed write.
    """
    origin = source or path
    try:
        with av.open(str(origin)) as reader, atomic_path(path) as temporary:
            with av.open(str(temporary), "w", format="mp4", options=MP4_OPTIONS) as writer:
                kept = {key: value for key, value in reader.metadata.items() if key not in _TECHNICAL_TAGS}
                writer.metadata.update(kept | provenance.tags())
                wanted = [stream for stream in reader.streams if stream.type in ("video", "audio")]
                copies = {stream.index: writer.add_stream_from_template(stream) for stream in wanted}
                for packet in reader.demux(wanted):
                    if packet.dts is not None:  # the flush packet at the end carries nothing
                        packet.stream = copies[packet.stream.index]
                        writer.mux(packet)
            _verify(temporary, provenance)
    except FileNotFoundError as error:
        raise UserError(f"no such video: {origin}") from error
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"{origin} cannot be labelled as MP4: {reason_of(error)}") from error


def read_label(path: Path) -> dict[str, Any]:
    """Read the synthetic-content label of a PNG or of any container that PyAV opens.

    Returns:
        {"AIGC": the label's keys, "speechface": tool, config hash and checkpoint, where this tool wrote it}.

    Raises:
        UserError: the file is missing or no media, or has no label that can be read.
    """
    tags = _png_tags(path)
    if tags is None:
        tags = _container_tags(path)
    label = {key: value for key in ("AIGC", _TOOL) if (value := _parse(tags.get(key))) is not None}
    if "Label" not in label.get("AIGC", {}):
        raise UserError(f"{path} has no readable AIGC label: it was not written by a labelling tool, or was stripped")
    return label


def describe_label(path: Path) -> str:
    """The label of a file as lines for a person; control characters are escaped."""
    label = read_label(path)
    meaning = _LABELS.get(str(label["AIGC"]["Label"]), "unknown label")
    lines = [f"{path}: AI content label (GB 45438-2025): {meaning}"]
    for section, entries in label.items():
        lines.append(section)
        for key, value in entries.items():
            text = "-" if value in ("", None) else str(value)
            lines.append(f"  {_printable(str(key)):<18} {_printable(text)}")
    return "\n".join(lines)


def draw_words(image: np.ndarray, font_file: str = "") -> np.ndarray:
    """Draw "AI-generated" on a dark patch in the lower right corner.

    The line is 6 % of the short side high, at least 9 px (GB 45438-2025 asks for 5 %); where that does not fit, the
    size goes down to 8 px and the words down to "AI".

    Args:
        image: uint8 (H,W,3).
        font_file: a font with Chinese glyphs adds the words in Chinese; empty uses Pillow's own Latin font.

    Returns:
        A new uint8 (H,W,3).

    Raises:
        UserError: no font in that file, or a picture too small for two letters.
    """
    height, width = image.shape[:2]
    preferred = max(9, round(0.06 * min(height, width)))
    words = (["AI-generated 人工智能合成"] if font_file else []) + ["AI-generated", "AI"]
    canvas = Image.fromarray(image)
    for text in words:
        for size in (preferred, 8):
            font = _font(font_file, size)
            left, top, right, bottom = (round(value) for value in font.getbbox(text))
            pad = max(1, size // 6)
            box_width, box_height = right - left + 2 * pad, bottom - top + 2 * pad
            if box_width > width or box_height > height // 2:
                continue
            patch = Image.new("RGB", (box_width, box_height), (0, 0, 0))
            ImageDraw.Draw(patch).text((pad - left, pad - top), text, font=font, fill=(255, 255, 255))
            canvas.paste(patch, (width - box_width, height - box_height))
            return np.array(canvas)
    raise UserError(f"a picture of {width}x{height} px is too small for a visible label; make it larger or turn it off")


def _font(font_file: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if not font_file:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(font_file, size)
    except OSError as error:
        raise UserError(f"provenance.visible_font {font_file} is no font that can be read: {error}") from error


def _as_bytes(image: "np.ndarray | Tensor") -> np.ndarray:
    if not isinstance(image, np.ndarray):
        values = image.detach().float().cpu()
        if values.ndim != 3 or values.shape[0] != 3 or values.numel() == 0:
            raise UserError(f"an image tensor must be (3,H,W), not {tuple(values.shape)}")
        if not bool(values.isfinite().all()):
            raise UserError("the image holds NaN or infinity; the network that made it has diverged")
        scaled = ((values.clamp(-1, 1) + 1) * 127.5).round()
        return np.ascontiguousarray(scaled.permute(1, 2, 0).numpy().astype(np.uint8))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise UserError(f"an image must be uint8 (H,W,3), not {image.dtype} {image.shape}")
    return image


def _xmp_packet(tags: Mapping[str, str]) -> str:
    for prefix, uri in _NAMESPACES.items():
        ElementTree.register_namespace(prefix, uri)

    def name(prefix: str, local: str) -> str:
        return f"{{{_NAMESPACES[prefix]}}}{local}"

    root = ElementTree.Element(name("x", "xmpmeta"))
    rdf = ElementTree.SubElement(root, name("rdf", "RDF"))
    description = ElementTree.SubElement(rdf, name("rdf", "Description"), {name("rdf", "about"): ""})
    for tag, text in (
        (name("TC260", "AIGC"), tags["AIGC"]),
        (name(_TOOL, "Provenance"), tags[_TOOL]),
        (name("xmp", "CreatorTool"), f"{_TOOL} {__version__}"),
        (name("Iptc4xmpExt", "DigitalSourceType"), _SYNTHETIC),
    ):
        ElementTree.SubElement(description, tag).text = text
    packet = ElementTree.tostring(root, encoding="unicode")
    return f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>{packet}<?xpacket end="r"?>'


def _verify(path: Path, provenance: Provenance) -> None:
    """An output without its label must not get its name."""
    if read_label(path) != provenance.as_dict():
        raise UserError(f"the label of {path} did not survive writing; nothing was written")


def _png_tags(path: Path) -> dict[str, str] | None:
    """Text chunks of a PNG, completed from its XMP packet; None when the file is no PNG."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            texts = {key: str(value) for key, value in image.info.items() if key in ("AIGC", _TOOL, _XMP_CHUNK)}
    except UnidentifiedImageError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a PNG that can be read: {error}") from error
    return _xmp_tags(texts.pop(_XMP_CHUNK, "")) | texts


def _xmp_tags(packet: str) -> dict[str, str]:
    """The label in an XMP packet, as an element or as an attribute, since XMP allows both."""
    body = re.sub(r"<\?xpacket.*?\?>", "", packet, flags=re.DOTALL).strip()
    if not body or "<!DOCTYPE" in body:  # a document type could define entities that swallow memory
        return {}
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        return {}
    wanted = {f"{{{_NAMESPACES['TC260']}}}AIGC": "AIGC", f"{{{_NAMESPACES[_TOOL]}}}Provenance": _TOOL}
    found = {}
    for element in root.iter():
        for tag, text in [(element.tag, element.text), *element.attrib.items()]:
            if tag in wanted and text:
                found[wanted[tag]] = text
    return found


def _container_tags(path: Path) -> dict[str, str]:
    try:
        with av.open(str(path)) as container:
            return dict(container.metadata)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"{path} is neither a PNG nor a video that can be read: {reason_of(error)}") from error


def _parse(text: str | None) -> dict[str, Any] | None:
    """A JSON object, or None for anything else: labels come from files of any origin."""
    try:
        value = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
