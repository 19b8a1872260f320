"""Published splits against their printed counts and rules; our own against their promises."""

from collections import Counter

import pytest

from common.data.splits import (
    check_people,
    hash_split,
    hash_splits,
    recording_splits,
    sf2f_splits,
    wen_split,
    wen_splits,
)
from common.errors import UserError


def test_wen_letters():
    assert {letter: wen_split(f"{letter}x_Y") for letter in "ABCDEFGMSZ"} == {
        **dict.fromkeys("AB", "val"),
        **dict.fromkeys("CDE", "test"),
        **dict.fromkeys("FGMSZ", "train"),
    }
    assert wen_split("bob") == wen_split(" Bob") == "val"
    assert wen_split("Élodie") == "test"
    assert wen_split("Ördek") == "train"


def test_wen_counts_of_the_official_list():
    """vox1_meta.csv is sorted by name: 116 people up to B, 193 from C to E, 942 behind them."""
    names = [f"{'AB'[i % 2]}_{i}" for i in range(116)]
    names += [f"{'CDE'[i % 3]}_{i}" for i in range(193)] + [f"{chr(70 + i % 21)}_{i}" for i in range(942)]
    assert Counter(wen_splits(names).values()) == {"train": 942, "val": 116, "test": 193}


@pytest.mark.parametrize("name", ["", "50_Cent", "王菲", "_x", "  "])
def test_wen_needs_a_letter(name):
    with pytest.raises(UserError, match="A to Z"):
        wen_split(name)


def test_sf2f_mod_10():
    splits = sf2f_splits([f"n{i}" for i in range(25)])
    assert [i for i in range(25) if splits[f"n{i}"] == "test"] == [8, 18]
    assert [i for i in range(25) if splits[f"n{i}"] == "val"] == [9, 19]
    assert sum(split == "train" for split in splits.values()) == 21


def test_hash_split_is_stable_and_near_its_shares():
    people = [f"person{i}" for i in range(4000)]
    splits = hash_splits(people)
    counts = Counter(splits.values())
    assert counts["val"] / 4000 == pytest.approx(0.1, abs=0.02)
    assert counts["test"] / 4000 == pytest.approx(0.1, abs=0.02)
    assert all(hash_splits(people[::7])[person] == splits[person] for person in people[::7])
    assert hash_split("张三") == hash_split("张三")
    assert {hash_split(person, val=0, test=0) for person in people} == {"train"}


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, "a"), (2, "ac"), (3, "abc"), (10, "aaaaaaaabc"), (20, "a" * 16 + "bbcc")],
)
def test_recordings_of_one_file_are_cut_in_order(count, expected):
    names = {"a": "train", "b": "val", "c": "test"}
    sources = {f"r{i:03}": "film.mp4" for i in range(count)}
    assert recording_splits(sources) == {f"r{i:03}": names[letter] for i, letter in enumerate(expected)}


def test_recordings_of_several_files_never_share_one():
    sources = {f"{file}-{i}": file for file in ("a", "b", "c", "d") for i in range(3)}
    splits = recording_splits(sources)
    assert {sources[item]: split for item, split in splits.items()} == {
        "a": "train",
        "b": "train",
        "c": "val",
        "d": "test",
    }
    check_people((sources[item], split) for item, split in splits.items())
    assert recording_splits({}) == {}


def test_a_person_on_both_sides_is_named():
    check_people([("a", "train"), ("a", "train"), ("b", "val")])
    with pytest.raises(UserError, match="1 people stand in both test and train: a"):
        check_people([("a", "train"), ("b", "val"), ("a", "test")])
