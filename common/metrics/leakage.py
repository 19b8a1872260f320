"""A network that a model was trained against may not judge it."""

from collections.abc import Collection

from common.errors import UserError


def refuse_leakage(judge: str, trained_with: Collection[str], *, allow: bool = False) -> str:
    """Check that the embedder or extractor `judge` is none of the networks in the training loss.

    A loss that pulls portraits towards a network's features raises every figure of that network, whether or not the
    portraits resemble anybody (SF2F's perceptual loss and its retrieval use the same FaceNet). Names count up to `:`
    and case, so that `dlib` and `dlib:150px` are the same network.

    Returns the sentence that a report must carry: empty for a held-out judge, a warning for one that was allowed.

    Raises:
        UserError: the judge was trained with and `allow` is not set.
    """
    used = {name.partition(":")[0].casefold() for name in trained_with}
    if judge.partition(":")[0].casefold() not in used:
        return ""
    if not allow:
        raise UserError(
            f"{judge} is part of the training loss ({', '.join(sorted(trained_with))}), so its figures flatter this "
            "model; judge with another network, or set evaluation.allow_leakage=true and read them as a training loss"
        )
    return f"{judge} was part of the training loss: its figures flatter this model"
