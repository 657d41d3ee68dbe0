"""What people and models say in `bench.history`: words of three languages, as often as words are; long mathematics.

Texts are put together from passages, whose terms and HTML are worked out once: what a message made of them is found by
is exactly what Ponder would find it by.
"""

import random
from dataclasses import dataclass
from itertools import accumulate

from app.history.search import terms
from app.render import render
from bench.texts import trace

_PASSAGES = 3000

_COMMON = {
    "en": "the of and to in is that for it as with on be this by so we are not have which sum then let check",
    "de": "der die und das ist nicht wir ein auf für mit dass also als wenn über größer gleich prüfen Lösung",
}
_HAN = (
    "数学问题我们考虑方程的解首先计算结果然后检查答案是否正确因此得到证明假设函数连续可以看出这个数列收敛于极限".strip()
)
_HAN_WORDS = ("矩阵", "概率", "向量", "积分", "质数", "归纳")
_SYLLABLES = {
    "en": "ba con der el for gra hin in jo ket lum men nor op pre qua rig sta ten ur ver wil",
    "de": "ab bei chen dur ent fäl ge hör il jä kom lös mög nach ord prü rück sch tät über ver zu",
}


@dataclass(frozen=True, slots=True)
class Passage:
    """A few sentences, with what they are found by and how they look."""

    text: str
    html: str
    terms: dict[str, None]


class Vocabulary:
    """Words of three languages, as often as words are (Zipf)."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._words: dict[str, list[str]] = {}
        for language, syllables in _SYLLABLES.items():
            made = ("".join(dice.choices(syllables.split(), k=dice.randint(2, 4))) for _ in range(12_000))
            words = list(dict.fromkeys([*_COMMON[language].split(), *made]))
            self._words[language] = [
                word.capitalize() if language == "de" and n % 3 == 0 else word for n, word in enumerate(words)
            ]
        self._weights = {
            language: list(accumulate(1 / (rank + 4) for rank in range(len(words))))
            for language, words in self._words.items()
        }

    def sentence(self, language: str) -> str:
        """About 60 characters."""
        if language == "zh":
            chars = self._dice.choices(_HAN, k=24)
            chars[self._dice.randrange(4, 20)] = self._dice.choice(_HAN_WORDS)
            return "".join(chars[:12]) + "，" + "".join(chars[12:]) + "。"
        words = self._dice.choices(self._words[language], cum_weights=self._weights[language], k=10)
        mark = self._dice.choice((", ", " ", " \\(x^2\\) ", ": "))
        return f"{words[0].capitalize()} " + " ".join(words[1:5]) + mark + " ".join(words[5:]) + "."


class Texts:
    """Passages to put messages together from."""

    def __init__(self, seed: int = 7) -> None:
        dice = random.Random(seed)
        vocabulary = Vocabulary(dice)
        self.passages = {
            language: [_passage(vocabulary.sentence(language)) for _ in range(count)]
            for language, count in (("en", _PASSAGES), ("de", _PASSAGES // 3), ("zh", _PASSAGES // 6))
        }
        self.long_answers = [_passage(trace(1500)[n * 7 :]) for n in range(20)]
        self.long_reasonings = [_passage(trace(6000)[n * 7 :]) for n in range(20)]


def _passage(written: str) -> Passage:
    return Passage(written, render(written), dict.fromkeys(terms(written)))
