"""What the tables of voice2face say of their own figures."""

from common.table_text import Outcome, Words
from voice2face.config import Config


def measured(outcome: Outcome) -> str:
    """Split, N, extractor, embedder and distance."""
    m, settings = outcome.metrics, outcome.cfg.evaluation
    quality, retrieval = m.get("quality", {}), m.get("identity", {}).get("retrieval", {})
    chance = retrieval.get("r@1", {}).get("chance")
    return (
        f"{m.get('split')} split, {m.get('identities')} identities, {m.get('recordings')} recordings, "
        f"{m.get('image_size')} px; FID and KID of N = {quality.get('n_fake')} portraits against "
        f"{quality.get('n_real')} faces by {quality.get('extractor')}; identity by {settings.embedder}, gallery of "
        f"{retrieval.get('gallery_size')} (chance {chance if chance is None else format(chance, '.4g')}); path length "
        f"by {settings.distance}"
    )


def trained(cfg: Config) -> str:
    """Steps and batches of both stages."""
    steps, batch = cfg.trainer.steps, cfg.data.batch_size
    return (
        f"{steps} steps of {batch} images ({steps * batch} images seen), "
        f"after {cfg.encoder.steps} encoder steps of {cfg.encoder.batch_size}, at {cfg.data.image_size} px"
    )


WORDS = Words(
    title="voice2face: the papers' tables",
    papers="the papers",
    unstated="the papers state neither extractor nor N",
    interval="over identities (path length: over pairs; KID: over images)",
    measured=measured,
    budget=trained,
)
