"""What an evaluation leaves in a folder, and what it says on the terminal."""

from pathlib import Path
from typing import Any

from common.config import config_hash
from common.files import sha256, write_json
from common.provenance import Provenance, write_png
from voice2face.config import Config
from voice2face.data import open_corpus
from voice2face.evaluation import evaluate
from voice2face.infer import VoiceToFace
from voice2face.sheet import PORTRAITS, face_rows, sample_sheet

METRICS, SHEET = "metrics.json", "sheet.png"


def write_report(checkpoint: Path, cfg: Config, folder: Path, device: str) -> dict[str, Any]:
    """Evaluate a checkpoint under `cfg` into `metrics.json`, `sheet.png` and `portraits.png` of `folder`.

    Returns the metrics. Raises UserError as `evaluate` does.
    """
    result = evaluate(VoiceToFace.load(checkpoint, device), open_corpus(cfg.data), cfg)
    for name, picture in ((SHEET, sample_sheet(result)), (PORTRAITS, face_rows(result))):
        write_png(folder / name, picture, label(cfg, checkpoint))
    metrics = result.metrics | stamp(cfg, checkpoint)
    write_json(folder / METRICS, metrics)
    return metrics


def stamp(cfg: Config, checkpoint: Path) -> dict[str, str]:
    """What tells one evaluation from another."""
    return {"checkpoint_sha256": sha256(checkpoint), "config": config_hash(cfg)}


def label(cfg: Config, checkpoint: Path) -> Provenance:
    """The label of what this checkpoint draws."""
    return Provenance.create(cfg.provenance, config_hash=config_hash(cfg), checkpoint_sha256=sha256(checkpoint))


def summary(metrics: dict[str, Any]) -> str:
    """The figures that people look for first, one a line, and the warnings."""
    quality, lines = metrics["quality"], []
    for name in ("identity", "second_identity"):
        if name in metrics:
            lines += _identity_lines(metrics[name], metrics["recordings"])
    extractor, interval = quality["extractor"], quality.get("fid_interval", {})
    bounds = f" [{interval['low']:.4g}, {interval['high']:.4g}]" if interval.get("low") is not None else ""
    counts = f"N {quality['n_fake']} against {quality['n_real']}"
    value = quality[f"fid[{extractor}]"]
    lines.append(f"FID {'none' if value is None else format(value, '.4g')}{bounds} ({extractor}, {counts})")
    return "\n".join(lines + [f"warning: {text}" for text in metrics["warnings"]])


def _identity_lines(part: dict[str, Any], recordings: int) -> list[str]:
    similar, matching = part["similarity"], part["matching"]
    lines = []
    for found in (part["retrieval"], *part["galleries"]):
        galleries = "gallery" if found["galleries"] == 1 else f"{found['galleries']} galleries"
        lines.append(
            f"R@1 {_interval(found['r@1'])}, chance {found['r@1']['chance']:.3f} "
            f"({recordings} recordings, {galleries} of {found['gallery_size']}, {found['embedder']})"
        )
    lines.append(f"cosine {_interval(similar['cosine'])}, to others {_interval(similar['ih_sim'])}")
    within = f", within {matching['group']} {_interval(matching['same_group'])}" if "same_group" in matching else ""
    lines.append(f"matching {_interval(matching['accuracy'])}{within}, chance 0.5")
    return lines


def _interval(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return f"none ({figure.get('reason', 'not measured')})"
    bounds = f" [{figure['low']:.3f}, {figure['high']:.3f}]" if figure["low"] is not None else ""
    return f"{figure['value']:.3f}{bounds}"
