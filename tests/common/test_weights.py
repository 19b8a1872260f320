"""External weights: where they are looked for, what is said of absent ones, and that nothing in them runs."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.errors import UserError
from common.weights import WEIGHTS, fetch_weights, find_weights, load_state, report, weights_folder


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPEECHFACE_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def entry_with(monkeypatch, name: str, **changes) -> None:
    monkeypatch.setitem(WEIGHTS, name, replace(WEIGHTS[name], **changes))


def test_folder_follows_the_variable_and_the_xdg_rule(monkeypatch, tmp_path):
    monkeypatch.setenv("SPEECHFACE_WEIGHTS", str(tmp_path))
    assert weights_folder() == tmp_path
    monkeypatch.delenv("SPEECHFACE_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert weights_folder() == tmp_path / "cache" / "speechface" / "weights"
    for ignored in ("", "relative/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert weights_folder() == Path.home() / ".cache" / "speechface" / "weights"


def test_table_is_complete_and_well_formed():
    for name, entry in WEIGHTS.items():
        assert entry.name == name
        assert entry.page.startswith("https://")
        assert entry.licence
        assert entry.used_by
        assert Path(entry.file_name).name == entry.file_name
        assert entry.sha256 is None or (len(entry.sha256) >= 8 and int(entry.sha256, 16) >= 0)
        assert entry.url is None or entry.sha256 is not None, "what is fetched must be checked"
    assert len({entry.file_name for entry in WEIGHTS.values()}) == len(WEIGHTS)


@pytest.mark.parametrize("name", sorted(set(WEIGHTS) - {"lpips_alex", "lpips_vgg"}))
def test_absent_weights_say_what_to_put_where(folder, name):
    with pytest.raises(UserError) as caught:
        find_weights(name)
    message, entry = str(caught.value), WEIGHTS[name]
    for part in (entry.file_name, entry.page, entry.licence, str(folder / entry.file_name)):
        assert part in message
    assert "\n" not in message


def test_packaged_weights_are_found_and_loadable(folder):
    state = load_state(find_weights("lpips_vgg"))
    assert [tuple(tensor.shape) for tensor in state.values()] == [(1, c, 1, 1) for c in (64, 128, 256, 512, 512)]


def test_unknown_name_lists_the_known(folder):
    with pytest.raises(UserError, match="unknown weights 'vgg99'; known: inception2015"):
        find_weights("vgg99")


def test_checksum_of_a_file_under_its_published_name(folder, tmp_path, monkeypatch):
    place = folder / WEIGHTS["vgg19"].file_name
    place.write_bytes(b"torn")
    with pytest.raises(UserError, match=r"SHA-256 .* expected dcbb9e9d.*torn or another file"):
        find_weights("vgg19")
    assert "vgg19                damaged" in report()
    entry_with(monkeypatch, "vgg19", sha256=hashlib.sha256(b"torn").hexdigest()[:8])
    assert find_weights("vgg19") == place
    assert find_weights("vgg19", folder) == place, "a folder stands for the file of that name in it"
    place.write_bytes(b"replaced meanwhile")
    with pytest.raises(UserError, match="SHA-256"):
        find_weights("vgg19", place)
    own = tmp_path / "my_vgg.pth"
    own.write_bytes(b"fine-tuned")
    assert find_weights("vgg19", own) == own
    with pytest.raises(UserError, match="missing"):
        find_weights("vgg19", tmp_path / "nowhere.pth")


def test_fetching_checks_before_the_file_appears(folder, tmp_path, monkeypatch):
    served = tmp_path / "served.bin"
    served.write_bytes(b"\x00" * 3_000_000)
    digest = hashlib.sha256(served.read_bytes()).hexdigest()
    entry_with(monkeypatch, "vgg16", url=served.as_uri(), sha256=digest)
    assert fetch_weights("vgg16").read_bytes() == served.read_bytes()
    entry_with(monkeypatch, "vgg16", url="file:///nonexistent")
    assert fetch_weights("vgg16") == folder / WEIGHTS["vgg16"].file_name, "what is present is not fetched again"

    entry_with(monkeypatch, "alexnet", url=served.as_uri(), sha256="0" * 64)
    with pytest.raises(UserError, match=r"file:.*SHA-256"):
        fetch_weights("alexnet")
    entry_with(monkeypatch, "alexnet", url=(tmp_path / "absent").as_uri())
    with pytest.raises(UserError, match=r"cannot be reached.*put it at"):
        fetch_weights("alexnet")
    assert [path.name for path in folder.iterdir()] == [WEIGHTS["vgg16"].file_name]
    with pytest.raises(UserError, match="Basel Face Model licence"):
        fetch_weights("bfm09")


def test_report_names_every_entry_and_the_folder(folder):
    text = report()
    assert str(folder) in text.splitlines()[0]
    lines = text.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(WEIGHTS)
    assert [line.split()[-1] for line in lines] == [entry.page for entry in WEIGHTS.values()]
    assert {line.split()[0] for line in lines if line.split()[1] == "present"} == {"lpips_alex", "lpips_vgg"}


def test_load_state_reads_every_format(tmp_path):
    state = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(7)}
    save_file(state, tmp_path / "oddly_named.pth")
    torch.save(state, tmp_path / "zip.bin")
    torch.save(state, tmp_path / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "wrapped.pt")
    torch.save({"g": {}, "g_ema": state, "args": {"size": 64}}, tmp_path / "parts.pt")
    for name in ("oddly_named.pth", "zip.bin", "legacy.bin", "wrapped.pt", "parts.pt"):
        loaded = load_state(tmp_path / name, "g_ema" if name == "parts.pt" else None)
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[part], state[part]) for part in state)
    with pytest.raises(UserError, match=r"not a plain dictionary.*g, g_ema, args"):
        load_state(tmp_path / "parts.pt")
    with pytest.raises(UserError, match="no dictionary 'd'"):
        load_state(tmp_path / "parts.pt", "d")


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, how):
    trap, path = tmp_path / "executed", tmp_path / "evil.pth"
    content = {"weight": torch.zeros(2), "trap": Malicious(trap)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(UserError, match=r"refused.*never run"):
        load_state(path)
    assert not trap.exists()


def test_torn_foreign_and_missing_files_are_one_line(tmp_path):
    whole = tmp_path / "whole.pth"
    torch.save({"weight": torch.randn(500)}, whole)
    save_file({"weight": torch.randn(500)}, tmp_path / "whole.safetensors")
    hostile = {"empty.pth": b"", "text.pth": b"<html>404</html>", "head.safetensors": b"\xff" * 7 + b"\x00{}"}
    for name in ("whole.pth", "whole.safetensors"):
        for keep in (1, 9, 100, 1000, 2000):
            hostile[f"{keep}-{name}"] = (tmp_path / name).read_bytes()[:keep]
    for name, content in hostile.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            load_state(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    (tmp_path / "words.pth").write_bytes(b"hello")  # the unpickler's own word for it is 101
    with pytest.raises(UserError, match=r"words\.pth is not a readable weights file: torn, or of another kind$"):
        load_state(tmp_path / "words.pth")
    torch.save(torch.zeros(3), whole)
    with pytest.raises(UserError, match="holds a Tensor"):
        load_state(whole)
    with pytest.raises(UserError, match="No such file"):
        load_state(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="cannot read"):
        load_state(tmp_path)
