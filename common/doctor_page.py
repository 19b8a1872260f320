"""The doctor's findings as one HTML page that needs no network."""

import base64
import hashlib
import io
from collections.abc import Callable
from html import escape

import numpy as np
from PIL import Image

from common.data.talking_filter import describe_filter
from common.doctor_findings import Examination, Finding

MOST_ROWS = 500
"""Clips on the page, those with problems first; all are in the table beside it."""
_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "sync_offset": ("AV offset, frames", "{:+.0f}".format),
    "sync_confidence": ("confidence", "{:.1f}".format),
    "seconds": ("seconds", "{:.2f}".format),
    "fps": ("fps", "{:.4g}".format),
    "av_difference": ("sound minus pictures, s", "{:+.2f}".format),
    "silence": ("silence", "{:.0%}".format),
    "loudness": ("LUFS", "{:.1f}".format),
    "clipped": ("clipped", "{:.2%}".format),
    "faces": ("faces", "{:.0f}".format),
    "face_pixels": ("face, px", "{:.0f}".format),
    "centre_offset": ("off centre", "{:.2f}".format),
    "missing": ("face missing", "{:.0%}".format),
    "sharpness": ("sharpness", "{:.2f}".format),
    "lips": ("lip movement", "{:.3f}".format),
    "n_chars": ("characters", "{:.0f}".format),
}
"""Measure -> its heading and how it is written."""
_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1500px; padding: 0 1em; color: #1b1b1b }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { border: 1px solid #d5d5d5; padding: .25em .5em; text-align: right; vertical-align: top }
th { background: #f4f4f4; cursor: pointer } td.words { text-align: left; max-width: 26em; overflow-wrap: anywhere }
td.problem { color: #8a1f00 } .note { background: #fff3cd; border: 1px solid #e0b400; padding: .6em 1em }
img { display: block }
"""
_SCRIPT = """
document.querySelectorAll("#clips th").forEach(function (head, place) {
  head.addEventListener("click", function () {
    var body = head.closest("table").tBodies[0], rows = Array.from(body.rows), down = head.dataset.down !== "1";
    head.dataset.down = down ? "1" : "";
    rows.sort(function (a, b) {
      var x = a.cells[place].dataset.value, y = b.cells[place].dataset.value;
      if (x === "" || y === "") { return (x === "") - (y === ""); }
      var order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? order : -order;
    });
    rows.forEach(function (row) { body.appendChild(row); });
  });
});
"""


def page(examination: Examination) -> str:
    """The page as HTML: one script of its own that sorts the table, nothing from elsewhere, every word escaped."""
    allowed = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    findings = sorted(examination.findings, key=lambda finding: not finding.problems)
    sick = sum(bool(finding.problems) for finding in findings)
    title = f"{len(findings)} clips, {sick} with problems"
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1><p>{escape(str(examination.target))}</p>",
        f"<p>A problem is what breaks: {escape(describe_filter(examination.bounds))}. Sync measured by: "
        f"{escape(examination.extractor or 'nothing')}; positive offsets ask for later sound.</p>",
        *(f"<p class='note'>{escape(note)}</p>" for note in [*examination.notes, *_synthetic_note(findings)]),
        "<h2>Overview</h2>",
        _overview(findings),
        "<h2>Clips</h2>",
        _more(findings),
        _clips(findings[:MOST_ROWS]),
        f"<script>{_SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _synthetic_note(findings: list[Finding]) -> list[str]:
    count = sum(finding.synthetic for finding in findings)
    return [f"{count} clips are labelled as generated; their pictures here show nobody real"] if count else []


def _more(findings: list[Finding]) -> str:
    left = len(findings) - MOST_ROWS
    return f"<p>{left} more clips stand in the table beside this page only.</p>" if left > 0 else ""


def _overview(findings: list[Finding]) -> str:
    """Least, median and most of each measure."""
    rows = []
    for name, (heading, written) in _COLUMNS.items():
        measured = (getattr(finding.measures, name) for finding in findings)
        values = np.array([value for value in measured if value is not None], dtype=np.float64)
        cells = [written(value) for value in np.quantile(values, [0, 0.5, 1])] if len(values) else ["", "", ""]
        rows.append(f"<tr><th>{escape(heading)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}"
                    f"<td>{len(values)}</td></tr>")  # fmt: skip
    head = "<tr><th>measure</th><th>least</th><th>median</th><th>most</th><th>clips</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _clips(findings: list[Finding]) -> str:
    headings = ["picture", "clip", "problems", *(heading for heading, _ in _COLUMNS.values())]
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    return f"<table id='clips'><thead><tr>{head}</tr></thead><tbody>{''.join(map(_row, findings))}</tbody></table>"


def _row(finding: Finding) -> str:
    label = " (generated)" if finding.synthetic else ""
    who = f"{finding.name}{label}\n{finding.identity} {finding.split}".strip()
    problems = "; ".join(finding.problems)
    cells = [
        f"<td data-value=''>{_picture(finding)}</td>",
        f"<td class='words' data-value='{escape(finding.name)}'>{escape(who)}</td>",
        f"<td class='words problem' data-value='{escape(problems)}'>{escape(problems)}</td>",
    ]
    for name, (_, written) in _COLUMNS.items():
        value = getattr(finding.measures, name)
        shown, key = ("", "") if value is None else (written(value), f"{value:.6g}")
        cells.append(f"<td data-value='{key}'>{escape(shown)}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _picture(finding: Finding) -> str:
    if finding.thumbnail is None:
        return ""
    buffer = io.BytesIO()
    with Image.open(finding.thumbnail) as image:
        image.convert("RGB").save(buffer, format="JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(finding.name)}" src="data:image/jpeg;base64,{data}">'
