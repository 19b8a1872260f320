"""Synthetic-content labels: written, read back by independent readers, hostile text, nothing left half-written."""

import errno
import json
import struct
import uuid
import zlib
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from common.errors import UserError
from common.files import sha256
from common.provenance import (
    AIGC_KEYS,
    MP4_OPTIONS,
    Provenance,
    ProvenanceConfig,
    describe_label,
    draw_words,
    label_mp4,
    read_label,
    write_png,
)

HOSTILE = [
    'quo"te\' & <b>tag</b> ]]> <!-- --> <?xpacket end="w"?>',
    "new\nline\r\ttab \x00\x1b[31m bell\x07",
    "深度合成服务有限公司",
    "🙂👩‍👩‍👧",
    "\\u0041 \\ {not: 'json'} ; = # %s ${x}",
    "\ud800 alone",
]


def label(producer: str = "Studio", propagator: str = "", *, visible: bool = False) -> Provenance:
    cfg = ProvenanceConfig(producer=producer, propagator=propagator, visible=visible)
    return Provenance.create(cfg, config_hash="abc123", checkpoint_sha256="f" * 64)


def picture(height: int = 12, width: int = 17) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_chunks(path: Path) -> dict[bytes, list[bytes]]:
    """A PNG's chunks read by hand, with their checksums verified."""
    data, at, chunks = path.read_bytes(), 8, {}
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks.setdefault(kind, []).append(body)
        at += 12 + length
    return chunks


def write_video(path: Path, options: dict[str, str] | None = None, tags: dict[str, str] | None = None) -> None:
    """A quarter second of grey video with a tone."""
    with av.open(str(path), "w", options=options or {}) as container:
        container.metadata.update(tags or {})
        video = container.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p")
        audio = container.add_stream("aac", rate=16000, layout="mono")
        for index in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * index, np.uint8))
            container.mux(video.encode(frame))
        tone = np.sin(np.arange(4096) / 9, dtype=np.float32)[None]
        sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def packets(path: Path) -> list[tuple[str, int | None, int | None, bytes]]:
    with av.open(str(path)) as container:
        return [(p.stream.type, p.pts, p.dts, bytes(p)) for p in container.demux() if p.dts is not None]


def test_a_png_carries_the_seven_keys_and_keeps_its_pixels(tmp_path: Path) -> None:
    provenance = label("Studio", "Platform")
    write_png(tmp_path / "sub" / "a.png", picture(), provenance)
    found = read_label(tmp_path / "sub" / "a.png")
    assert tuple(found["AIGC"]) == AIGC_KEYS
    assert found["AIGC"]["Label"] == "1"
    assert (found["AIGC"]["ContentProducer"], found["AIGC"]["ContentPropagator"]) == ("Studio", "Platform")
    assert uuid.UUID(found["AIGC"]["ProduceID"]).version == 4
    assert found["AIGC"]["PropagateID"] == found["AIGC"]["ProduceID"]
    assert found["speechface"] == {
        "name": "speechface",
        "version": "0.1.0",
        "config_hash": "abc123",
        "checkpoint_sha256": "f" * 64,
    }
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "sub" / "a.png")), picture())
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.png"]


def test_every_output_has_its_own_number_and_no_propagator_means_no_number() -> None:
    first, second = label(), label()
    assert first.aigc["ProduceID"] != second.aigc["ProduceID"]
    assert first.aigc["PropagateID"] == first.aigc["ContentPropagator"] == ""


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_survives_both_places_of_a_png(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.png"
    write_png(path, picture(), label(text, text))
    assert read_label(path)["AIGC"]["ContentProducer"] == text
    chunks = png_chunks(path)
    (plain,) = (body for body in chunks[b"tEXt"] if body.startswith(b"AIGC\0"))
    assert json.loads(plain[5:])["ContentPropagator"] == text
    (packet,) = chunks[b"iTXt"]
    keyword, _, rest = packet.partition(b"\0")
    assert keyword == b"XML:com.adobe.xmp"
    root = ElementTree.fromstring(rest[4:].decode().removeprefix("\ufeff"))
    element = root.find(".//{http://www.tc260.org.cn/ns/AIGC/1.0/}AIGC")
    assert json.loads(element.text)["ContentProducer"] == text
    source = root.find(".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType").text
    assert source.endswith("/trainedAlgorithmicMedia")
    assert all(char.isprintable() or char == "\n" for char in describe_label(path).replace(str(path), ""))


def test_xmp_alone_is_enough_as_element_or_attribute(tmp_path: Path) -> None:
    aigc = json.dumps(dict(label("someone").aigc))
    quoted = aigc.replace('"', "&quot;")
    spaces = 'xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:T="http://www.tc260.org.cn/ns/AIGC/1.0/"'
    for body in (f"<r:RDF {spaces}><T:AIGC>{aigc}</T:AIGC></r:RDF>", f'<r:RDF {spaces} T:AIGC="{quoted}"/>'):
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", f'<?xpacket begin="" id="x"?>{body}<?xpacket end="w"?>')
        Image.fromarray(picture()).save(tmp_path / "foreign.png", pnginfo=info)
        assert read_label(tmp_path / "foreign.png")["AIGC"]["ContentProducer"] == "someone"


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("AIGC", "not json"),
        ("AIGC", "[1]"),
        ("AIGC", "{}"),
        ("AIGC", "[" * 100_000),
        ("XML:com.adobe.xmp", "<broken"),
        ("XML:com.adobe.xmp", '<!DOCTYPE a [<!ENTITY b "{}">]><a xmlns="http://www.tc260.org.cn/ns/AIGC/1.0/">&b;</a>'),
        ("Comment", "AIGC"),
    ],
)
def test_an_unreadable_label_is_one_line(tmp_path: Path, key: str, text: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(key, text)
    Image.fromarray(picture()).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(UserError, match="no readable AIGC label"):
        read_label(tmp_path / "a.png")


def test_files_without_media_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    for name in ("text.png", "empty.mp4", "torn.png", "absent.png", ""):
        with pytest.raises(UserError) as caught:
            describe_label(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_tensor_is_clamped_and_rounded(tmp_path: Path) -> None:
    image = torch.tensor([-3.0, -1, 0, 0.999, 1, 7]).expand(3, 1, 6)
    write_png(tmp_path / "a.png", image, label())
    assert np.asarray(Image.open(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]


@pytest.mark.parametrize(
    "image",
    [
        torch.full((3, 4, 4), float("nan")),
        torch.zeros(1, 4, 4),
        torch.zeros(3, 0, 4),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=["nan", "one-channel", "empty-tensor", "float-array", "grey-array", "empty-array"],
)
def test_unusable_images_write_nothing(tmp_path: Path, image: np.ndarray | torch.Tensor) -> None:
    with pytest.raises(UserError, match="image"):
        write_png(tmp_path / "a.png", image, label())
    assert list(tmp_path.iterdir()) == []


def test_only_png_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.png"):
        write_png(tmp_path / "a.jpg", picture(), label())


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def full(self: Image.Image, file: Path, **_: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(UserError, match="No space left"):
            write_png(path, picture(), label())
    with monkeypatch.context() as patch:
        patch.setattr(PngImagePlugin.PngInfo, "add_text", lambda *args: None)
        patch.setattr(PngImagePlugin.PngInfo, "add_itxt", lambda *args: None)
        with pytest.raises(UserError, match="label"):
            write_png(path, picture(), label())
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_survives_mp4(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, tags={"title": "mine"})
    before = packets(path)
    provenance = label(text)
    label_mp4(path, provenance)
    assert read_label(path) == provenance.as_dict()
    assert packets(path) == before
    with av.open(str(path)) as container:
        assert container.metadata["title"] == "mine"
        assert {stream.type for stream in container.streams} == {"video", "audio"}
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_a_writer_that_muxes_itself_uses_the_tags(tmp_path: Path) -> None:
    provenance = label("a", "b")
    write_video(tmp_path / "a.mp4", options=MP4_OPTIONS, tags=provenance.tags())
    assert read_label(tmp_path / "a.mp4") == provenance.as_dict()


def test_relabelling_replaces_and_a_second_file_leaves_the_source_alone(tmp_path: Path) -> None:
    write_video(tmp_path / "source.mp4")
    original = (tmp_path / "source.mp4").read_bytes()
    label_mp4(tmp_path / "out.mp4", label("first"), source=tmp_path / "source.mp4")
    label_mp4(tmp_path / "out.mp4", label("second"))
    assert read_label(tmp_path / "out.mp4")["AIGC"]["ContentProducer"] == "second"
    assert (tmp_path / "source.mp4").read_bytes() == original
    with pytest.raises(UserError, match="no readable AIGC label"):
        read_label(tmp_path / "source.mp4")


def test_what_cannot_be_labelled_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello")
    for source in ("text.mp4", "absent.mp4"):
        with pytest.raises(UserError) as caught:
            label_mp4(tmp_path / "out.mp4", label(), source=tmp_path / source)
        assert source in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["text.mp4"]


def test_the_description_names_what_a_person_asks_for(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", picture(), label("Studio"))
    text = describe_label(tmp_path / "a.png")
    assert "generated" in text.splitlines()[0]
    for part in ("Studio", "0.1.0", "abc123", "f" * 64, "ProduceID"):
        assert part in text


@pytest.mark.parametrize(("height", "width"), [(64, 64), (256, 200), (1024, 1024), (24, 30)])
def test_visible_words_are_bright_on_dark_in_the_corner(height: int, width: int) -> None:
    image = np.full((height, width, 3), 128, np.uint8)
    marked = draw_words(image)
    changed = np.argwhere((marked != image).any(axis=2))
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0)
    assert (bottom, right) == (height - 1, width - 1)
    assert top >= height // 2
    assert bottom - top >= 0.05 * min(height, width)
    patch = marked[top:, left:]
    assert patch.max() > 200
    assert np.median(patch) < 60
    assert (image == 128).all()


def test_visible_words_in_a_file(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((64, 64, 3), np.uint8), label(visible=True))
    assert np.asarray(Image.open(tmp_path / "a.png"))[40:].max() > 200
    with pytest.raises(UserError, match="too small"):
        write_png(tmp_path / "b.png", np.zeros((8, 8, 3), np.uint8), label(visible=True))
    assert not (tmp_path / "b.png").exists()


def test_a_font_adds_the_chinese_words_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    image = np.full((300, 400, 3), 128, np.uint8)
    widths = [np.ptp(np.argwhere((draw_words(image, name) != image).any(axis=2))[:, 1]) for name in ("", str(font))]
    assert widths[1] > 1.3 * widths[0]
    (tmp_path / "bad.ttf").write_text("no font")
    for name in ("bad.ttf", "absent.ttf"):
        with pytest.raises(UserError, match="visible_font"):
            draw_words(image, str(tmp_path / name))


@pytest.mark.parametrize("values", [{"producer": " "}, {"producer": "x" * 201}, {"propagator": "x" * 201}])
def test_a_config_that_names_nobody_or_writes_essays_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"provenance\."):
        ProvenanceConfig(**values)


@pytest.mark.parametrize("name", ["absent.png", "text.mp4", "text.png", "."])
def test_what_has_no_label_is_told_without_the_systems_numbers(tmp_path: Path, name: str) -> None:
    for suffix in ("mp4", "png"):
        (tmp_path / f"text.{suffix}").write_text("only words")
    with pytest.raises(UserError) as error:
        read_label(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "Errno" not in str(error.value)


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")
    with pytest.raises(UserError, match="cannot read"):
        sha256(tmp_path / "b")
