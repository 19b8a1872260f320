"""What the papers' tables hold, as data: rows, printed figures, claims, and the budgets to train them with."""

from common.table_rows import Budget, Claim, Metric, Row

TABLE2, TABLE3, PAPER1 = "Paper 2, table 2", "Paper 2, table 3", "Paper 1"

METRICS = (
    Metric("fid", "FID", "lower", ("quality", "fid[")),
    Metric("kid", "KID", "lower", ("quality", "kid[")),
    Metric("path_length", "path length", "lower", ("path_length", "ppl_wend[")),
    Metric("r@1", "R@1, %", "higher", ("identity", "retrieval", "r@1"), percent=True),
    Metric("cosine", "cosine", "higher", ("identity", "similarity", "cosine")),
    Metric("gap", "cosine - ih_sim", "higher", ("identity", "similarity", "gap")),
    Metric("matching", "matching, %", "higher", ("identity", "matching", "accuracy"), percent=True),
)

ROWS = (
    Row(TABLE2, "DCGAN", "table2_dcgan", {"fid": 179.5, "path_length": 343}),
    Row(TABLE2, "StyleGAN", "table2_stylegan", {"fid": 68.2, "path_length": 207}),
    Row(TABLE2, "StyleGAN2", "table2_stylegan2", {"fid": 28.9, "path_length": 131}),
    Row(TABLE3, "BaseModel-NoSE", "table3_no_se", {"fid": 34, "path_length": 154}),
    Row(TABLE3, "BaseModel-ReLU", "table3_relu", {"fid": 42, "path_length": 178}),
    Row(TABLE3, "BaseModel", "table2_stylegan2", {"fid": 28.9, "path_length": 131}),
    Row(PAPER1, "full model", "paper1_ema_adain", {"fid": 30.32, "r@1": 0.0401, "cosine": 0.656}),
    Row(PAPER1, "no EMA attention", "paper1_no_ema"),
    Row(PAPER1, "no self-attention", "paper1_no_self_attention"),
    Row(PAPER1, "concatenation for AdaIN", "paper1_concat"),
    Row(PAPER1, "one stage for three", "paper1_one_stage"),
)

CLAIMS = (
    Claim(TABLE2, "fid", "StyleGAN2", "StyleGAN"),
    Claim(TABLE2, "fid", "StyleGAN", "DCGAN"),
    Claim(TABLE2, "path_length", "StyleGAN2", "StyleGAN"),
    Claim(TABLE2, "path_length", "StyleGAN", "DCGAN"),
    *(
        Claim(TABLE3, metric, "BaseModel", worse)
        for metric in ("fid", "path_length")
        for worse in ("BaseModel-NoSE", "BaseModel-ReLU")
    ),
    *(
        Claim(PAPER1, metric, "full model", row.name)
        for metric in ("fid", "r@1", "cosine")
        for row in ROWS
        if row.table == PAPER1 and row.name != "full model"
    ),
)


def _narrow(*extra: str) -> tuple[str, ...]:
    sections = {
        "generator": ("channel_base=1024", "channel_max=64"),
        "discriminator": ("channel_base=512", "channel_max=48"),
    }
    return *(f"{section}.kwargs.{width}" for section, widths in sections.items() for width in widths), *extra


_SHORT = (
    "weights.adversarial=0.25", "weights.identity=0.5", "weights.r1=3", "optim.g_lr=1e-2", "optim.d_lr=2e-3",
    "optim.betas=[0.5,0.99]",
)  # fmt: skip
"""For networks with equalised layers and R1; DCGAN has neither and keeps its own game and rate."""

# The quickstart's recipe with half of its steps and less wide: two runs at a time, a thread each, do ten in 40 minutes.
TINY = Budget(
    "tiny",
    printed=False,
    jobs=2,
    words=(
        "trainer.steps=2200", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=32-true",
        "trainer.log_every=50", "trainer.val_every=550", "trainer.save_every=550", "trainer.keep_every=0",
        "data.embedded.voices=16", "data.embedded.faces=24", "data.embedded.max_yaw=12",
        "data.image_size=32", "data.crop_seconds=[1.5,2.5]", "data.batch_size=8", "data.workers=1", "data.cache=true",
        "encoder.face_width=16", "encoder.steps=300", "encoder.batch_size=32", "encoder.cycle=300", "encoder.lr=0.05",
        "weights.match=4", "weights.pixel=50", "weights.path_length=0", "optim.latent_noise=0.02", "optim.ema_kimg=1",
    ),
    by={
        "encoder.name": {"resnet18": ("encoder.kwargs.width=16",)},
        "generator.name": {
            "dcgan": _narrow(),
            "stylegan": _narrow("generator.kwargs.mapping_layers=4", *_SHORT),
            "stylegan2": _narrow("generator.kwargs.mapping_layers=4", *_SHORT),
            "progressive": _narrow(
                "generator.kwargs.mapping_layers=4", "generator.kwargs.stages=[8,16,32]",
                "discriminator.kwargs.stages=[8,16,32]", *_SHORT,
            ),
        },
    },
    by_experiment={
        "paper1_ema_adain": ("generator.kwargs.attention=[16]",),
        "paper1_no_ema": ("generator.kwargs.attention=[16]",),
        "paper1_concat": ("generator.kwargs.attention=[16]",),
        "paper1_one_stage": (
            "generator.kwargs.attention=[16]", "generator.kwargs.stages=[32]", "discriminator.kwargs.stages=[32]",
        ),
    },
)  # fmt: skip
BUDGETS = {budget.name: budget for budget in (TINY, Budget("full", printed=True))}
