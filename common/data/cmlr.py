"""Source "cmlr": Chinese Mandarin Lip Reading (Zhao, Xu and Song 2019), 102,072 sentences of 11 news speakers.

    video/s9/20120904/<name>.mp4    audio/s9/20120904/<name>.wav    text/s9/20120904/<name>.txt
    train.csv val.csv test.csv      a sentence a line, s9/20120904/<name>; optional

Pictures and sound are separate files, paired by their path. Without the lists each speaker's last dates are held out,
so that no broadcast stands in two splits; with or without them all speakers stand in all splits.

Research only, for universities and research institutes: see vipazoo.cn/CMLR.html.
"""

from pathlib import Path, PurePath

from common.data.engine import Drop
from common.data.folder import SUFFIXES, Plan, list_media, printable, safe_name
from common.data.talking_plan import read_lists, take_texts, text_of, unit_of
from common.errors import UserError

_LISTS = {"train.csv": "train", "val.csv": "val", "test.csv": "test"}


def plan_cmlr(root: Path, *, limit: int | None = None) -> Plan:
    """List the sentences below `root`.

    Args:
        root: the folder that holds `video` and `audio`.
        limit: at most so many speakers.

    Raises:
        UserError: one of the trees is missing or empty, or a malformed list.
    """
    plan = Plan()
    trees: dict[str, dict[PurePath, PurePath]] = {"video": {}, "voice": {}}
    for path in list_media(root, plan):
        kind = SUFFIXES[path.suffix.lower()]
        if kind in trees:
            trees[kind][_sentence(path)] = path
    videos, sounds = trees["video"], trees["voice"]
    if not videos or not sounds:
        lacking = "videos (video/s1/DATE/*.mp4)" if not videos else "sound (audio/s1/DATE/*.wav)"
        raise UserError(f"{root} holds no {lacking}; CMLR comes as two trees, video and audio: unpack both there")
    texts = {_sentence(PurePath(stem)): text for stem, text in take_texts(plan).items()}
    splits = {_sentence(PurePath(entry)): split for entry, split in read_lists(root, _LISTS).items()}
    speakers = sorted({sentence.parts[0] for sentence in [*videos, *sounds]})[:limit]
    for sentence in sorted(videos):
        speaker = sentence.parts[0]
        if speaker not in speakers:
            continue
        if sentence not in sounds:
            plan.drops.append(Drop(printable(videos[sentence]), "there is no sound file of its path in the other tree"))
            continue
        if splits and sentence not in splits:
            plan.drops.append(Drop(printable(videos[sentence]), "no official list names it"))
            continue
        text = texts.get(sentence)
        plan.units.append(
            unit_of(
                root,
                videos[sentence],
                safe_name(speaker),
                audio=sounds[sentence],
                text=text_of(root / text) if text is not None else "",
                language="zh",
                whole=True,
                group=printable(sentence.parent),
                split=splits.get(sentence, ""),
            )
        )
    lone = [sounds[sentence] for sentence in sorted(sounds) if sentence not in videos and sentence.parts[0] in speakers]
    plan.drops += [Drop(printable(path), "there is no video of its path in the other tree") for path in lone]
    known = {*texts.values(), *_LISTS}
    plan.ignored = [name for name in plan.ignored if name not in known and PurePath(name).name not in known]
    return plan


def _sentence(path: PurePath) -> PurePath:
    """s9/20120904/name of a file in either tree, or of a list's entry. Names hold dots, which are no suffixes."""
    bare = path.with_suffix("") if path.suffix.lower() in SUFFIXES else path
    return PurePath(*bare.parts[-3:])
