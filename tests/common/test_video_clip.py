import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from common.data.corpus import Item
from common.data.engine import Job, Outcome, Product, Unit, run_units
from common.errors import UserError
from common.provenance import Provenance, ProvenanceConfig, read_label
from common.video import Clip, write_clip
from common.video.clip import clip_samples
from tests.common.toy_videos import index_of, picture, tone


def pictures(count: int, size: tuple[int, int] = (64, 48)) -> Iterator[np.ndarray]:
    return (picture(index, *size) for index in range(count))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    folder = tmp_path_factory.mktemp("clip")
    landmarks = np.arange(30 * 68 * 2, dtype=np.float64).reshape(30, 68, 2)
    landmarks[3] = np.nan
    coefficients = {"expression": np.ones((30, 4), np.float32), "face_model": np.array("builtin")}
    wave = torch.from_numpy(tone(1.0, 16000))
    assert write_clip(folder, pictures(30), wave, landmarks=landmarks, coefficients=coefficients) == 30
    return Clip(folder)


def test_a_clip_holds_what_was_written(clip: Clip) -> None:
    assert (len(clip), clip.fps, clip.size, clip.samples) == (30, 25, (64, 48), 19200)
    images = clip.frames()
    assert images.shape == (30, 48, 64, 3)
    assert [index_of(image) for image in images] == list(range(30))
    assert np.abs(images[4].astype(int) - picture(4)).mean() < 4
    wave = clip.wave()
    assert wave.shape == (19200,)
    np.testing.assert_allclose(wave[:16000], tone(1.0, 16000), atol=1 / 32768)
    assert not wave[16000:].any()
    assert clip.landmarks is not None
    assert clip.landmarks.dtype == np.float32
    assert np.isnan(clip.landmarks[3]).all()
    assert clip.coefficients is not None
    assert str(clip.coefficients["face_model"]) == "builtin"


@pytest.mark.parametrize(("start", "count"), [(0, 1), (0, 5), (7, 5), (13, 16), (29, 1), (25, None)])
def test_windows_are_parts_of_the_whole(clip: Clip, start: int, count: int | None) -> None:
    end = 30 if count is None else start + count
    np.testing.assert_array_equal(clip.frames(start, count), clip.frames()[start:end])


@pytest.mark.parametrize(("start", "count"), [(0, 31), (30, 1), (-1, 2), (3, 0)])
def test_windows_outside_are_refused(clip: Clip, start: int, count: int) -> None:
    with pytest.raises(IndexError, match="which has 30"):
        clip.frames(start, count)


@pytest.mark.parametrize(("start", "count"), [(-100, 300), (19100, 300), (-500, 200), (30000, 10), (640, 640), (0, 0)])
def test_sound_outside_is_silence(clip: Clip, start: int, count: int) -> None:
    padded = np.concatenate([np.zeros(1000), clip.wave().numpy(), np.zeros(20000)])
    np.testing.assert_array_equal(clip.wave(start, count), padded[1000 + start : 1000 + start + count])


def test_a_clip_travels_to_workers_and_is_read_by_many_threads(clip: Clip) -> None:
    copy: Clip = pickle.loads(pickle.dumps(clip))
    results: dict[int, np.ndarray] = {}

    def read(start: int) -> None:
        results[start] = copy.frames(start, 3)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(0, 24, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = clip.frames()
    for start, images in results.items():
        np.testing.assert_array_equal(images, whole[start : start + 3])


@pytest.mark.parametrize(
    ("fps", "count", "samples"), [(25, 7, 4480), (30, 7, 3733), (29.97, 1000, 533867), (25, 1, 640)]
)
def test_sound_lasts_as_long_as_the_pictures(fps: float, count: int, samples: int, tmp_path: Path) -> None:
    assert clip_samples(count, fps) == samples
    if count < 10:
        for given in (0, 100, 100000):
            write_clip(tmp_path, pictures(count), torch.ones(given) * 0.5, fps=fps)
            clip = Clip(tmp_path)
            assert (len(clip), clip.samples, clip.wave().shape[0]) == (count, samples, samples)
            assert int((clip.wave() == 0.5).sum()) == min(given, samples)


def test_odd_sizes_and_labels(tmp_path: Path) -> None:
    label = Provenance.create(ProvenanceConfig(), config_hash="0" * 8)
    write_clip(tmp_path, pictures(3, (65, 47)), torch.zeros(0), provenance=label)
    assert Clip(tmp_path).frames().shape == (3, 47, 65, 3)
    assert read_label(tmp_path / "video.mp4") == label.as_dict()
    assert Clip(tmp_path).landmarks is None
    assert Clip(tmp_path).coefficients is None


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pictures"):
        write_clip(tmp_path, [], torch.zeros(10))
    with pytest.raises(ValueError, match="do not belong together"):
        write_clip(tmp_path, pictures(3), torch.zeros(10), landmarks=np.zeros((4, 68, 2)))
    with pytest.raises(ValueError, match=r"allow_pickle|Object arrays"):
        write_clip(tmp_path, pictures(3), torch.zeros(10), coefficients={"a": np.array([{}], dtype=object)})


def test_damage_is_named(tmp_path: Path) -> None:
    clip = Clip(tmp_path)
    with pytest.raises(UserError, match=r"no such file: .*video\.mp4"):
        len(clip)
    with pytest.raises(UserError, match=r"cannot read .*audio\.wav"):
        clip.wave(0, 10)
    write_clip(tmp_path, pictures(20), torch.zeros(10), landmarks=np.zeros((20, 68, 2)), coefficients={"a": np.ones(3)})
    for name in ("landmarks.npy", "coefficients.npz"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    for read in (lambda: clip.landmarks, lambda: clip.coefficients):
        with pytest.raises(UserError, match=r"cannot read .*(landmarks|coefficients)"):
            read()
    video = (tmp_path / "video.mp4").read_bytes()
    (tmp_path / "video.mp4").write_bytes(video[: len(video) * 3 // 4])
    assert clip.frames(0, 5).shape[0] == 5
    with pytest.raises(UserError, match="damaged"):
        clip.frames(10, 10)
    (tmp_path / "audio.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"cannot read .*audio\.wav"):
        clip.wave(0, 10)


def test_pictures_that_fail_leave_no_video(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield picture(0)
        raise UserError("the source broke")

    with pytest.raises(UserError, match="the source broke"):
        write_clip(tmp_path, broken(), torch.zeros(10))
    assert list(tmp_path.iterdir()) == []


def make_unit(unit: Unit, tools: object) -> Outcome:
    item = Item(f"clips/{unit.key}", "someone", "train", "clip", f"clips/{unit.key}", frames=3, fps=25.0)

    def fill(folder: Path) -> None:
        write_clip(folder, pictures(3), torch.zeros(100))

    return Outcome([Product(item, fill)])


def test_the_engine_stores_clips(tmp_path: Path) -> None:
    job = Job(tmp_path, make_unit, lambda: None, lambda unit: unit.key)
    run_units([Unit("one", "1", None)], job, workers=0, label="clips")
    assert sorted(path.name for path in (tmp_path / "clips" / "one").iterdir()) == ["audio.wav", "video.mp4"]
    with av.open(str(tmp_path / "clips" / "one" / "video.mp4")) as container:
        assert container.streams.video[0].frames == 3
