"""The user study: blinded, shuffled, self-contained; returned ratings become means whatever else comes back."""

import base64
import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from lipsync.survey import make_survey, parse_methods
from lipsync.survey_page import QUESTIONS
from lipsync.survey_ratings import write_ratings

HOSTILE = '<script>alert("x")</script>|`a`'


def folders(root: Path, *names: str, clips: int = 3) -> dict[str, Path]:
    """A folder of made-up videos for each method."""
    found = {}
    for place, name in enumerate(names):
        folder = root / f"m{place}"
        folder.mkdir(parents=True)
        for clip in range(clips):
            (folder / f"<b>clip{clip}.mp4").write_bytes(f"{name} {clip}".encode() * 5)
        found[name] = folder
    return found


def make(root: Path, *names: str, **kwargs: Any) -> tuple[str, dict[str, Any]]:
    out = root / "survey.html"
    make_survey(folders(root, *names), out, **{"clips": 8, "megabytes": 1.0, "seed": 0} | kwargs)
    return out.read_text(encoding="utf-8"), json.loads((root / "survey.key.json").read_text())


def test_the_page_holds_every_video_and_no_name(tmp_path: Path) -> None:
    page, key = make(tmp_path, "Wav2Lip", HOSTILE)
    sections = re.findall(r'<section id="(v\d+)">.*?src="data:video/mp4;base64,([^"]*)"', page, re.DOTALL)
    assert [name for name, _ in sections] == list(key["items"]) == [f"v00{i}" for i in range(1, 7)]
    for name, content in sections:
        item = key["items"][name]
        assert base64.b64decode(content) == f"{item['method']} {item['clip'][-1]}".encode() * 5
    assert all(word not in page for word in ("Wav2Lip", "alert", "<b>", "clip0"))
    assert page.count('type="radio"') == 6 * 3 * 5
    assert "http" not in page.replace("http-equiv", "")
    assert all(question.title in page for question in QUESTIONS)


def test_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    page, _ = make(tmp_path, "a", "b")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; media-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page


def test_the_order_is_the_seeds(tmp_path: Path) -> None:
    orders = []
    for place, seed in enumerate((0, 0, 1)):
        _, key = make(tmp_path / str(place), "a", "b", seed=seed)
        orders.append(([tuple(item.values()) for item in key["items"].values()], key["survey"]))
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[2][0]
    assert sorted(orders[0][0]) == sorted(orders[2][0])
    assert orders[0][1] != orders[2][1]


def test_clips_are_spread_over_those_that_all_methods_have(tmp_path: Path) -> None:
    methods = folders(tmp_path, "a", "b", clips=5)
    (methods["b"] / "<b>clip1.mp4").unlink()
    (methods["a"] / ".<b>clip9.mp4").write_bytes(b"half")
    make_survey(methods, tmp_path / "s.html", clips=2, megabytes=1, seed=0)
    key = json.loads((tmp_path / "s.key.json").read_text())
    assert {item["clip"] for item in key["items"].values()} == {"<b>clip0", "<b>clip4"}


def test_refusals(tmp_path: Path) -> None:
    methods = folders(tmp_path, "a", "b")
    with pytest.raises(UserError, match=r"6 videos have 0.0 MB, more than the 1e-05 MB"):
        make_survey(methods, tmp_path / "s.html", clips=8, megabytes=1e-5, seed=0)
    assert not (tmp_path / "s.html").exists()
    with pytest.raises(UserError, match=r"does not end in \.html"):
        make_survey(methods, tmp_path / "s.pdf", clips=8, megabytes=1, seed=0)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UserError, match="b has no videos that browsers play"):
        make_survey({"a": methods["a"], "b": other}, tmp_path / "s.html", clips=8, megabytes=1, seed=0)
    (other / "else.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match="no clip is there by all methods"):
        make_survey({"a": methods["a"], "b": other}, tmp_path / "s.html", clips=8, megabytes=1, seed=0)
    for words, said in (
        (["a"], "wants NAME=FOLDER"), ([f"a={other}", f"a={other}"], "given twice"), (["a=absent"], "no folder of"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            parse_methods(words)


def answer(key: dict[str, Any], rater: str, **by_method: int) -> dict[str, Any]:
    """Ratings of everything by a rater: sync as given, visual and overall 3."""
    ratings = {
        video: {"sync": by_method[item["method"]], "visual": 3, "overall": 3} for video, item in key["items"].items()
    }
    return {"survey": key["survey"], "rater": rater, "ratings": ratings}


def rows_of(text: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines}


def test_means_are_over_raters_and_stand_beside_the_papers(tmp_path: Path) -> None:
    _, key = make(tmp_path, "Wav2Lip", "mine")
    returned = tmp_path / "returned"
    returned.mkdir()
    for rater, marks in (("x", (1, 5)), ("y", (2, 5)), ("z", (3, 5))):
        given = answer(key, rater, Wav2Lip=marks[0], mine=marks[1])
        (returned / f"{rater}.json").write_text(json.dumps(given))
    text = write_ratings(returned, tmp_path / "survey.key.json", tmp_path / "survey.md")
    rows = rows_of(text)
    assert rows["Wav2Lip"][:2] == ["2.000 [1.000, 3.000] (n 9)", "3.437"]
    assert rows["mine"][0] == "5.000 [5.000, 5.000] (n 9)"
    assert "3 raters, 18 rated videos of 6" in text
    assert (tmp_path / "survey.md").read_text() in text
    assert "Left out" not in text


def test_csv_and_json_of_one_person_count_once(tmp_path: Path) -> None:
    _, key = make(tmp_path, "a", "b")
    returned = tmp_path / "returned"
    returned.mkdir()
    given = answer(key, "=x", a=2, b=4)
    (returned / "1.json").write_text(json.dumps(given))
    with open(returned / "2.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["survey", "rater", "video", "sync", "visual", "overall"])
        writer.writerows([key["survey"], "'=x", video, *marks.values()] for video, marks in given["ratings"].items())
    text = write_ratings(returned, tmp_path / "survey.key.json", tmp_path / "survey.md")
    assert "1 raters, 6 rated videos of 6" in text
    assert "twice" not in text
    (returned / "3.json").write_text(json.dumps(answer(key, "=x", a=5, b=5)))
    text = write_ratings(returned, tmp_path / "survey.key.json", tmp_path / "survey.md")
    assert "=x rated twice: 2.csv gives way to 3.json" in text
    assert rows_of(text)["a"][0] == "5.000 (n 3)"


def test_what_is_broken_is_left_out_by_name(tmp_path: Path) -> None:
    _, key = make(tmp_path, HOSTILE, "b")
    returned = tmp_path / "returned"
    returned.mkdir()
    good = answer(key, "<i>good|</i>\n\x1b[31m", **{HOSTILE: 1, "b": 2})
    first, second, third, *_ = good["ratings"]
    good["ratings"][first] = {"sync": True, "visual": 6, "overall": "3"}
    good["ratings"][second] = "all fives"
    good["ratings"][third]["sync"] = 2.5
    good["ratings"]["v999"] = {"sync": 5}
    (returned / "good.json").write_text(json.dumps(good))
    (returned / "deep.json").write_text("[" * 100000)
    (returned / "list.json").write_text("[1]")
    (returned / "other.json").write_text(json.dumps(good | {"survey": "000"}))
    (returned / "none.json").write_text(json.dumps(good | {"ratings": [5]}))
    (returned / "binary.csv").write_bytes(b"\xff\xfe\x00")
    (returned / "empty.csv").write_text("")
    (returned / "huge.json").write_text(" " * (2 << 20))
    (returned / "folder.json").mkdir()
    (returned / "notes.txt").write_text("not asked for")
    text = write_ratings(returned, tmp_path / "survey.key.json", tmp_path / "survey.md")
    left = text.split("Left out:")[1]
    for words in (
        "deep.json: it is no JSON", "list.json: it holds no JSON object", "other.json: it belongs to another survey",
        "none.json: it holds no ratings", "binary.csv: it cannot be read", "empty.csv: it has no lines",
        "huge.json: it is no file, or too large", "folder.json: it is no file", "v999 is no video of the survey",
        f"{first}: no rating from 1 to 5 for sync, visual, overall", f"{third}: no rating from 1 to 5 for sync",
    ):  # fmt: skip
        assert words in left
    assert "notes.txt" not in text
    assert "1 raters, 4 rated videos of 6" in text
    assert "<" not in text
    assert "\x1b" not in text
    assert "&lt;script&gt;" in text


def test_without_key_or_ratings_it_ends_in_one_line(tmp_path: Path) -> None:
    _, key = make(tmp_path, "a", "b")
    returned = tmp_path / "returned"
    with pytest.raises(UserError, match="no folder of ratings at"):
        write_ratings(returned, tmp_path / "survey.key.json", tmp_path / "s.md")
    returned.mkdir()
    with pytest.raises(UserError, match=f"holds no ratings of the survey {key['survey']}"):
        write_ratings(returned, tmp_path / "survey.key.json", tmp_path / "s.md")
    with pytest.raises(UserError, match=r"cannot be read|no file"):
        write_ratings(returned, tmp_path / "absent.json", tmp_path / "s.md")
    (tmp_path / "wrong.json").write_text("{}")
    with pytest.raises(UserError, match="is not the key of a survey"):
        write_ratings(returned, tmp_path / "wrong.json", tmp_path / "s.md")
    assert not (tmp_path / "s.md").exists()


def test_intervals_resample_raters_and_not_ratings(tmp_path: Path) -> None:
    _, key = make(tmp_path, "a", "b")
    returned = tmp_path / "returned"
    returned.mkdir()
    rng = np.random.default_rng(0)
    marks = rng.integers(1, 6, 12)
    for number, mark in enumerate(marks):
        (returned / f"{number}.json").write_text(json.dumps(answer(key, f"r{number}", a=int(mark), b=3)))
    cell = rows_of(write_ratings(returned, tmp_path / "survey.key.json", tmp_path / "s.md"))["a"][0]
    mean, low, high = (float(word) for word in re.findall(r"\d\.\d+", cell))
    assert mean == pytest.approx(marks.mean(), abs=1e-3)
    assert high - low == pytest.approx(2 * 1.96 * marks.std() / np.sqrt(12), rel=0.15)
