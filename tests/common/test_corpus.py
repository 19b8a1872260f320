"""The corpus contract: what is written is what is read, and every broken corpus ends in one clear line."""

import dataclasses
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.data.corpus import SCHEMA, Corpus, Item, check_disjoint, write_manifest
from common.errors import UserError


def rows(people: str = "abc", per_split: str = "train val test") -> list[Item]:
    """One voice and one face per person; person i goes to split i."""
    splits = per_split.split()
    return [
        Item(f"{kind}s/{person}/1", person, splits[i % len(splits)], kind, f"{kind}s/{person}/1.{suffix}", samples=n)
        for i, person in enumerate(people)
        for kind, suffix, n in (("voice", "wav", 32000), ("face", "png", 0))
    ]


def build(root: Path, items: list[Item], **options: object) -> Path:
    for item in items:
        if not item.dropped:
            file = root / item.path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x")
    write_manifest(root, items, **options)  # type: ignore[arg-type]
    return root


def rewrite(root: Path, change) -> None:
    """Replace the manifest by `change(frame)`, as a foreign tool would, without our metadata."""
    frame = pq.read_table(root / "manifest.parquet").to_pandas()
    pq.write_table(pa.Table.from_pandas(change(frame)), root / "manifest.parquet")


def test_schema_is_the_dataclass():
    assert [field.name for field in dataclasses.fields(Item)] == SCHEMA.names


def test_round_trip(tmp_path):
    items = [
        *rows(),
        Item("clips/c1", "c", "test", "clip", "clips/c1", 50, 25.0, 32000, "zh", -1.0, 7.5),
        Item("faces/a/2", "a", "train", "face", "faces/a/2.png", dropped="no face was found"),
    ]
    corpus = Corpus.open(build(tmp_path, items[::-1]))
    assert len(corpus.table) == 8
    assert list(corpus.table.columns) == SCHEMA.names
    assert list(corpus.items()["id"]) == sorted(item.id for item in items if not item.dropped)
    clip = corpus.items(kind="clip").iloc[0]
    read = {name: clip[name] for name in SCHEMA.names}
    assert read == dataclasses.asdict(items[-2])
    assert corpus.items(kind="face", split="train")["path"].tolist() == ["faces/a/1.png"]
    assert corpus.items(kind="voice", split="val").index.tolist() == [0]
    assert pd.isna(corpus.items(kind="voice").iloc[0]["sync_offset"])
    assert corpus.identities() == ["a", "b", "c"]
    assert corpus.identities("val") == ["b"]
    assert corpus.file("voices/a/1.wav") == tmp_path / "voices/a/1.wav"


def test_same_rows_same_bytes_and_types_of_an_empty_corpus(tmp_path):
    for name, items in (("one", rows()), ("two", rows()[::-1])):
        build(tmp_path / name, items)
    assert (tmp_path / "one/manifest.parquet").read_bytes() == (tmp_path / "two/manifest.parquet").read_bytes()
    write_manifest(tmp_path / "none", [])
    assert pq.read_schema(tmp_path / "none/manifest.parquet").equals(SCHEMA)
    assert len(Corpus.open(tmp_path / "none").items()) == 0


def test_extra_columns_are_kept(tmp_path):
    corpus = Corpus.open(build(tmp_path, rows(), extra={"voices/a/1": {"gender": "f", "pitch": 210.5}}))
    first = corpus.items(kind="voice").iloc[0]
    assert (first["gender"], first["pitch"]) == ("f", 210.5)
    assert corpus.items(kind="face")["gender"].isna().all()
    with pytest.raises(ValueError, match="hide"):
        write_manifest(tmp_path, rows(), extra={"voices/a/1": {"split": "train"}})


def test_summary_counts(tmp_path):
    items = [*rows("abcdef"), Item("faces/a/2", "a", "train", "face", "", dropped="blurred")]
    lines = Corpus.open(build(tmp_path, items)).summary().splitlines()
    assert "train 2 identities, 2 voices, 2 faces, 0.1 min of audio" in lines[1]
    assert "1 items dropped" in lines[-1]


def test_stock_tells_what_a_split_has(tmp_path):
    clips = [Item(f"c{n}", "a", "train", "clip", f"c{n}.d", frames=n, fps=25.0 + n // 40) for n in (12, 18, 40)]
    corpus = Corpus.open(build(tmp_path, [*rows("bcd", "val val val"), *clips]))
    assert corpus.stock("train") == "clips in it: 3, of 12 to 40 frames at 25 or 26 fps"
    assert corpus.stock("val") == "in it: 3 voices, 3 faces, 0 clips (items in other splits: train 3, test 0)"


def test_identity_in_two_splits(tmp_path):
    shared = [*rows(), Item("v2", "a", "test", "voice", "voices/a/2.wav")]
    with pytest.raises(UserError, match=r"1 identities stand in both train and test \(a\)"):
        build(tmp_path, shared)
    build(tmp_path, shared, split_by="recording")
    corpus = Corpus.open(tmp_path)
    assert corpus.split_by == "recording"
    with pytest.raises(UserError, match=r"train and test \(a\)"):
        check_disjoint(dataclasses.replace(corpus, split_by="identity"))
    rewrite(tmp_path, lambda frame: frame)
    with pytest.raises(UserError, match="split by identity"):
        Corpus.open(tmp_path)


def test_mixed_split_shares_train_and_val_only(tmp_path):
    held_out = Item("v2", "a", "val", "voice", "voices/a/2.wav")
    assert Corpus.open(build(tmp_path, [*rows(), held_out], split_by="mixed")).split_by == "mixed"
    with pytest.raises(UserError, match="train and test"):
        build(tmp_path, [*rows(), dataclasses.replace(held_out, split="test")], split_by="mixed")


def test_a_dropped_item_neither_leaks_nor_needs_a_file(tmp_path):
    items = [*rows(), Item("x", "a", "test", "voice", "", dropped="silent"), Item("y", "b", "val", "face", "gone.png")]
    items[-1] = dataclasses.replace(items[-1], dropped="two faces")
    assert len(Corpus.open(build(tmp_path, items)).table) == len(items)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns=["identity", "fps"]), "lacks the columns identity, fps"),
        (lambda f: f.assign(kind="voices"), "unknown kind 'voices'"),
        (lambda f: f.assign(split=["dev", *f["split"][1:]]), "unknown split 'dev' of item 'faces/a/1'"),
        (lambda f: f.assign(id="same"), "'same' stands there twice \\(5 repeats"),
        (lambda f: f.assign(path="../" + f["path"]), "unsafe path '../faces/a/1.png'"),
        (lambda f: f.assign(path="/etc/passwd"), "unsafe path '/etc/passwd'"),
        (lambda f: f.assign(path="voices/a/.."), "unsafe path"),
        (lambda f: f.assign(path="voices\\a.wav"), "unsafe path"),
        (lambda f: f.assign(path=""), "unsafe path"),
        (lambda f: f.assign(samples="many"), "column samples does not hold int64"),
        (lambda f: f.assign(identity=[None, *f["identity"][1:]]), "column identity has empty cells"),
    ],
)
def test_broken_manifests(tmp_path, change, message):
    build(tmp_path, rows())
    rewrite(tmp_path, change)
    with pytest.raises(UserError, match=message) as caught:
        Corpus.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_folder_no_manifest_not_parquet(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        Corpus.open(tmp_path / "absent")
    with pytest.raises(UserError, match=r"holds no manifest\.parquet"):
        Corpus.open(tmp_path)
    build(tmp_path, rows())
    whole = (tmp_path / "manifest.parquet").read_bytes()
    for torn in (b"", b"id,identity\n", whole[: len(whole) // 2]):
        (tmp_path / "manifest.parquet").write_bytes(torn)
        with pytest.raises(UserError, match="not a whole parquet file") as caught:
            Corpus.open(tmp_path)
        assert "\n" not in str(caught.value)


def test_missing_files_first_and_count(tmp_path):
    build(tmp_path, rows())
    (tmp_path / "voices/b/1.wav").unlink()
    (tmp_path / "voices/c/1.wav").unlink()
    with pytest.raises(UserError, match=r"2 files that are not there, the first is voices/b/1\.wav"):
        Corpus.open(tmp_path)


def test_foreign_metadata(tmp_path):
    build(tmp_path, rows())
    table = pq.read_table(tmp_path / "manifest.parquet")
    for value, message in ((b"{", "not readable"), (b'{"split_by": "moon"}', "unknown split_by 'moon'")):
        pq.write_table(table.replace_schema_metadata({b"speechface": value}), tmp_path / "manifest.parquet")
        with pytest.raises(UserError, match=message):
            Corpus.open(tmp_path)


def test_bad_rows_are_refused_before_anything_is_written(tmp_path):
    for item in (Item("a", "a", "dev", "voice", "a.wav"), Item("a", "a", "train", "voice", "../a.wav")):
        with pytest.raises(UserError):
            write_manifest(tmp_path / "new", [item])
    assert not (tmp_path / "new").exists()
    build(tmp_path, rows())
    with pytest.raises(ValueError, match="unknown kind"):
        Corpus.open(tmp_path).items(kind="voices")
