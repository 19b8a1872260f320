"""Short sentences for the embedded corpora, written for them: every initial, final and tone; every English phone.

`sample_sentence` puts further ones together from parts, some ten thousand a language, so that a corpus of many hours
does not repeat itself.
"""

import numpy as np

MANDARIN: tuple[str, ...] = (
    "今天的天气非常好。",
    "我喜欢在早上喝一杯热茶。",
    "请把窗户打开一点。",
    "他们昨天去了北京。",
    "这本书放在桌子上。",
    "小猫在沙发下面睡觉。",
    "妈妈正在厨房做饭。",
    "春天来了，花都开了。",
    "你能不能再说一遍？",
    "火车九点半从车站出发。",
    "老师让我们认真听讲。",
    "爷爷每天傍晚出去散步。",
    "这条鱼又新鲜又便宜。",
    "我的手机忘在办公室了。",
    "红色的苹果比绿色的甜。",
    "孩子们在公园里放风筝。",
    "图书馆里非常安静。",
    "晚饭以后我们一起下棋。",
    "他的声音听起来很温和。",
    "山上的雪还没有融化。",
    "请问去医院怎么走？",
    "两只黑鸟飞过了湖面。",
    "明年夏天我想去海边。",
    "音乐会八点钟准时开始。",
    "那座桥有一百多年了。",
    "姐姐给我买了一双鞋。",
    "下雨的时候路面很滑。",
    "他用左手写字，右手画画。",
    "冰箱里还有三个鸡蛋。",
    "月亮从云层后面露出来。",
    "工人们正在修理屋顶。",
    "别忘了给花园里的树浇水。",
    "我们坐地铁去看足球比赛。",
    "这个问题其实很容易回答。",
    "风吹得门窗嗡嗡作响。",
    "服务员端来一碗牛肉面。",
    "祝你生日快乐，身体健康。",
    "远处传来了一阵笑声。",
    "我把钥匙交给了邻居。",
    "飞机穿过云层，慢慢降落。",
    "弟弟学会了骑自行车。",
    "秋天的树叶又黄又红。",
    "他耐心地解释了全部规则。",
    "熊猫最爱吃新鲜的竹子。",
)

ENGLISH: tuple[str, ...] = (
    "The weather is lovely this morning.",
    "Please open the window a little.",
    "She put the red book on the table.",
    "We took the early train to the coast.",
    "A small cat sleeps under the chair.",
    "Could you say that once more?",
    "My brother plays the piano very well.",
    "The children are flying kites in the park.",
    "He drinks a cup of tea before work.",
    "Fresh bread smells better than anything.",
    "The bridge was built a hundred years ago.",
    "I left my phone at the office again.",
    "They walked along the river until dusk.",
    "Snow still covers the top of the mountain.",
    "Which road leads to the hospital?",
    "Two black birds flew over the lake.",
    "The concert begins at eight o'clock.",
    "Her voice sounded calm and clear.",
    "The farmer fixed the fence with old wire.",
    "There are three eggs left in the fridge.",
    "Thank you for watering the flowers.",
    "The moon came out behind the clouds.",
    "You should wear a warm jacket today.",
    "Our neighbour grows tomatoes and beans.",
    "The question is easier than it looks.",
    "A strong wind shook the doors all night.",
    "He bought a pair of brown leather shoes.",
    "The judge asked for a short pause.",
    "Fish and chips are cheap at the harbour.",
    "Bring both keys when you leave the house.",
    "The young nurse measured my pulse.",
    "Nothing moved in the quiet garden.",
    "We usually cook rice with vegetables.",
    "The boy threw a stone into the pool.",
    "An orange light flashed above the gate.",
    "Please send the letter by Thursday.",
    "The museum shows paintings from Spain.",
    "I enjoy long walks in the autumn.",
    "The engine made a strange noise.",
    "Everyone laughed at the clever joke.",
    "The doctor will see you in an hour.",
    "Good cheese needs time and patience.",
)

_SLOTS: dict[str, tuple[str, ...]] = {
    "zh": (
        "今天 明天早上 昨天 上个月 春节前 每到周末 下午三点 刚才 十年前 夜里",
        "妈妈 我和朋友 那位老师 一群游客 他哥哥 小学生们 邻居 导游 两个女孩 出租车司机 我们班 你爸爸",
        "在桂林 在火车上 到象鼻山 去漓江边 在博物馆 在古镇里 坐飞机 到超市 在湖边 去学校 从南方 在这儿",
        "拍了照片 买菜 喝咖啡 唱山歌 看日出 吃米粉 跑步 等朋友 学做豆腐 比赛游泳 画风景 骑马 说普通话 放鞭炮",
    ),
    "en": (
        "today, last week, every morning, after lunch, on Monday, before noon, once again, in July",
        "my mother, the pilot, a few boys, five farmers, our teacher, the old judge, his boss, two vets",
        "bought, lost, found, fixed, moved, wrapped, gave away, photographed, showed us, forgot",
        "the blue vase, a cheap pair of boots, some fresh fish, four heavy boxes, the purple umbrella, a big map, "
        "both phones, the whole pie, your jacket, this yellow bus, the violin",
    ),
}
"""The parts of a sentence in their order: when, who, where or did, what."""
_BETWEEN = {"zh": "", "en": " "}
_END = {"zh": "。", "en": "."}
_DROPPED = {"zh": (0.5, 0.0, 0.35, 0.0), "en": (0.6, 0.0, 0.0, 0.0)}
"""How often a part is left out, since people say short things too."""
_WRITTEN = {"zh": MANDARIN, "en": ENGLISH}


def sample_sentence(language: str, rng: np.random.Generator) -> str:
    """A sentence in "zh" or "en": one of those above, or (more often) one of parts; at most 20 Chinese characters."""
    if rng.random() < 0.3:
        return str(rng.choice(_WRITTEN[language]))
    kept = [slot for slot, share in zip(_slots(language), _DROPPED[language], strict=True) if rng.random() >= share]
    return _BETWEEN[language].join(str(rng.choice(slot)) for slot in kept) + _END[language]


def _slots(language: str) -> list[list[str]]:
    return [slot.split(", " if language == "en" else " ") for slot in _SLOTS[language]]


def all_parts(language: str) -> list[str]:
    """The written sentences of "zh" or "en" and as many of parts as show each part once."""
    slots = _slots(language)
    rows = [[slot[i % len(slot)] for slot in slots] for i in range(max(map(len, slots)))]
    return [*_WRITTEN[language], *(_BETWEEN[language].join(row) + _END[language] for row in rows)]
