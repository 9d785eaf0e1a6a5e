"""Texts to load a service with: written for this purpose, as long as real reviews are."""

import random
from typing import Final

# Reviews of an online shop have a median of 33 characters and a 95th percentile of 185: a log-normal with these.
_MEDIAN_CHARACTERS: Final = 33
_SPREAD: Final = 1.05
_LONGEST: Final = 1_000

_SUBJECTS: Final = (
    "快递 包装 客服 房间 早餐 屏幕 电池 键盘 味道 分量 面料 颜色 尺码 做工 价格 送餐的师傅 前台 "
    "这本书的翻译 说明书 充电器 鞋底 水果 蛋糕 空调 洗发水 镜头 安装师傅 退货的流程"
).split()
_REMARKS: Final = (
    "比想象的好 和描述的一样 让人失望 一般般吧 挺不错的 有点小问题 完全不能用 非常满意 还需要改进 "
    "超出了预期 不值这个价 没有什么可挑剔的 跟图片上差太多 用了一个星期还没坏 问了三次都没有人回答 "
    "家里老人也说好 第二天就到了 等了足足十天 有一股很重的气味 摸起来很舒服 比上次买的差远了 "
    "朋友推荐的，果然没错 下次还会再来 再也不会买了"
).split()
_JOINS: Final = "， 。 ； ，而且 ，不过 ，但是 ，另外 ！ ，所以说".split()


def make_texts(count: int, *, seed: int = 0) -> list[str]:
    """Return `count` different texts; the same for the same `seed`."""
    chance = random.Random(seed)  # noqa: S311 (no secret depends on it)
    texts: dict[str, None] = {}
    while len(texts) < count:
        length = min(_LONGEST, max(2, round(chance.lognormvariate(0, _SPREAD) * _MEDIAN_CHARACTERS)))
        text = ""
        while len(text) < length:
            text += chance.choice(_SUBJECTS) + chance.choice(_REMARKS) + chance.choice(_JOINS)
        texts[text[:length]] = None
    return list(texts)
