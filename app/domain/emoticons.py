"""Names of the emoticon codes that WeChat and Weibo put into text. Data only.

Both networks write an emoticon as a code: Weibo ``[二哈]``, some archives of Weibo ``《二哈》``, WeChat ``[Facepalm]``
or ``[捂脸]``, and WeChat's older message interface ``/::)``. The code is often the only word of emotion in a message,
so every spelling is brought to one: ``[name]`` with the Chinese name.
"""

from typing import Final

WECHAT_SLASH_CODES: Final = {
    "/::)": "微笑", "/::~": "撇嘴", "/::B": "色", "/::|": "发呆", "/:8-)": "得意", "/::<": "流泪", "/::$": "害羞",
    "/::X": "闭嘴", "/::Z": "睡", "/::'(": "大哭", "/::-|": "尴尬", "/::@": "发怒", "/::P": "调皮", "/::D": "呲牙",
    "/::O": "惊讶", "/::(": "难过", "/::+": "酷", "/:--b": "冷汗", "/::Q": "抓狂", "/::T": "吐", "/:,@P": "偷笑",
    "/:,@-D": "愉快", "/::d": "白眼", "/:,@o": "傲慢", "/::g": "饥饿", "/:|-)": "困", "/::!": "惊恐", "/::L": "流汗",
    "/::>": "憨笑", "/::,@": "悠闲", "/:,@f": "奋斗", "/::-S": "咒骂", "/:?": "疑问", "/:,@x": "嘘", "/:,@@": "晕",
    "/::8": "疯了", "/:,@!": "衰", "/:!!!": "骷髅", "/:xx": "敲打", "/:bye": "再见", "/:wipe": "擦汗", "/:dig": "抠鼻",
    "/:handclap": "鼓掌", "/:&-(": "糗大了", "/:B-)": "坏笑", "/:<@": "左哼哼", "/:@>": "右哼哼", "/::-O": "哈欠",
    "/:>-|": "鄙视", "/:P-(": "委屈", "/::'|": "快哭了", "/:X-)": "阴险", "/::*": "亲亲", "/:@x": "吓", "/:8*": "可怜",
    "/:pd": "菜刀", "/:beer": "啤酒", "/:coffee": "咖啡", "/:pig": "猪头", "/:rose": "玫瑰", "/:fade": "凋谢",
    "/:showlove": "示爱", "/:heart": "爱心", "/:break": "心碎", "/:cake": "蛋糕", "/:li": "闪电", "/:bome": "炸弹",
    "/:shit": "便便", "/:moon": "月亮", "/:sun": "太阳", "/:gift": "礼物", "/:hug": "拥抱", "/:strong": "强",
    "/:weak": "弱", "/:share": "握手", "/:v": "胜利", "/:@)": "抱拳", "/:jj": "勾引", "/:@@": "拳头", "/:bad": "差劲",
    "/:lvu": "爱你", "/:no": "NO", "/:ok": "OK", "/:love": "爱情",
}  # fmt: skip

WECHAT_ENGLISH_NAMES: Final = {
    "Smile": "微笑", "Grimace": "撇嘴", "Drool": "色", "Scowl": "发呆", "CoolGuy": "得意", "Sob": "流泪", "Shy": "害羞",
    "Silent": "闭嘴", "Sleep": "睡", "Cry": "大哭", "Awkward": "尴尬", "Angry": "发怒", "Tongue": "调皮",
    "Grin": "呲牙",
    "Surprise": "惊讶", "Frown": "难过", "Blush": "囧", "Scream": "抓狂", "Puke": "吐", "Chuckle": "偷笑",
    "Joyful": "愉快", "Slight": "白眼", "Smug": "傲慢", "Drowsy": "困", "Panic": "惊恐", "Laugh": "憨笑",
    "Commando": "悠闲", "Scold": "咒骂", "Shocked": "疑问", "Shhh": "嘘", "Dizzy": "晕", "Toasted": "衰",
    "Skull": "骷髅", "Hammer": "敲打", "Wave": "再见", "Speechless": "擦汗", "NosePick": "抠鼻", "Clap": "鼓掌",
    "Trick": "坏笑", "Yawn": "哈欠", "Pooh-pooh": "鄙视", "Shrunken": "委屈", "TearingUp": "快哭了", "Sly": "阴险",
    "Kiss": "亲亲", "Whimper": "可怜", "Happy": "笑脸", "Sick": "生病", "Flushed": "脸红", "Lol": "笑cry",
    "Terror": "恐惧", "LetDown": "失望", "Duh": "无语", "Hey": "嘿哈", "Facepalm": "捂脸", "Smirk": "奸笑",
    "Smart": "机智", "Concerned": "皱眉", "Yeah!": "耶", "Onlooker": "吃瓜", "GoForIt": "加油", "Sweats": "汗",
    "OMG": "天啊", "Respect": "社会社会", "Doge": "doge", "NoProb": "好的", "MyBad": "打脸", "Wow": "哇",
    "Boring": "翻白眼", "Awesome": "666", "Sigh": "叹气", "Hurt": "苦涩", "Broken": "裂开", "Heart": "爱心",
    "BrokenHeart": "心碎", "Hug": "拥抱", "ThumbsUp": "强", "ThumbsDown": "弱", "Shake": "握手", "Peace": "胜利",
    "Fight": "抱拳", "Fist": "拳头", "Worship": "合十", "Rose": "玫瑰", "Wilt": "凋谢", "Bomb": "炸弹",
    "Poop": "便便", "Party": "庆祝", "Gift": "礼物", "Packet": "红包", "Blessing": "福", "Pig": "猪头",
}  # fmt: skip

# Weibo's names that stand in none of the tables above.
_WEIBO_NAMES: Final = (
    "心 泪 允悲 good 跪了 赞 悲伤 作揖 怒 摊手 给你小心心 感冒 费解 抱抱 拜拜 鲜花 话筒 中国赞 太开心 嘻嘻 蜡烛 喵喵 "
    "兔子 伤心 哈哈 吃惊 可爱 挖鼻 哼 思考 并不简单 太阳 黑线 好喜欢 给力 羞嗒嗒 傻眼 怒骂 憧憬 微风 赞啊 顶 威武 "
    "武汉加油 好爱哦 围观 浮云 喜 笑而不语 女孩儿 男孩儿 干杯 眼泪 浪 围脖 噢耶 来 害怕 绿丝带 haha 月亮 钟 沙尘暴 "
    "下雨 笑哈哈 泪流满面 爱心 调皮 祈祷 许愿 二哈 笑cry 污 挤眼 偷乐 舔屏 音乐 馋嘴 星星 熊猫 求关注 草泥马 互粉 "
    "超话 吃狗粮 酸 裂开 苦涩 打call 点亮平安灯 握拳 凌乱 暗中观察"
)

NAMES: Final = frozenset(
    {*WECHAT_SLASH_CODES.values(), *WECHAT_ENGLISH_NAMES.values(), *_WEIBO_NAMES.split()},
)
