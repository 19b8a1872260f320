"""Run folders that are whole, odd and broken, and what the comparison makes of them."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from common.__main__ import app
from common.compare import compare, differences, final_figures, page, write_figures
from common.config import ProvenanceConfig
from common.errors import UserError
from common.plots import Line, curve_figure, picture_figure, svg
from common.provenance import Provenance, read_label, write_png
from common.runfolder import Curve, find_runs, flatten, read_curves, read_run, read_runs

CSV = "step,train/g_loss,val/fid,time/step\n1,2.5,,0.5\n2,1.5,80,0.25\n"


def make_run(folder: Path, *, root: str = "corpus", lr: float = 0.1, csv: str = CSV, fid: float | None = 3.0) -> Path:
    """A run folder as `common.run.fit` and an evaluation leave it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"run:\n  name: {folder.name}\n  seed: 7\ntrainer:\n  steps: 2\ndata:\n  root: {root}\noptim:\n  lr: {lr}\n"
    )
    (folder / "git.txt").write_text("0123abc (modified)\n")
    (folder / "metrics.csv").write_text(csv)
    if fid is not None:
        quality = {"fid": fid, "kid": {"value": 0.25, "low": 0.125, "high": 0.5, "n": 4}}
        (folder / "metrics.json").write_text(json.dumps({"recordings": 4, "quality": quality}))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    label = Provenance.create(ProvenanceConfig(), config_hash="abc")
    for step in (1, 2):
        write_png(folder / "samples" / f"step_{step:08d}.png", pixels // step, label)
    return folder


class Reader(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_first_stage_stands_back_behind_its_run(tmp_path: Path) -> None:
    main, first, alone = (make_run(tmp_path / name) for name in ("a", "a-expert", "b-encoder"))
    folders, left_out = find_runs([tmp_path])
    assert folders == [main, alone]
    assert left_out == [f"{first} is the first stage of a; name it without that run to see it"]
    assert find_runs([first]) == ([first], [])


def test_the_page_holds_everything_and_needs_nothing(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", lr=0.2, fid=5.0)]
    printed = compare(runs, tmp_path / "out" / "compare.html")
    html = (tmp_path / "out" / "compare.html").read_text()
    reader = Reader(html)
    assert printed == [f"written: {tmp_path / 'out' / 'compare.html'} (2 runs)"]
    text = " ".join(reader.words)
    for words in ("optim.lr", "0.2", "0123abc", "0.25 [0.125, 0.5]", "80 @ 2", "was generated", "2 of 2", "0.375"):
        assert words in text
    assert "trainer.steps" not in text  # equal in both
    assert "run.name" not in text
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object"}
    sources = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert all(source and source.startswith("data:image/") for source in sources)
    assert len(sources) == 2 + 2  # two panels, two sample grids
    assert not re.search(r"https?://(?!www\.w3\.org)", re.sub(r"base64,[^\"]*", "", html))


def test_the_last_samples_keep_their_label(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    html = page(read_runs([run]))
    (content,) = re.findall(r"data:image/png;base64,([^\"]+)", html)
    copy = tmp_path / "copy.png"
    copy.write_bytes(base64.b64decode(content))
    assert copy.read_bytes() == (run / "samples" / "step_00000002.png").read_bytes()
    assert read_label(copy)["AIGC"]["Label"] == "1"


def test_names_and_values_cannot_inject_markup(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>$_{"
    first = make_run(tmp_path / evil.replace("/", ""))
    (first / "metrics.json").write_text(json.dumps({"<b>": "<script>", "recordings": 3}))
    (first / "metrics.csv").write_text('step,"<i>$x"\n1,2\n2,3\n')
    html = page(read_runs([first, make_run(tmp_path / "_b", root="'><script>")]))
    tags = Reader(html).tags
    assert "script" not in {tag for tag, _ in tags}
    assert not any("onerror" in attributes for _, attributes in tags)
    assert "&lt;b&gt;" in html


def test_other_corpora_and_other_evaluations_are_warned_of(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", root="elsewhere")]
    (runs[1] / "metrics.json").write_text(json.dumps({"recordings": 5, "checkpoint_sha256": "x"}))
    corpora, counts = differences(read_runs(runs))
    assert "different corpora" in corpora
    assert "elsewhere" in corpora
    assert counts == "the evaluations differ in recordings (a: 4, b: 5)"
    printed = compare(runs, tmp_path / "c.html")
    assert printed[0] == f"warning: {corpora}"
    assert "class='warning'" in (tmp_path / "c.html").read_text()


def test_embedded_corpora_differ_by_their_options(tmp_path: Path) -> None:
    records = []
    for name, seed in (("a", 0), ("b", 1)):
        run = make_run(tmp_path / name)
        (run / "config.yaml").write_text(f"data:\n  root: ''\n  embedded:\n    seed: {seed}\n    size: 64\n")
        records.append(read_run(run, name))
    assert records[0].corpus == "embedded: seed 0, size 64"
    assert len(differences(records)) == 1
    assert differences(records[:1]) == []


@pytest.mark.parametrize(
    ("content", "hole", "curve"),
    [
        ("step,loss\n1,2\n2,3", "the last line is torn", ([1], [2.0])),
        ("step,loss\n1,2\n2,nan\n3,inf\n4,1\n", "loss is not finite in 2 row(s), first at step 2", ([1, 4], [2, 1])),
        (
            "step,loss\n1,2\nx,3\n3,4,5\n4,word\n5,6\n",
            "3 damaged line(s) left out, the first is line 3",
            ([1, 5], [2, 6]),
        ),
        ("step,loss\n" + "9" * 400 + ",2\n1,1\n", "1 damaged line(s)", ([1], [1])),
        ("loss\n1\n", "does not begin with a column `step`", None),
        ("", "does not begin with a column `step`", None),
        ("step,loss\n", "", None),
    ],
)
def test_damaged_logs_are_read_as_far_as_they_go(
    tmp_path: Path, content: str, hole: str, curve: tuple[list[int], list[float]] | None
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    curves, holes = read_curves(path)
    assert [hole in text for text in holes] == ([True] if hole else [])
    assert curves == ({} if curve is None else {"loss": Curve(*curve)})


def test_binary_files_everywhere_are_holes_and_never_tracebacks(tmp_path: Path) -> None:
    broken = make_run(tmp_path / "broken")
    for name in ("config.yaml", "metrics.csv", "metrics.json", "git.txt", "samples/step_00000001.png"):
        (broken / name).write_bytes(b"\xff\xfe\x00\x81 {[:\n")
    (broken / "samples" / "step_00000002.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    printed = compare([make_run(tmp_path / "good"), broken], tmp_path / "c.html")
    assert len([line for line in printed if line.startswith("broken: ")]) == 6
    html = (tmp_path / "c.html").read_text()
    assert html.count("cannot be read") >= 4
    assert "broken: metrics.csv" in html


def test_missing_paths_end_in_one_line_and_empty_folders_are_reported(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no such run: .*none"):
        compare([tmp_path / "none"], tmp_path / "c.html")
    with pytest.raises(UserError, match=r"nothing to compare: .*empty holds no run"):
        compare([tmp_path / "empty"], tmp_path / "c.html")
    printed = compare([tmp_path / "empty", make_run(tmp_path / "a")], tmp_path / "c.html")
    assert printed[0].startswith(f"left out: {tmp_path / 'empty'} holds no run")


def test_a_folder_of_runs_stands_for_them_and_names_stay_apart(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "x" / "run"), make_run(tmp_path / "y" / "run")
    folders, empty = find_runs([tmp_path, one])
    assert (folders, empty) == ([one, two], [])
    assert [run.label for run in read_runs(folders)] == ["x/run", "y/run"]


def test_final_figures_show_intervals_and_reasons(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", csv="step\n")
    values = {
        "r": {"value": None, "low": None, "high": None, "n": 0, "reason": "too few"},
        "notes": ["x", "y"],
        "s": 1.0,
    }
    (run / "metrics.json").write_text(json.dumps(values))
    assert final_figures(read_run(run)) == {"r": "none (too few)", "r.n": "0", "notes": "x; y", "s": "1"}


def test_figures_are_written_for_every_curve_and_labelled_where_people_are_seen(tmp_path: Path) -> None:
    runs = read_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b")])
    names = [path.name for path in write_figures(runs, tmp_path / "figures")]
    assert names == ["val-fid.png", "train-g_loss.png", "samples.png"]
    for name in names:
        with Image.open(tmp_path / "figures" / name) as image:
            assert min(image.size) > 50
    assert read_label(tmp_path / "figures" / "samples.png")["AIGC"]["Label"] == "1"


def test_curves_keep_their_colour_whichever_runs_have_the_key() -> None:
    curve = Curve([1, 2, 3], [1.0, 2.0, 3.0])
    both = curve_figure("t", [Line("a", curve, 0), Line("b", curve, 1)]).axes[0].get_lines()
    alone = curve_figure("t", [Line("b", curve, 1)]).axes[0].get_lines()
    assert both[0].get_color() != both[1].get_color() == alone[0].get_color()
    assert alone[0].get_xydata().tolist() == [[1, 1], [2, 2], [3, 3]]
    assert svg(curve_figure("t", [Line("a", curve)])) == svg(curve_figure("t", [Line("a", curve)]))


def test_pictures_stand_side_by_side() -> None:
    red, blue = (np.full((20, 20, 3), level, np.uint8) for level in ((255, 0, 0), (0, 0, 255)))
    picture = picture_figure([("red", red), ("blue", blue)])
    columns = [np.flatnonzero((picture == level).all(axis=2).any(axis=0)) for level in ((255, 0, 0), (0, 0, 255))]
    assert columns[0].max() < columns[1].min()


def test_flatten_keeps_empty_sections_as_values() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}


def test_the_command_prints_what_it_wrote(tmp_path: Path) -> None:
    words = [
        "compare",
        str(make_run(tmp_path / "a")),
        "--out",
        str(tmp_path / "c.html"),
        "--figures",
        str(tmp_path / "f"),
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "c.html (1 runs)" in result.output
    assert (tmp_path / "f" / "val-fid.png").exists()
