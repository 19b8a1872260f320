"""Who trains and who tests: published splits of VoxCeleb, and two for data of one's own. Pure functions."""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from common.errors import UserError

ENOUGH_IDENTITIES = 30
"""From this number on, data of one's own is split by identity; below it, val and test would be a few people."""


def wen_split(name: str) -> str:
    """Wen et al. by initial letter: A-B val, C-E test, F-Z train; vox1_meta.csv gives 116, 193 and 942 people.

    Accents are taken off first. A name that starts with no Latin letter is a `UserError`.
    """
    initial = unicodedata.normalize("NFKD", name.strip())[:1].upper()
    if not "A" <= initial <= "Z" or len(initial) != 1:
        raise UserError(f"the name {name!r} starts with no letter A to Z, which the split by initials needs")
    return "val" if initial in "AB" else "test" if initial in "CDE" else "train"


def wen_splits(names: Iterable[str]) -> dict[str, str]:
    """`wen_split` of each name."""
    return {name: wen_split(name) for name in names}


def sf2f_splits(names: Sequence[str]) -> dict[str, str]:
    """SF2F: row i of a part's metadata file is test when i % 10 is 8, val when it is 9, else train.

    `names` is in the order of the file, for one part of VoxCeleb at a time.
    """
    return {name: {8: "test", 9: "val"}.get(i % 10, "train") for i, name in enumerate(names)}


def hash_split(identity: str, *, val: float = 0.1, test: float = 0.1) -> str:
    """The split of an identity by SHA-256 of its name: nobody moves when others are added or removed."""
    place = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64
    return "test" if place < test else "val" if place < test + val else "train"


def hash_splits(identities: Iterable[str], *, val: float = 0.1, test: float = 0.1) -> dict[str, str]:
    """`hash_split` of each identity."""
    return {identity: hash_split(identity, val=val, test=test) for identity in identities}


def recording_splits(sources: Mapping[str, str], *, val: float = 0.1, test: float = 0.1) -> dict[str, str]:
    """Split one person's items, id -> the file it came from, so that val and test hold out the last of them.

    With three files or more whole files are held out, so that no file is on both sides; with fewer, items are,
    in the order of their ids (for pieces of one file, that of time). Each share is rounded, at least one; one
    unit alone trains, and of two the second tests.
    """
    files = sorted(set(sources.values()))
    units = files if len(files) >= 3 else sorted(sources)
    n_test = max(1, round(test * len(units))) if len(units) > 1 else 0
    n_val = max(1, round(val * len(units))) if len(units) > 2 else 0
    n_train = len(units) - n_val - n_test
    place = {unit: "train" if i < n_train else "val" if i < n_train + n_val else "test" for i, unit in enumerate(units)}
    return {item: place[source if len(files) >= 3 else item] for item, source in sources.items()}


def check_people(splits: Iterable[tuple[str, str]]) -> None:
    """Raise `UserError` naming the people that (identity, split) pairs put into two splits."""
    people: dict[str, set[str]] = defaultdict(set)
    for identity, split in splits:
        people[split].add(identity)
    for first, second in combinations(sorted(people), 2):
        shared = sorted(people[first] & people[second])
        if shared:
            names = ", ".join(shared[:5]) + (", ..." if len(shared) > 5 else "")
            raise UserError(f"{len(shared)} people stand in both {first} and {second}: {names}")
