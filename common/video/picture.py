"""From decoded frames to upright RGB with square pixels, and back to YUV, with the colours kept.

Everything is written as BT.709, limited range, and tagged so. Reading follows the file's tags; where it has none, the
rule of the players holds: BT.709 from 720 lines or 1280 columns on, BT.601 below, limited range. High dynamic range
(PQ and HLG, as phones record) is mapped to BT.709; the tables for it take seconds to build, once per reading.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter

# Without the full chroma flags swscale is off by 3 to 4 levels on flat colours; with them by 2 at most.
_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
_MATRICES = {  # AVColorSpace -> swscale's tables
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
_HDR_TRANSFERS = {ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67}
_MOST_STRETCH = 4
_HD_WIDTH, _HD_HEIGHT = 1280, 720
_SMALL = (
    512 * 512
)  # pixels; crops of corpora gain 1 to 2 dB from bicubic colours, camera pictures none at twice the time


def most_threads() -> int:
    """Threads of one decoder or encoder: torch's, which worker processes set to one, and at most 8."""
    return min(8, torch.get_num_threads())


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to lay a picture: transpose first, then mirror left-right, then top-bottom."""

    transposed: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of(cls, frame: VideoFrame) -> "Orientation":
        """What the display matrix of a frame asks for, to the nearest quarter turn.

        The matrix (ISO 14496-12, 8.3.2) takes (x, y) to (a x + c y, b x + d y), with y down.
        """
        data: Any = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return cls()
        a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(data), dtype=np.int32)[:5])
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Lay an image (H,W,3)."""
        laid = image.swapaxes(0, 1) if self.transposed else image
        laid = laid[:, ::-1] if self.mirror_x else laid
        laid = laid[::-1] if self.mirror_y else laid
        return np.ascontiguousarray(laid)


class Upright:
    """Turns the frames of one stream into upright RGB images with square pixels, all of the first frame's size.

    Pixels that are not square are enlarged in one direction, never reduced. An aspect beyond 4:1 is taken for damage
    and ignored.
    """

    def __init__(self, first: VideoFrame, aspect: Fraction | None) -> None:
        self._orientation = Orientation.of(first)
        self._reformatter = VideoReformatter()
        width, height = first.width, first.height
        if aspect and 1 <= aspect <= _MOST_STRETCH:
            width = round(width * aspect)
        elif aspect and 1 > aspect >= Fraction(1, _MOST_STRETCH):
            height = round(height / aspect)
        self._width, self._height = width, height

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the images."""
        size = (self._width, self._height)
        return size[::-1] if self._orientation.transposed else size

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """uint8 (H,W,3) RGB."""
        scaled = (frame.width, frame.height) != (self._width, self._height)
        method = Interpolation.BICUBIC if scaled or frame.width * frame.height <= _SMALL else Interpolation.BILINEAR
        hdr = frame.color_trc in _HDR_TRANSFERS and frame.color_primaries == ColorPrimaries.BT2020
        converted = self._reformatter.reformat(
            frame,
            width=self._width,
            height=self._height,
            format="rgb24",
            src_colorspace=_matrix(frame),
            src_color_range=_range(frame),
            dst_color_range=ColorRange.JPEG,
            dst_color_trc=ColorTrc.BT709 if hdr else None,
            dst_color_primaries=ColorPrimaries.BT709 if hdr else None,
            interpolation=method | _EXACT,
            threads=most_threads(),
        )
        return self._orientation.apply(converted.to_ndarray())


class Encodable:
    """Turns RGB images (H,W,3) into BT.709 frames for x264: 4:2:0, or 4:4:4 where a side is odd.

    4:2:0 has one colour sample per 2x2 pixels, and H.264 can crop it by whole samples only, so that an odd side would
    have to lose or gain a pixel; 4:4:4 keeps it as it is. swscale takes the colour sample in the middle of the four,
    where H.264 assumes the left pair's middle, so that the stream has to say so: unsaid, each copy of a video would
    move its colours by half a pixel.
    """

    primaries, transfer = ColorPrimaries.BT709, ColorTrc.BT709
    matrix, limits = 1, ColorRange.MPEG

    def __init__(self, width: int, height: int) -> None:
        odd = width % 2 or height % 2
        self.pixel_format = "yuv444p" if odd else "yuv420p"
        self.options = {} if odd else {"x264-params": "chromaloc=1"}
        self._reformatter = VideoReformatter()

    def __call__(self, image: np.ndarray) -> VideoFrame:
        """A frame without a time."""
        return self._reformatter.reformat(
            VideoFrame.from_ndarray(image, format="rgb24"),
            format=self.pixel_format,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=self.limits,
            interpolation=Interpolation.BICUBIC | _EXACT,
            threads=most_threads(),
        )


def _matrix(frame: VideoFrame) -> Colorspace | None:
    if frame.format.is_rgb:
        return None
    hd = frame.width >= _HD_WIDTH or frame.height >= _HD_HEIGHT
    return _MATRICES.get(frame.colorspace, Colorspace.ITU709 if hd else Colorspace.ITU601)


def _range(frame: VideoFrame) -> ColorRange:
    full = frame.format.is_rgb or frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    return ColorRange.JPEG if full else ColorRange.MPEG
