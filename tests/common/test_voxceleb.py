"""VoxCeleb and VGGFace in a tiny tree of the official layout."""

from pathlib import Path

import pytest

from common.data.corpus import Corpus
from common.data.prepare import Report, prepare
from common.data.voxceleb import plan_voxceleb, read_meta, split_people
from common.errors import UserError
from tests.common.toy_media import FakeKit, save_photo, save_sound, voice

VOX1 = "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
VOX2 = "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \n"
PEOPLE = [
    ("id10001", "A.J._Buckley", "m", "Ireland"),
    ("id10117", "CCH_Pounder", "f", "Guyana"),
    ("id10309", "Ezra_Miller", "m", "USA"),
    ("id10362", "Harry_Connick_Jr.", "m", "USA"),
    ("id11251", "Zulay_Henao", "f", "USA"),
]


def vox1(root: Path, people: list[tuple[str, str, str, str]] = PEOPLE, photos: str = "VGG_ALL_FRONTAL") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "vox1_meta.csv").write_text(VOX1 + "".join("\t".join([*row, "dev"]) + "\n" for row in people))
    for number, (identity, name, *_) in enumerate(people):
        for video in ("5r0dWxy17C8", "_x-Y"):
            save_sound(root / f"wav/{identity}/{video}/00001.wav", voice(2.0, 120 + 20 * number))
        save_photo(root / photos / name.rstrip(".") / "00000001.jpg", seed=number)
    return root


def vox2(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rows = [("id00012", "n000012"), ("id00015", "n000015")]
    (root / "vox2_meta.csv").write_text(VOX2 + "".join(f"{a} ,{b} ,f ,dev \n" for a, b in rows))
    for number, (identity, face) in enumerate(rows):
        save_sound(root / f"dev/aac/{identity}/abc/00016.m4a", voice(2.0, 150))
        save_photo(root / f"vggface2/train/{face}/0001_01.jpg", seed=number)
    return root


def run(source: Path, out: Path, **options: object) -> Report:
    return prepare("voxceleb", source, out, **{"workers": 0, "size": 64, "toolkit": FakeKit, **options})


def test_wen_split_of_the_official_layout(tmp_path):
    report = run(vox1(tmp_path / "in"), tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    assert report.dropped == []
    assert corpus.split_by == "identity"
    assert {split: corpus.identities(split) for split in ("train", "val", "test")} == {
        "train": ["id10362", "id11251"],
        "val": ["id10001"],
        "test": ["id10117", "id10309"],
    }
    assert len(corpus.items(kind="voice")) == 10
    assert len(corpus.items(kind="face")) == 5
    row = corpus.items(kind="voice", split="val").iloc[0]
    assert (row["name"], row["gender"], row["nationality"]) == ("A.J._Buckley", "m", "Ireland")
    assert row["path"].startswith("voices/id10001/5r0dWxy17C8_00001-")


def test_both_parts_by_hash_with_photographs_elsewhere(tmp_path):
    vox2(vox1(tmp_path / "in", photos="../photos/deep"))
    with pytest.raises(UserError, match="needs names, but 2 people have none, the first is id00012"):
        plan_voxceleb(tmp_path / "in")
    report = run(tmp_path / "in", tmp_path / "out", scheme="hash", faces=tmp_path / "photos")
    corpus = Corpus.open(tmp_path / "out")
    assert report.dropped == []
    assert len(corpus.identities()) == 7
    assert corpus.items().set_index("identity").loc["id00012", "name"].iloc[0] == "n000012"
    assert plan_voxceleb(tmp_path / "in", scheme="hash").notes[-1].startswith("5 of the 7 people in the metadata lack")


def test_names_of_part_two_from_the_full_table(tmp_path):
    vox2(tmp_path / "in")
    (tmp_path / "in/full_vox2_meta.csv").write_text(
        "Name,VoxCeleb2 ID,VGGFace2 ID,Gender,Set\nBob_X,id00012,n000012,f,dev\nGus_Y,id00015,n000015,m,dev\n"
    )
    assert plan_voxceleb(tmp_path / "in").splits == {"id00012": "val", "id00015": "train"}


def test_sf2f_counts_rows_of_each_file(tmp_path):
    people = [(f"id{10001 + i}", f"P{i}", "m", "UK") for i in range(21)]
    vox1(tmp_path, [])
    (tmp_path / "vox1_meta.csv").write_text(VOX1 + "".join("\t".join([*row, "dev"]) + "\n" for row in people))
    splits = split_people(read_meta(tmp_path / "vox1_meta.csv"), "sf2f")
    assert [identity for identity, split in splits.items() if split == "test"] == ["id10009", "id10019"]
    assert [identity for identity, split in splits.items() if split == "val"] == ["id10010", "id10020"]


def test_one_person_under_two_ids_on_two_sides_is_refused(tmp_path):
    people = [(f"id{10001 + i}", f"P{i}", "m", "UK") for i in range(9)]
    vox1(tmp_path, [*people, ("id10077", "P8", "m", "UK")])
    with pytest.raises(UserError, match="1 people stand in both test and val: P8"):
        plan_voxceleb(tmp_path, scheme="sf2f")
    assert plan_voxceleb(tmp_path, scheme="wen").units


def test_limit_and_strangers(tmp_path):
    vox1(tmp_path)
    save_photo(tmp_path / "VGG_ALL_FRONTAL/Someone_Else/1.jpg")
    plan = plan_voxceleb(tmp_path, limit=2)
    assert {unit.payload[0].identity for unit in plan.units} == {"id10001", "id10117"}
    assert len(plan.units) == 2 * (2 + 1)
    assert plan.notes == [
        "1 folders hold videos or belong to nobody in the metadata, such as VGG_ALL_FRONTAL/Someone_Else"
    ]


def test_official_table_of_part_two(tmp_path):
    people = read_meta(vox2(tmp_path) / "vox2_meta.csv")
    assert [(p.id, p.face_id, p.name, p.gender, p.nationality) for p in people] == [
        ("id00012", "n000012", "", "f", ""),
        ("id00015", "n000015", "", "f", ""),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns \\(none\\)"),
        ("a,b\n1,2\n", "has the columns a, b"),
        (VOX1 + "id1\tAnn\n", "has 2 cells, the header 5"),
        (VOX1 + "id1\tAnn\tf\tUK\tdev\n" * 2, "'id1' twice"),
        (VOX1 + "../id1\tAnn\tf\tUK\tdev\n", "no identity"),
    ],
)
def test_malformed_tables(tmp_path, text, message):
    (tmp_path / "vox1_meta.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        plan_voxceleb(tmp_path)


def test_no_table_no_media_unknown_scheme(tmp_path):
    with pytest.raises(UserError, match="no input folder"):
        plan_voxceleb(tmp_path / "absent")
    with pytest.raises(UserError, match="neither vox1_meta"):
        plan_voxceleb(tmp_path)
    (tmp_path / "vox1_meta.csv").write_text(VOX1 + "id10001\tAnn\tf\tUK\tdev\n")
    with pytest.raises(UserError, match="nobody in the metadata has both"):
        plan_voxceleb(tmp_path)
    with pytest.raises(UserError, match="unknown scheme 'letters'"):
        plan_voxceleb(tmp_path, scheme="letters")
    (tmp_path / "vox1_meta.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read"):
        plan_voxceleb(tmp_path)
