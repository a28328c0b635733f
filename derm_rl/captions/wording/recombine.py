"""New questions from aspects that were observed in an image, for the pool of self-instruct."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from derm_rl.captions.schema import Language

ASPECT: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "symmetry": ("the symmetry", "the balance of its halves", "how evenly it is built"),
        "border": ("the border", "the course of its outline", "the sharpness of its margin"),
        "colours": ("the range of colours", "its pigment", "the mixture of shades"),
        "size": ("its extent within the frame", "the relative size", "its diameter"),
        "place": ("its position in the picture", "where it lies in the frame"),
        "edge": ("how it sits within the field of view", "its distance from the image edge"),
        "skin": ("the tone of the skin around it", "the background skin"),
        "artifacts": ("what covers the skin", "possible artifacts", "foreign objects in view"),
    },
    "ja": {
        "symmetry": ("対称性", "両半分の釣り合い", "形のそろい方"),
        "border": ("辺縁", "輪郭の走り方", "縁の鮮明さ"),
        "colours": ("色の幅", "色素", "色合いの混ざり方"),
        "size": ("画面内での広がり", "相対的な大きさ", "径"),
        "place": ("画像の中での位置", "写っている場所"),
        "edge": ("視野への収まり方", "画像の端との距離"),
        "skin": ("周囲の肌の色調", "背景の皮膚"),
        "artifacts": ("皮膚を覆うもの", "ありうるアーチファクト", "写り込んだ異物"),
    },
}  # fmt: skip
COMBINE: dict[Language, tuple[str, ...]] = {
    "en": (
        "If you could keep only one observation, {a} or {b}, which would you keep, and why?",
        "How does {a} affect the way a reader perceives {b}?",
        "Suppose another camera had been used: would {a} or rather {b} come out differently?",
        "Explain to a beginner in what order to look at {a} and {b}.",
        "What could go wrong when a program measures {a} without regard to {b}?",
        "Which of the two is harder to judge by eye here, {a} or {b}?",
        "In a second image taken months later, would a change in {a} or in {b} matter more?",
        "Describe {a} first, then say whether {b} tells the same story.",
        "When two observers disagree about {a}, can {b} help them to agree?",
        "What would a drawing of this lesion need in order to render both {a} and {b}?",
    ),
    "ja": (
        "{a}と{b}のうち観察を一つだけ残すとしたら、どちらを選びますか。その理由も教えてください。",
        "{a}は、読み手による{b}の受け取り方をどう変えますか。",
        "別のカメラで撮影していたら、{a}と{b}のどちらが違って写ると思いますか。",
        "{a}と{b}をどの順に見ればよいか、初心者に説明してください。",
        "プログラムが{b}を考えずに{a}を測ると、どのような誤りが起こりえますか。",
        "目で判断しにくいのは、ここでは{a}でしょうか、それとも{b}でしょうか。",
        "数か月後の画像と比べるとき、{a}と{b}のどちらの変化がより重要ですか。",
        "まず{a}を述べ、続いて{b}も同じことを物語っているか答えてください。",
        "二人の観察者が{a}について食い違ったとき、{b}は合意の助けになりますか。",
        "この病変をスケッチするなら、{a}と{b}の両方を表すために何が必要ですか。",
    ),
}


def recombine(facts: Sequence[str], language: Language, rng: Random, count: int = 5) -> list[str]:
    """New questions from pairs of aspects that were observed in an image, each of its own form.

    They name aspects, not values ("the border", not "the irregular border"): asked of another image
    they presuppose nothing.
    """
    aspects = ASPECT[language]
    known = [name for name in facts if name in aspects]
    if len(known) < 2:
        return []
    forms = rng.sample(COMBINE[language], min(count, len(COMBINE[language])))
    lines = []
    for form in forms:
        a, b = rng.sample(known, 2)
        lines.append(form.format(a=rng.choice(aspects[a]), b=rng.choice(aspects[b])))
    return lines
