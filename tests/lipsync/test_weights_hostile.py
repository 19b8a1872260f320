"""Files that would run code, take all memory, are torn or hold another network: one clear line, nothing executed."""

import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.torchscript import MAX_PICKLE, is_torchscript, read_torchscript
from lipsync.weights_io import load_weights
from tests.lipsync.legacy_files import STATES, Call, read_entry, rewrite, write_legacy, write_torchscript

SMALL = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(3), "empty": torch.zeros(0)}
PROTO, STOP = b"\x80\x02", b"."


def refuse(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def scripted(tmp_path: Path, data: bytes) -> Path:
    """A TorchScript archive with this data.pkl."""
    return rewrite(write_torchscript(tmp_path / "w.pt", SMALL), {"data.pkl": data})


def module(attributes: bytes) -> bytes:
    """data.pkl of one module, whose attributes are set by these opcodes."""
    return PROTO + b"c__torch__\nM\n)\x81}(" + attributes + b"ub" + STOP


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(key: str, count: int) -> bytes:
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + b"K" + bytes([count]) + b"tQ"


def tensor(key: str, count: int, offset: int, size: bytes, stride: bytes) -> bytes:
    head = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(key, count)
    return head + b"J" + struct.pack("<i", offset) + size + stride + b"\x89N" + b"tR"


def test_small_archives_are_read_as_written(tmp_path: Path) -> None:
    found = read_torchscript(write_torchscript(tmp_path / "w.pt", SMALL))
    assert found.keys() == SMALL.keys()
    assert all(torch.equal(found[name], SMALL[name]) for name in SMALL)


def test_pickles_that_call_anything_are_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    evil = Call(os.mkdir, str(victim))
    path = tmp_path / "w.pth"
    for zipped in (True, False):
        torch.save({"state_dict": {"face_decoder_blocks.0": evil}}, path, _use_new_zipfile_serialization=zipped)
        refuse(path, "refused|not loaded")
    path.write_bytes(pickle.dumps(evil, protocol=2))
    refuse(path, "refused|not a readable weights file")
    refuse(scripted(tmp_path, pickle.dumps(evil, protocol=2)), "asks for posix.mkdir")
    refuse(scripted(tmp_path, module(text("x") + pickle.dumps(evil, protocol=2)[2:-1])), "asks for posix.mkdir")
    assert not victim.exists()


def test_the_code_of_an_archive_is_not_opened(tmp_path: Path) -> None:
    path = write_torchscript(tmp_path / "w.pt", STATES["generator"])
    with zipfile.ZipFile(path) as archive:
        code = [name.split("/", 1)[1] for name in archive.namelist() if name.endswith(".py")]
    rewrite(path, dict.fromkeys(code, b"import os; os.abort()") | {"constants.pkl": b"cos\nabort\n)R."})
    assert code
    assert load_weights(path).kind == "generator"


@pytest.mark.parametrize(
    "view",
    [
        tensor("0", 6, 0, b"K\x07\x85", b"K\x01\x85"),
        tensor("0", 6, 5, b"K\x02\x85", b"K\x01\x85"),
        tensor("0", 6, 0, b"J\xff\xff\xff\x7f\x85", b"K\x00\x85"),
        tensor("0", 6, -1, b"K\x02\x85", b"K\x01\x85"),
        tensor("0", 6, 0, b"K\x02\x85", b"K\x01K\x01\x86"),
        tensor("0", 7, 0, b"K\x02\x85", b"K\x01\x85"),
        tensor("9", 6, 0, b"K\x02\x85", b"K\x01\x85"),
        tensor("../data.pkl", 6, 0, b"K\x02\x85", b"K\x01\x85"),
        tensor("0", 6, 0, b"N", b"N"),
    ],
)
def test_tensors_stay_inside_their_storage(tmp_path: Path, view: bytes) -> None:
    path = write_torchscript(tmp_path / "w.pt", {"x": SMALL["a.weight"]})
    honest = module(text("x") + tensor("0", 6, 1, b"K\x05\x85", b"K\x01\x85"))
    assert torch.equal(read_torchscript(rewrite(path, {"data.pkl": honest}))["x"], torch.arange(1.0, 6.0))
    refuse(rewrite(path, {"data.pkl": module(text("x") + view)}), "refused to read|no whole TorchScript archive")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (PROTO + b"r\xff\xff\xff\x7f" + STOP, "remembers more than it holds"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + STOP, "no whole TorchScript|BYTEARRAY8"),
        (b"\x80\x04\x8c\x01a\x93.", "uses SHORT_BINUNICODE"),
        (PROTO + b"N" + STOP, "data is no module"),
        (PROTO + b"c__torch__\nM\n)\x81" + STOP, "module without attributes"),
        (PROTO + b"c__torch__\nM\n)\x81q\x00}" + text("x") + b"h\x00sb" + STOP, "nest without end"),
        (PROTO + b"c__torch__\nM\n}" + text("attributes") + b"NsbN" + STOP, "no whole TorchScript"),
        (module(b""), "no named tensors"),
        (module(text("x") + tensor("0", 6, 0, b")", b")"))[:-9], "no whole TorchScript"),
        (b"", "no whole TorchScript"),
        (b" " * (MAX_PICKLE + 1), "more than 4 MiB"),
    ],
)
def test_data_that_no_archive_has_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    refuse(scripted(tmp_path, data), message)


def test_modules_that_double_at_each_level_are_refused(tmp_path: Path) -> None:
    """Forty modules, each of which holds the one before twice: 2^40 names."""
    data = PROTO + b"c__torch__\nM\n)\x81}bq\x00"
    for level in range(40):
        attributes = text("a") + b"h" + bytes([level]) + text("b") + b"h" + bytes([level])
        data += b"c__torch__\nM\n)\x81}(" + attributes + b"ubq" + bytes([level + 1])
    refuse(scripted(tmp_path, data + STOP), "nest without end")


def test_zip_bombs_are_refused_unopened(tmp_path: Path) -> None:
    path = write_torchscript(tmp_path / "w.pt", SMALL)
    refuse(rewrite(path, {"data/0": bytes(50 << 20)}, compress=True), "is compressed")
    assert path.stat().st_size < 1 << 20
    path = write_legacy(tmp_path / "w.pth", STATES["expert"])
    refuse(rewrite(path, {"data/0": bytes(50 << 20)}, compress=True), "is compressed")


def test_entries_that_overlap_are_refused(tmp_path: Path) -> None:
    path = write_torchscript(tmp_path / "w.pt", {"x": torch.zeros(30_000)})
    entries = {f"data/{i}": b"" for i in range(1, 9)}
    rewrite(path, entries)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        large = archive.getinfo("w/data/0")
    begin = struct.unpack("<I", content[-6:-2])[0]
    while content[begin : begin + 4] == b"PK\x01\x02":  # all entries of the table of contents point to the large one
        sizes = struct.unpack("<HHH", content[begin + 28 : begin + 34])
        content[begin + 16 : begin + 28] = struct.pack("<III", large.CRC, large.file_size, large.file_size)
        content[begin + 42 : begin + 46] = struct.pack("<I", large.header_offset)
        begin += 46 + sum(sizes)
    path.write_bytes(content)
    refuse(path, "entries overlap")


def test_a_tensor_repeated_by_stride_0_does_not_fill_memory(tmp_path: Path) -> None:
    state = {name: torch.zeros(()).expand(1 << 20, *value.shape) for name, value in STATES["generator"].items()}
    path = tmp_path / "w.pth"
    torch.save(state, path)
    refuse(path, "far more memory than the file")


@pytest.mark.parametrize("keep", [0, 10, 2000, 0.5, 0.99])
def test_torn_files_are_user_errors(tmp_path: Path, keep: float) -> None:
    for number, path in enumerate(
        (
            write_legacy(tmp_path / "a.pth", STATES["discriminator"]),
            write_legacy(tmp_path / "b.pth", STATES["discriminator"], zipped=False),
            write_torchscript(tmp_path / "c.pt", STATES["discriminator"]),
        )
    ):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
        refuse(path, "torn|not a readable|refused")
        if number != 1 and keep:  # a flipped byte in a tensor; the old format has no checksums
            flipped = bytearray(whole)
            flipped[len(whole) // 3] ^= 0xFF
            path.write_bytes(flipped)
            refuse(path, "torn|no whole TorchScript")


def test_big_endian_archives_are_refused(tmp_path: Path) -> None:
    path = write_torchscript(tmp_path / "w.pt", SMALL)
    assert read_entry(path, "byteorder") == b"little"
    refuse(rewrite(path, {"byteorder": b"big"}), "little endian")


def test_other_files_say_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "some file.pth"
    others = {
        "netcnnaud.0.weight": r"SyncNet \(syncnet_v2.model\).*python -m common lse",
        "conv1_1.weight": "the face detector S3FD",
        "vgg.0.weight": "the face detector S3FD",
        "style.1.weight": "none of Wav2Lip's networks; its names begin with style.1.weight",
    }
    for name, message in others.items():
        torch.save({name: torch.zeros(1)}, path)
        refuse(path, message)
        refuse(write_torchscript(tmp_path / "w.pt", {name: torch.zeros(1)}), message)
    for content in ([torch.zeros(1)], {"state_dict": {}}, {"a": 3}, {3: torch.zeros(1)}):
        torch.save(content, path)
        refuse(path, "no dictionary of tensors|something else than text")
    path.write_bytes(b"<html>quota exceeded</html>")
    refuse(path, "refused|not a readable weights file")
    refuse(tmp_path / "absent.pth", "no such file")
    refuse(tmp_path, "no such file")
    assert not is_torchscript(path)


def test_the_wrong_network_is_named(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "lipsync_expert.pth", STATES["expert"])
    with pytest.raises(UserError, match="holds a sync expert, but a lip-sync generator is needed here"):
        load_weights(path, "generator")


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    state = STATES["generator"]
    for blocks in (8, 9):
        more = {
            name.replace("blocks.6.", f"blocks.{block}."): value
            for block in range(7, blocks)
            for name, value in state.items()
            if name.startswith("face_encoder_blocks.6.")
        }
        refuse(write_legacy(path, state | more), f"generator of another architecture than ours: it has {blocks} face")
    name = "face_decoder_blocks.3.0.conv_block.0.weight"
    refuse(write_legacy(path, state | {name: torch.zeros(2, 2, 3, 3)}), f"{name} is .2, 2, 3, 3., wanted")
    refuse(write_legacy(path, state | {"extra.weight": torch.zeros(1)}), "unexpected extra.weight")
    del (cut := dict(state))[name]
    refuse(write_legacy(path, cut), f"missing {name}")
    name = "audio_encoder.11.conv_block.0.weight"
    refuse(write_legacy(path, state | {name: torch.zeros(1, 1, 4, 3)}), "none of 39, 80, 119 rows")
    refuse(write_legacy(path, state | {name: torch.zeros(1)}), "another architecture")
    del (cut := dict(state))[name]
    refuse(write_legacy(path, cut), f"it lacks '{name}'")
