"""What paper 4's tables hold, as data: rows, printed figures, claims, and the budgets to train them with."""

from common.table_rows import Budget, Claim, Metric, Row
from dubbing3d.complexity import EXPRESSION, WHOLE
from dubbing3d.evaluation import COPY, RENDERED, WARP
from dubbing3d.expression_evaluation import MEAN, PREDICTED, TRUE

TABLE1, TABLE3, TABLE4, TABLE5, TABLE6, TABLE7 = (
    "Paper 4, table 1 (VoxCeleb1)",
    "Paper 4, table 3 (LRW): expressions",
    "Paper 4, table 4 (VoxCeleb1): renderer",
    "Paper 4, table 5 (VoxCeleb1): factor of the fused texture",
    "Paper 4, table 6 (VoxCeleb1): scales of the fused texture",
    "Paper 4, table 7: complexity",
)
METRICS = (
    Metric("aed", "AED", "lower", ("aed",)),
    Metric("aed_share", "AED by the mean expression's", "lower", ("aed_share",)),
    Metric("aed_mouth", "mouth AED", "lower", ("aed_mouth",)),
    Metric("psnr", "PSNR", "higher", ("psnr",)),
    Metric("lpips", "LPIPS", "lower", ("lpips",)),
    Metric("ssim", "SSIM", "higher", ("ssim",)),
    Metric("lmd", "LMD", "lower", ("lmd",)),
    Metric("mouth_lmd", "mouth LMD", "lower", ("mouth_lmd",)),
    Metric("csim", "CSIM", "higher", ("csim",)),
    Metric("sync", "Sync (LSE-C)", "higher", ("lse_c",)),
    Metric("mouth_psnr", "mouth PSNR", "higher", ("mouth_psnr",)),
    Metric("mouth_ssim", "mouth SSIM", "higher", ("mouth_ssim",)),
    Metric("hidden_psnr", "PSNR in the mask", "higher", ("hidden_psnr",)),
    Metric("hidden_ssim", "SSIM in the mask", "higher", ("hidden_ssim",)),
    Metric("flicker_ratio", "flicker by the real", "lower", ("flicker_ratio",)),
    Metric("params", "parameters, M", "lower", ("params",)),
    Metric("gmacs", "GMAC", "lower", ("gmacs",)),
)
FULL, BASE, AUDIO = "full model", "base", "without semantic images"
COPIED, WARPED, UNMOVED, CEILING = "copy the reference", "warp, no training", "mean expression", "true expression"


def _expression(name: str, experiment: str, *printed: float, method: str = PREDICTED) -> Row:
    figures = dict(zip(("aed", "lmd", "sync"), printed, strict=False))
    return Row(TABLE3, name, experiment, figures, ("methods", method))


def _renderer(table: str, name: str, experiment: str, *printed: float, method: str = RENDERED) -> Row:
    figures = dict(zip(("psnr", "lpips", "ssim", "lmd", "csim"), printed, strict=False))
    return Row(table, name, experiment, figures, ("methods", method))


def _other(name: str, *printed: float) -> Row:
    figures = dict(zip(("psnr", "lpips", "ssim", "lmd", "csim", "sync"), printed, strict=True))
    return Row(TABLE1, name, "", figures, ("methods", "dub"))


def _network(name: str, *printed: float) -> Row:
    return Row(TABLE7, name, "", dict(zip(("params", "gmacs"), printed, strict=True)))


ROWS = (
    _other("MakeItTalk", 28.84, 0.28, 0.64, 3.21, 0.97, 4.81),
    _other("Wav2Lip", 33.64, 0.12, 0.86, 2.41, 0.98, 5.28),
    _other("SadTalker", 30.75, 0.21, 0.80, 3.54, 0.98, 5.14),
    _other("IP_LAP", 34.42, 0.11, 0.91, 2.54, 0.99, 5.26),
    _other("Diff2Lip", 33.24, 0.16, 0.90, 2.43, 0.99, 5.16),
    _other("ours, dubbed", 38.31, 0.04, 0.95, 1.62, 0.99, 5.42),
    _expression(BASE, "table3_base", 0.096, 2.71, 4.55),
    _expression(AUDIO, "table3_no_semantic", 0.094, 2.64, 5.44),
    _expression("without cross-modal attention", "table3_no_attention", 0.082, 2.12, 5.81),
    _expression("without shape loss", "table3_no_shape", 0.089, 2.34, 5.66),
    _expression(FULL, "table3_full", 0.081, 2.09, 5.83),
    _expression(UNMOVED, "table3_base", method=MEAN),
    _expression(CEILING, "table3_base", method=TRUE),
    _renderer(TABLE4, BASE, "table4_base", 37.33, 0.054, 0.939, 1.91, 0.99),
    _renderer(TABLE4, "without enhancement", "table4_no_enhancement", 37.85, 0.049, 0.944, 1.74, 0.99),
    _renderer(TABLE4, "without correspondence loss", "table4_no_cwl", 38.11, 0.044, 0.949, 1.68, 0.99),
    _renderer(TABLE4, "without MSAF", "table4_no_msaf", 38.21, 0.041, 0.951, 1.66, 0.99),
    _renderer(TABLE4, "in one stage", "table4_one_stage", 37.94, 0.044, 0.942, 1.76, 0.99),
    _renderer(TABLE4, FULL, "table4_full", 38.31, 0.040, 0.954, 1.62, 0.99),
    _renderer(TABLE4, WARPED, "table4_full", method=WARP),
    _renderer(TABLE4, COPIED, "table4_full", method=COPY),
    _renderer(TABLE5, "0", "table5_zero", 37.33, 0.054, 0.939, 1.91, 0.99),
    _renderer(TABLE5, "1", "table5_one", 37.94, 0.044, 0.942, 1.76, 0.99),
    _renderer(TABLE5, "learnable", "table4_full", 38.31, 0.040, 0.954, 1.62, 0.99),
    _renderer(TABLE5, WARPED, "table4_full", method=WARP),
    _renderer(TABLE5, COPIED, "table4_full", method=COPY),
    _renderer(TABLE6, "high only", "table6_high", 38.20, 0.044, 0.951, 1.65, 0.99),
    _renderer(TABLE6, "low only", "table6_low", 38.17, 0.043, 0.950, 1.66, 0.99),
    _renderer(TABLE6, "all scales", "table4_full", 38.31, 0.040, 0.954, 1.62, 0.99),
    _renderer(TABLE6, WARPED, "table4_full", method=WARP),
    _renderer(TABLE6, COPIED, "table4_full", method=COPY),
    _network(EXPRESSION, 12.50, 14.30),
    _network("SFM", 38.68, 2.27),
    _network("TMN", 12.53, 39.23),
    _network("RBFIN", 37.68, 31.08),
    _network(WHOLE, 101.17, 86.88),
)
"""The full model of table 4 stands in tables 5 and 6 as well, where it is configured alike: one run for three."""

_EXPRESSION_CLAIMS = (
    *((metric, FULL, worse) for worse in (BASE, AUDIO, "without cross-modal attention", "without shape loss")
      for metric in ("aed", "lmd", "sync")),
    *((metric, better, UNMOVED) for better in (FULL, AUDIO) for metric in ("aed", "lmd", "sync")),
)  # fmt: skip
_RENDERER_CLAIMS = (
    *((TABLE4, FULL, row.name) for row in ROWS if row.table == TABLE4 and row.experiment != "table4_full"),
    *((TABLE4, FULL, worse) for worse in (WARPED, COPIED)),
    *((TABLE5, "learnable", worse) for worse in ("0", "1")),
    *((TABLE6, "all scales", worse) for worse in ("high only", "low only")),
)
CLAIMS = (
    *(Claim(TABLE3, *claim) for claim in _EXPRESSION_CLAIMS),
    *(
        Claim(table, metric, better, worse)
        for table, better, worse in _RENDERER_CLAIMS
        for metric in ("psnr", "ssim", "lmd", "mouth_psnr", "mouth_ssim")
    ),
)

_KEPT = (
    *("expression.train", "expression.semantic", "expression.attention", "expression.shape"),
    *(
        "renderer.train",
        "renderer.warp",
        "renderer.enhance",
        "renderer.msaf",
        "renderer.scale",
        "weights.correspondence",
    ),
)
_SHORT = (
    *("expression.steps=250", "trainer.steps=240", "renderer.align_steps=20", "renderer.early_steps=10"),
    *("trainer.val_every=80", "trainer.save_every=80", "trainer.progress=false", "evaluation.frames=24"),
    "optim.g_lr=3.0e-3",
)
"""The quickstart's networks and corpus, a part of its steps, larger ones, and a second of each held-out clip."""
_WHOLE_CLIPS = {"False": ("evaluation.frames=0",)}
"""Stage 1 is measured on all frames: its figures cost little, and sync of a second says nothing."""
_AT_ONCE = "renderer.align_steps=0"
"""Rows that have nothing to align, or that leave the phases out, whatever a recipe's lengths."""

BUDGETS = {
    budget.name: budget
    for budget in (
        Budget(
            "tiny",
            printed=False,
            jobs=2,
            recipe="quickstart",
            kept=_KEPT,
            words=_SHORT,
            by={"renderer.train": _WHOLE_CLIPS},
            by_experiment={
                "table4_base": (_AT_ONCE,),
                "table4_one_stage": (_AT_ONCE, "renderer.early_steps=0"),
            },
        ),
        Budget("full", printed=True),
    )
}
