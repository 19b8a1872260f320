"""What paper 3's tables hold, as data: rows, printed figures, claims, and the budgets to train them with."""

from common.table_rows import Budget, Claim, Metric, Row
from lipsync.evaluation import COPIED, DUB, MASKED, REAL

TABLE1, TABLE2, BEYOND = "Paper 3, table 1 (CLR)", "Paper 3, table 2", "Beyond the paper"

METRICS = (
    Metric("lse_d", "LSE-D", "lower", ("lse_d",)),
    Metric("lse_c", "LSE-C", "higher", ("lse_c",)),
    Metric("ssim", "SSIM", "higher", ("ssim",)),
    Metric("psnr", "PSNR", "higher", ("psnr",)),
    Metric("mouth_ssim", "mouth SSIM", "higher", ("mouth_ssim",)),
    Metric("mouth_psnr", "mouth PSNR", "higher", ("mouth_psnr",)),
    Metric("other_lse_d", "LSE-D with other speech", "lower", ("other_lse_d",)),
    Metric("other_lse_c", "LSE-C with other speech", "higher", ("other_lse_c",)),
)
PRINTED = ("lse_d", "lse_c", "ssim", "psnr")
FULL, WAV2LIP = "M-CSAWav2Lip", "Wav2Lip"


def _row(table: str, name: str, experiment: str, *printed: float, method: str = DUB) -> Row:
    return Row(table, name, experiment, dict(zip(PRINTED, printed, strict=False)), ("methods", method))


ROWS = (
    _row(TABLE1, "real video", "table2_full", 8.063, 6.510, 1.0, method=REAL),
    _row(TABLE1, "ATVGnet", "", 9.869, 4.931, 0.792, 30.454),
    _row(TABLE1, WAV2LIP, "table2_wav2lip", 9.505, 5.212, 0.835, 31.274),
    _row(TABLE1, "PC-AVS", "", 9.524, 5.016, 0.764, 30.090),
    _row(TABLE1, "AD-NeRF", "", 9.492, 5.003, 0.781, 30.264),
    _row(TABLE1, "Diff2Lip", "", 9.362, 5.164, 0.816, 30.392),
    _row(TABLE1, FULL, "table2_full", 8.318, 6.488, 0.890, 31.594),
    _row(TABLE2, WAV2LIP, "table2_wav2lip", 9.505, 5.212, 0.835, 31.274),
    _row(TABLE2, "MFCC-Wav2Lip", "table2_mfcc", 9.357, 5.291, 0.839, 31.498),
    _row(TABLE2, "M-Wav2Lip", "table2_m", 8.916, 5.549, 0.846, 32.901),
    _row(TABLE2, "CAT-Wav2Lip", "table2_cat", 8.748, 5.831, 0.862, 33.179),
    _row(TABLE2, "SAT-Wav2Lip", "table2_sat", 8.792, 5.749, 0.870, 33.032),
    _row(TABLE2, "CSA-Wav2Lip", "table2_csa", 8.634, 5.891, 0.887, 33.319),
    _row(TABLE2, FULL, "table2_full", 8.318, 6.488, 0.890, 33.594),
    _row(BEYOND, FULL, "table2_full"),
    _row(BEYOND, "without sync loss", "ablation_no_sync"),
    _row(BEYOND, "masked input", "table2_full", method=MASKED),
    _row(BEYOND, "copied reference", "table2_full", method=COPIED),
)
"""The paper's PSNR of its own model is 31.594 in table 1 and 33.594 in table 2, of the same training."""

_STEPS = (
    ("MFCC-Wav2Lip", WAV2LIP),
    ("M-Wav2Lip", "MFCC-Wav2Lip"),
    ("CAT-Wav2Lip", WAV2LIP),
    ("SAT-Wav2Lip", WAV2LIP),
    ("CSA-Wav2Lip", "CAT-Wav2Lip"),
    ("CSA-Wav2Lip", "SAT-Wav2Lip"),
    (FULL, "M-Wav2Lip"),
    (FULL, "CSA-Wav2Lip"),
)
"""Table 2 as the paper reads it: each addition helps."""

CLAIMS = (
    *(Claim(TABLE1, metric, FULL, WAV2LIP) for metric in PRINTED),
    *(Claim(TABLE2, metric, better, worse) for better, worse in _STEPS for metric in PRINTED),
    *(
        Claim(BEYOND, metric, FULL, worse)
        for worse in ("masked input", "copied reference", "without sync loss")
        for metric in ("lse_d", "lse_c", "mouth_ssim")
    ),
)

_KEPT = ("feature.", "expert.feature", "generator.attention", "generator.residual")
_ONE_JUDGE = ("expert.feature=mel+mfcc",)
"""One expert teaches all rows, whatever their generator hears: it is trained once, and no row has a better teacher."""

_SHORT = (
    "trainer.steps=400", "trainer.val_every=50", "trainer.save_every=100", "data.batch_size=4", "weights.adversarial=0",
)  # fmt: skip
"""The quickstart's networks, corpus and expert; many small steps, and no discriminator, which so few could not teach:
two runs at a time, a thread each, do eight in 40 minutes."""

BUDGETS = {
    budget.name: budget
    for budget in (
        Budget(
            "tiny",
            printed=False,
            jobs=2,
            recipe="quickstart",
            kept=_KEPT,
            words=(*_SHORT, *_ONE_JUDGE),
            by_experiment={"ablation_no_sync": ("weights.sync=0",)},
        ),
        Budget("full", printed=True, words=_ONE_JUDGE),
    )
}
