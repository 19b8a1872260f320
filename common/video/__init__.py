"""Video in and out: any container and codec, by timestamps, one frame at a time, with the sound in step.

Times are seconds since the first picture of the file. Images are uint8 (H,W,3) RGB, upright, with square pixels.
"""

from common.video.clip import Clip, write_clip
from common.video.probe import VideoInfo, probe_video, read_times, read_wave
from common.video.reader import Frame, read_frames
from common.video.writer import VideoWriter, as_rate

__all__ = [
    "Clip",
    "Frame",
    "VideoInfo",
    "VideoWriter",
    "as_rate",
    "probe_video",
    "read_frames",
    "read_times",
    "read_wave",
    "write_clip",
]
