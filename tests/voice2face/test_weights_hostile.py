"""Network pickles that would run code, read out of bounds or are torn: refused in one line, nothing executed."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.safe_pickle import read_network_pickle
from tests.voice2face.toy_stylegan2_files import Call, networks, reconstruct, write_nvidia
from voice2face.weights_io import load_stylegan2


def refuse(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "bad.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        load_stylegan2(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__", "open"])
def test_no_other_name_is_resolved(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    function = __builtins__[name] if isinstance(__builtins__, dict) else getattr(__builtins__, name)
    refuse(tmp_path, {"G_ema": Call(function, f"open({str(victim)!r}, 'w')")}, f"asks for (builtins|io|_io).{name}")
    refuse(tmp_path, {"G_ema": Call(os.mkdir, str(victim))}, "asks for posix.mkdir")
    assert not victim.exists()


def test_a_storage_that_is_a_pickle_of_code_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    evil = pickle.dumps(Call(os.mkdir, str(victim)), protocol=2)
    refuse(tmp_path, {"G_ema": Call(torch.storage._load_from_bytes, evil)}, "not a whole network pickle")
    with pytest.raises(FileNotFoundError):
        os.rmdir(victim)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2, 2), (4, 1)), (0, (10**12,), (0,)), (-1, (2,), (1,)), (0, (2,), (1, 1))],
)
def test_tensors_stay_inside_their_storage(tmp_path: Path, offset: int, size: tuple, stride: tuple) -> None:
    storage = torch.storage.TypedStorage(
        _internal=True, wrap_storage=torch.arange(4.0).untyped_storage(), dtype=torch.float32
    )
    call = Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())
    refuse(tmp_path, {"G_ema": call}, "beyond its storage|impossible shape")


@pytest.mark.parametrize("state", [{"state": None}, {}, "text", 3])
def test_a_persistent_object_without_a_state_is_refused(tmp_path: Path, nvidia_modules: None, state: object) -> None:
    refuse(tmp_path, {"G_ema": Call(reconstruct, state)}, "persistent object without a state")


def test_state_set_on_an_allowed_name_does_not_outlive_the_file(tmp_path: Path) -> None:
    # GLOBAL torch._utils _rebuild_parameter, then BUILD with a slot state that replaces what it calls.
    name = b"ctorch._utils\n_rebuild_parameter\n"
    attack = b"\x80\x02" + name + b"(N}X\x09\x00\x00\x00_functionccollections\nOrderedDict\nstb."
    path = tmp_path / "attack.pkl"
    path.write_bytes(attack)
    read_network_pickle(path)
    path.write_bytes(pickle.dumps(nn.Parameter(torch.arange(3.0))))
    torch.testing.assert_close(read_network_pickle(path), torch.arange(3.0))


def test_honest_tensors_survive_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "tensors.pkl"
    base = torch.arange(24, dtype=torch.float64).view(4, 6)
    content = [base, base.t(), base[1:3, ::2], torch.tensor(3), torch.zeros(0, 2), base.half(), {1, 2}]
    path.write_bytes(pickle.dumps(content))
    for ours, given in zip(read_network_pickle(path)[:-1], content[:-1], strict=True):
        assert ours.dtype == given.dtype
        torch.testing.assert_close(ours, given, rtol=0, atol=0)


def test_tensorflow_era_and_torn_pickles_are_told_apart(tmp_path: Path, nvidia_modules: None) -> None:
    refuse(tmp_path, b"\x80\x02cdnnlib.tflib.network\nNetwork\n)\x81.", "TensorFlow-era network")
    write_nvidia(tmp_path / "whole.pkl", *networks())
    whole = (tmp_path / "whole.pkl").read_bytes()
    for length in (3, 1000, len(whole) - 1):
        refuse(tmp_path, whole[:length], "not a whole network pickle")
    refuse(tmp_path, {"G_ema": 3}, "holds no network G_ema")
    refuse(tmp_path, [1], "holds no network G_ema")
