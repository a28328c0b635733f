"""A check of the whole table: answers that are near copies of earlier ones.

MinHash signatures with locality-sensitive hashing (Broder 1997; Leskovec et al., chapter 3) find
candidates in about linear time; ROUGE-L F1 (Lin 2004), over words or Japanese characters, decides.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache

import pandas as pd

from derm_rl.captions.checks.base import Settings, check, normalize

_KANA = re.compile("[\u3041-\u30ff\uff66-\uff9f]")
_TOKEN = re.compile(r"[a-z0-9]+|[^\W\d_a-z]")


def tokenize(text: str) -> list[str]:
    """Words of Latin letters and digits, single letters of other scripts, of normalized text."""
    return _TOKEN.findall(text)


def rouge_l(first: list[str], second: list[str]) -> float:
    """F1 of the longest common subsequence of tokens, as ``rouge_score`` computes it.

    Its table is filled a row at a time by the bits of one integer (Hyyrö 2004): some hundred times
    faster than cell by cell, which tens of thousands of comparisons need.
    """
    where: dict[str, int] = {}
    for position, token in enumerate(first):
        where[token] = where.get(token, 0) | 1 << position
    full = row = (1 << len(first)) - 1
    for token in second:
        if met := row & where.get(token, 0):
            row = ((row + met) | (row - met)) & full
    length = len(first) - row.bit_count()
    return 2 * length / max(1, len(first) + len(second))


def shingles(tokens: list[str], size: int = 3) -> list[bytes]:
    """The distinct runs of ``size`` tokens, in a fixed order."""
    runs = (" ".join(tokens[i : i + size]) for i in range(max(1, len(tokens) - size + 1)))
    return [run.encode() for run in dict.fromkeys(runs)]


def bound(first: Counter[str], second: Counter[str]) -> float:
    """An upper bound of ROUGE-L F1: as if all common tokens stood in the same order."""
    small, large = sorted((first, second), key=len)
    common = sum(min(n, large[t]) for t, n in small.items() if t in large)
    return 2 * common / max(1, first.total() + second.total())


@lru_cache(maxsize=10_000)  # all of them would take more memory than everything else
def _counts(text: str) -> Counter[str]:
    return Counter(tokenize(text))


def _hash(value: bytes) -> int:
    import zlib

    return zlib.crc32(value)


@check("near_duplicate", whole=True)
def near_duplicate(pairs: pd.DataFrame, settings: Settings) -> Iterator[tuple[str, float, str]]:
    """The answer is no near copy of an earlier one about another image or question.

    Of a group of near copies the first in the order of the table is not flagged. Abstentions are
    left out: there are few ways to say that nothing can be seen.
    """
    # One script after the other: they share no tokens, and an index takes 4 KB an answer.
    for kana in (False, True):
        yield from _near_duplicates(pairs, settings, kana)


def _near_duplicates(
    pairs: pd.DataFrame, settings: Settings, kana: bool
) -> Iterator[tuple[str, float, str]]:
    from datasketch import MinHash, MinHashLSH

    permutations = settings.minhash_permutations
    index = MinHashLSH(settings.minhash_jaccard, permutations)
    empty = MinHash(permutations, hashfunc=_hash)
    kept: list[tuple[str, tuple]] = []
    exact: dict[str, tuple] = {}
    for pair_id, key, answer in _answers(pairs, settings, kana):
        if answer in exact:
            first = exact[answer]
            if first[1:] != key[1:]:
                yield pair_id, 1.0, f"the same answer as of pair {first[0]}"
            continue
        exact[answer] = key
        tokens = tokenize(answer)
        signature = empty.copy()
        signature.update_batch(shingles(tokens))
        counts = Counter(tokens)
        best, of = 0.0, ""
        found = [kept[i] for i in index.query(signature)]
        # A cheap bound first: most candidates of templated text cannot reach the threshold.
        bounded = [(bound(counts, _counts(c[0])), c) for c in found if c[1][1:] != key[1:]]
        least = 0.8 * settings.rouge_l  # lower scores are of no interest to anybody
        bounded = sorted((b for b in bounded if b[0] > least), key=lambda b: -b[0])
        for most, (other, its) in bounded[: settings.max_candidates]:
            if most <= best:
                break
            score = rouge_l(tokenize(other), tokens)
            if score > best:
                best, of = score, its[0]
            if best >= settings.rouge_l:
                break
        if best:
            # 0.5 at the threshold, 1 for a copy, falling to 0 below it.
            over = (best - settings.rouge_l) / max(1e-9, 1 - settings.rouge_l)
            score = 0.5 + 0.5 * over if over >= 0 else 0.5 * best / settings.rouge_l
            yield pair_id, min(1.0, score), f"ROUGE-L {best:.2f} to the answer of pair {of}"
        index.insert(len(kept), signature, check_duplication=False)
        kept.append((answer, key))


def _answers(
    pairs: pd.DataFrame, settings: Settings, kana: bool
) -> Iterable[tuple[str, tuple, str]]:
    """(pair_id, (pair_id, image_id, question), normalized answer) of the pairs to compare."""
    columns = ["pair_id", "image_id", "question", "answer", "abstained", "status"]
    table = pairs.reindex(columns=columns).astype(object)
    for pair_id, image, question, answer, abstained, status in table.itertuples(index=False):
        said = isinstance(answer, str) and answer.strip()
        ok = isinstance(status, str) and status == "ok"
        if not said or not ok or str(abstained).lower() in ("true", "1"):
            continue
        if bool(_KANA.search(answer)) != kana:
            continue
        text = normalize(answer[: settings.max_characters]).strip()
        yield pair_id, (pair_id, str(image), str(question)), text
