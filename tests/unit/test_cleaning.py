import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.cleaning import clean
from app.domain.emoticons import NAMES, WECHAT_ENGLISH_NAMES, WECHAT_SLASH_CODES


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("ＡＢＣ１２３", "ABC123"),
        ("真的！？", "真的!?"),
        ("①星㈱ｶﾞ", "1星(株)ガ"),
        ("é", "é"),
        ("㎏", "kg"),
    ],
)
def test_compatibility_forms_are_folded(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("肯德基&amp;麦当劳", "肯德基&麦当劳"),
        ("&quot;不错&quot;", '"不错"'),
        ("太&#22909;&#x4E86;", "太好了"),
        ("不错&nbsp;&nbsp;推荐", "不错 推荐"),
        ("隐&#8203;身", "隐身"),
        ("AT&T 服务差", "AT&T 服务差"),
    ],
)
def test_html_entities_are_resolved(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("第一行<br>第二行<BR/>第三行<br />完", "第一行 第二行 第三行 完"),
        ('看<a href="http://t.cn/x" target="_blank">这里</a>吧', "看 这里 吧"),
        ("<p>很<b>差</b></p>", "很 差"),
        ("&lt;br&gt;好", "好"),
    ],
)
def test_html_tags_become_blanks(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize("text", ["<荐书>很好看", "爱你<3", "价格<100元", "<proud>", "1<2"])
def test_what_only_looks_like_a_tag_is_kept(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("详见http://t.cn/RuPx3?a=1&b=2#top吧", "详见[链接]吧"),
        ("HTTPS://WWW.JD.COM/ 买的", "[链接] 买的"),
        ("官网www.taobao.com打不开", "官网[链接]打不开"),
        ("http://不是链接", "http://不是链接"),
        ("好评率99.5%/月", "好评率99.5%/月"),
    ],
)
def test_links_become_a_placeholder(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("联系kefu.01@mail.example.com.cn没人回", "联系[邮箱]没人回"),
        ("A+b@c.io", "[邮箱]"),
        ("a@b", "a@b"),
    ],
)
def test_mail_addresses_become_a_placeholder(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("@李小明 你看", "@用户 你看"),
        ("回复@Li-xiao_明:笑死", "回复@用户:笑死"),
        ("//@张三：转发微博", "//@用户:转发微博"),
        ("@一@二 好", "@一@用户 好"),
    ],
)
def test_a_mentioned_name_becomes_a_placeholder(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    "text", ["@客服你们太差了", "差评@京东客服", "@一个长得不可能是谁的名字的话都没有断句 好", "3@5 换"]
)
def test_a_complaint_that_follows_a_mention_without_a_blank_is_kept(text: str) -> None:
    assert clean(text) == text


def test_every_slash_code_of_wechat_becomes_its_name() -> None:
    cleaned = {code: clean(f"好{code}吧") for code in WECHAT_SLASH_CODES}
    assert cleaned == {code: f"好[{name}]吧" for code, name in WECHAT_SLASH_CODES.items()}


def test_slash_codes_that_look_alike_are_told_apart() -> None:
    assert clean("/::-|/::-S/::'(/::'|") == "[尴尬][咒骂][大哭][快哭了]"


def test_a_slash_code_in_html_entities_is_named() -> None:
    assert clean("/::&lt;/:&lt;@/:@&gt;/:&amp;-(") == "[流泪][左哼哼][右哼哼][糗大了]"


def test_every_english_name_of_wechat_becomes_the_chinese_one() -> None:
    cleaned = {name: clean(f"好[{name}]吧") for name in WECHAT_ENGLISH_NAMES}
    assert cleaned == {name: f"好[{chinese}]吧" for name, chinese in WECHAT_ENGLISH_NAMES.items()}


def test_every_emoticon_in_title_marks_gets_brackets() -> None:
    assert {name: clean(f"好《{name}》吧") for name in NAMES} == {name: f"好[{name}]吧" for name in NAMES}


@pytest.mark.parametrize("text", ["[二哈]", "［二哈］", "《二哈》", "&#91;二哈&#93;", "[二\u200b哈]"])
def test_an_emoticon_of_weibo_has_one_spelling(text: str) -> None:
    assert clean(text) == "[二哈]"


@pytest.mark.parametrize("text", ["《红楼梦》好看", "[Whatever]", "[doge]", "[不是表情]", "好/不好", "1/:2"])
def test_what_only_looks_like_an_emoticon_is_kept(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "好\u200b吃",
        "\ufeff好吃",
        "好\u202e吃",
        "好\u00ad吃",
        "好\x00吃",
        "好\ue000吃",
        "好\ud800吃",
        "好\ufe0f吃",
        "好\u2060吃",
    ],
)
def test_invisible_characters_are_dropped(text: str) -> None:
    assert clean(text) == "好吃"


def test_an_emoji_is_kept_without_its_variation_selector() -> None:
    assert clean("❤️😂👍🏽") == "❤😂👍🏽"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("哈哈哈哈哈哈", "哈哈哈"),
        ("哈哈哈", "哈哈哈"),
        ("太差了！！！！！！", "太差了!!!"),
        ("无语。。。。。", "无语。。。"),
        ("😂😂😂😂😂", "😂😂😂"),
        ("goooood", "goood"),
        ("[二哈][二哈][二哈][二哈][二哈]", "[二哈][二哈][二哈]"),
        ("《心》[心]《心》[心]", "[心][心][心]"),
        ("/::)/::)[Smile][微笑]", "[微笑][微笑][微笑]"),
        ("[赞][赞][心][赞][赞]", "[赞][赞][心][赞][赞]"),
    ],
)
def test_runs_of_a_character_or_an_emoticon_are_cut_to_three(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize("text", ["花了10000元", "电话88888888", "0.00001", "价格99999999999"])
def test_runs_of_a_digit_are_left_alone(text: str) -> None:
    assert clean(text) == text


def test_blanks_of_every_kind_collapse_to_one() -> None:
    assert clean("\u3000 饭\t\r\n很好\u00a0\u2003吃\x85\u2028!  ") == "饭 很好 吃 !"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("太 难 吃", "太难吃"),
        ("太 难 吃 了", "太难吃了"),
        (" 太\u3000难 \n 吃\t了 ", "太难吃了"),
        ("真的 太 难 吃 了 退款", "真的 太难吃了 退款"),
        ("服务差，太 难 吃 了！", "服务差,太难吃了!"),
        ("「太 难 吃 了」", "「太难吃了」"),
        ("太 难 吃 。 不 来 了", "太难吃 。 不来了"),
        ("😭太 难 吃 了[二哈]", "😭太难吃了[二哈]"),
        ("太 难 吃 了吗", "太难吃 了吗"),
        ("啊太 难 吃 了", "啊太 难吃了"),
        ("3天 太 难 吃 A", "3天 太难吃 A"),
        ("@客服 太 难 吃 了", "@用户 太难吃了"),
        ("@张 太 难 吃 了", "@用户 太难吃了"),
        ("太<br>难<br>吃", "太难吃"),
        ("哈 哈 哈 哈 哈 哈", "哈哈哈"),
        ("《泪 流 满 面》", "[泪流满面]"),
    ],
)
def test_single_han_characters_set_apart_by_blanks_are_joined(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "太 差",
        "太 差,难 吃",
        "味道 很好 下次 再来",
        "味道 很 好 下次 再来",
        "a b c d",
        "好 A 差 B 贵",
        "3 月 5 日 到",
        "好 ! 差 ! 贵",
        "好a 差b 贵c",
        "は て な",
    ],
)
def test_words_pairs_and_other_letters_keep_their_blanks(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize("text", ["", " ", "\u3000\n\t", "\u200b\ufeff", "<br><br/>", "&nbsp;", "\x00\x1f"])
def test_a_text_without_content_is_cleaned_to_nothing(text: str) -> None:
    assert clean(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "物流很快，包装完好，客服态度也好，五星好评！！！！！",
        "等了一个小时，汤都凉了/::<再也不来了/:break",
        "转发微博：//@张三:哈哈哈哈哈哈哈[二哈][二哈][二哈][二哈] http://t.cn/RuPx3",
        "@海底捞火锅 服务好到哭😭😭😭😭😭",
        "<p>房间&nbsp;太小，<br/>价格却要￥１０００！</p>",
        "《红楼梦》比《心》好看[Facepalm]",
        "有问题发邮件 kefu@example.com 或看 www.example.com，谢谢",
        "ＯＭＧ❤️\u200b这也太好吃了吧～～～～～",
        "退款，退款，退款！！！订单号2024000000001",
        "太 难 吃 了！！ 真 的 真 的 ，退 款 [大 哭 了][大 哭 了][大 哭 了][大 哭 了]",
    ],
)
def test_cleaning_a_message_again_changes_nothing(text: str) -> None:
    once = clean(text)
    assert once
    assert clean(once) == once


_SNIPPETS = [
    "&lt;",
    "&#8203;",
    "<br>",
    "@",
    "@a ",
    "a@b.cn",
    "http://",
    "www.a",
    "/::)",
    "[二哈]",
    "《二哈》",
    "[Cry]",
    "哈",
    " ",
]
_texts = st.lists(st.characters(exclude_categories=()) | st.sampled_from(_SNIPPETS), max_size=40).map("".join)


@given(st.text(st.sampled_from("太难吃泪流满面哈A3-:@[]《》,。 "), max_size=40))
@settings(deadline=None, max_examples=400)
def test_joining_characters_leaves_nothing_to_join_name_or_cut(text: str) -> None:
    once = clean(text)
    assert clean(once) == once


@given(_texts)
@settings(deadline=None, max_examples=400)
def test_no_text_whatever_leaves_invisible_characters_outer_blanks_or_long_runs(text: str) -> None:
    cleaned = clean(text)
    assert {unicodedata.category(character) for character in cleaned}.isdisjoint({"Cc", "Cf", "Cs", "Co", "Cn"})
    assert cleaned == cleaned.strip()
    assert not re.search(r"\s\s|[^\S ]", cleaned)
    assert not re.search(r"([^\d\s])\1{3}", cleaned)
    cleaned.encode()


@pytest.mark.parametrize(("code", "name"), WECHAT_SLASH_CODES.items())
def test_a_slash_code_is_read_whatever_surrounds_it(code: str, name: str) -> None:
    assert clean(f"好{code} 吧") == f"好[{name}] 吧"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("https://t.cn/abc，OK good", "[链接],OK good"), ("https://a.cn/?x=1&region=2 好", "[链接] 好")],
)
def test_a_link_takes_no_words_with_it(text: str, expected: str) -> None:
    assert clean(text) == expected


@pytest.mark.parametrize("character", ["\u3164", "\u115f", "\uffa0", "\u180b", "\U000e0100", "\u034f"])
def test_fillers_and_selectors_are_invisible(character: str) -> None:
    assert clean(character) == ""


@pytest.mark.parametrize("reference", ["&#" + "1" * 5_000 + ";", "&#x" + "f" * 5_000 + ";", "&#999999999999"])
def test_a_reference_to_no_character_is_dropped(reference: str) -> None:
    assert clean(f"好{reference}吃") == "好吃"
