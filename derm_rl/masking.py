"""No key leaves the process: every text that does goes through :func:`mask`.

Keys are known by their *value*: what variables of the environment hold that are named like a key,
what a setting or a client uses as one (:func:`keep_secret`), and what looks like a key of a
provider wherever it stands. A value is found plain, percent-encoded, JSON- or HTML-escaped, as hex,
and in base64, there also as a part of something longer (``user:key`` of Basic authentication).

:func:`guard` puts it where text leaves: standard output and error, log records, and all that a
notebook's kernel sends. Files of notebooks, JSON files and ledgers call it themselves.
"""

from __future__ import annotations

import base64
import contextlib
import html
import logging
import os
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from traceback import format_exception
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

_HIDDEN = "***"
_SHORTEST = 8  # characters; what is shorter is no key, and would be found in every second text
_NAMED = re.compile(
    r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|BEARER|PAT|AUTH)(_|\d|$)"
    r"|API_?KEY|TOKEN$|SECRET|PASSWORD",
    re.IGNORECASE,
)
_NOT_ONE = re.compile(
    r"_(PATH|FILE|DIR|SOCK|URL|ENV|MODE|TYPE|METHOD|PROVIDER|BACKEND|NAME|REGION|USER)$",
    re.IGNORECASE,
)
# Of other variables (SORT_KEY, AUTH), a value of plain words alone is a choice of something.
_SURELY = re.compile(
    r"(API_?KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)_?\d*$", re.IGNORECASE
)
_WORDS = re.compile("[a-z_ -]+")
# What servers without keys are given as one; each is also an ordinary word of a message.
_PLACEHOLDERS = {"not-needed", "no-key-required", "lm-studio", "api-key-not-set", "localhost"}
# Keys of providers, by how they begin. A digit is asked for: "sk-" also begins ordinary words. What
# stands before one may be an escape of JSON, Python or an address, which ends in letters. And a
# key's first letter may end an escape: backslashes before it go with it, so JSON remains JSON.
_KEY = re.compile(
    r"(?=[\\Acefghnprswx])"  # much faster
    r"(?:(?<!\\)\\++|(?<![A-Za-z0-9])|(?<=\\[abfnrtv])|(?<=\\x[0-9A-Fa-f]{2})"
    r"|(?<=\\u[0-9A-Fa-f]{4})|(?<=\\U[0-9A-Fa-f]{8})|(?<=%[0-9A-Fa-f]{2}))"
    r"(?:(?:sk|gsk|hf|xai|pplx|nvapi|fw|csk|r8|ghp|gho|ghs|github_pat|glpat|whsec)"
    r"[-_](?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{12,}"
    r"|AIza[A-Za-z0-9_-]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_.-]{10,})"
)
_MODEL = re.compile(
    "gpt|gemini|claude|llama|qwen|mistral|gemma|flash|mini|vl|instruct|measured", re.I
)
_VARIABLE_OF_KEYS = "DERM_RL_KEY_VARIABLES"  # names, for the processes that are started from here

_values: set[str] = set()


def keep_secret(value: str | None) -> None:
    """Hide this value from now on, in every text."""
    value = (value or "").strip()
    value = value.partition(" ")[2].strip() if value.lower().startswith("bearer ") else value
    if len(value) >= _SHORTEST and value.lower() not in _PLACEHOLDERS:
        _values.add(value)


def keep_variable(name: str | None) -> None:
    """Hide the value of a variable of the environment, here and in processes started from here."""
    if name:
        names = {*os.environ.get(_VARIABLE_OF_KEYS, "").split(), *name.split()[:1]}
        os.environ[_VARIABLE_OF_KEYS] = " ".join(sorted(names))


def looks_like_key(text: str) -> bool:
    """Whether a text that should be a name, of a model or a variable, is or holds a key."""
    runs = re.findall(r"(?<![\w/-])[A-Za-z0-9]{20,}(?![\w/-])", text)
    long = any(re.search(r"\d", run) and re.search("[A-Za-z]", run) for run in runs)
    return long or bool(_KEY.search(text)) or any(value in text for value in _secrets())


def refuse_key(name: str, value: str | None) -> None:
    """Refuse a setting that holds a key where a name or an address belongs.

    Raises:
        ValueError: names the setting; the key itself is hidden from then on.
    """
    if not value or value in os.environ:
        return
    found, kind = [], name.rpartition(".")[2]
    if kind == "base_url":
        found = credentials_of(value)
    elif kind == "api_key_env":
        found = [] if value.isidentifier() else [value]
    elif ":" not in value and len(value) >= 16 and not _MODEL.search(value):
        found = [value]
    if found or looks_like_key(value):
        for secret in (value, *value.split(":"), *found):
            keep_secret(secret)
        raise ValueError(
            f"{name}: this seems to hold a key; keys do not belong into settings. Put it into a "
            "variable of the environment, and the variable's name into captions.api_key_env"
        )


def hide_pasted(setting: str) -> None:
    """Hide what ``key=value`` gives as a key, also under a name that is no setting."""
    name, _, value = setting.partition("=")
    last, value = name.strip().rpartition(".")[2], value.strip()
    if last in ("teacher", "judge", "base_url", "api_key_env"):
        with contextlib.suppress(ValueError):
            refuse_key(last, value)
    elif _names_key(last):
        keep_secret(value)


def _names_key(name: str) -> bool:
    return bool(_NAMED.search(name)) and not _NOT_ONE.search(name)


def credentials_of(url: str) -> list[str]:
    """User and password, or keys among the parameters, of an address; all of it if it is none."""
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        _ = parts.port  # raises for what a "/" in a password makes of an address
        pairs = parse_qsl(f"{parts.query}&{parts.fragment}")
    except ValueError:
        return [url]
    found = [part for part in (parts.username, parts.password) if part]
    found += [value for name, value in pairs if _names_key(name) or looks_like_key(value)]
    if not found and re.search("[^/]@", parts.path):
        found = [url]
    return [*found, *(plain for text in found if (plain := unquote(text)) != text)]


def mask(text: str) -> str:
    """The text with every key, in whatever form, replaced by ``***``."""
    if values := _secrets():
        unescaped = _ESCAPE.sub(_unescaped, text)
        packed = "".join(_BREAK.sub("", text).split())
        lower = packed.replace(":", "").lower()
        for value in values:
            plain, encoded, digits = _traces(value)
            found = plain in text or plain in unescaped or digits in lower
            if found or any(part in text or part in packed for part in encoded):
                text = _pattern(value).sub(_HIDDEN, text)
    return _KEY.sub(_HIDDEN, text)


def _secrets() -> tuple[str, ...]:
    """All values that are keys now, the longest first: one may be the beginning of another."""
    found, named = set(_values), os.environ.get(_VARIABLE_OF_KEYS, "").split()
    for name in list(os.environ):  # not items(): another thread may remove a variable meanwhile
        value = os.environ.get(name, "").strip()
        if len(value) < _SHORTEST:
            continue
        choice = _WORDS.fullmatch(value) and not _SURELY.search(name)
        choice = choice or (value[0] in "/~" and os.path.exists(value))
        if name in named or (_names_key(name) and not choice):
            found |= {value, re.sub("(?i)^(bearer|basic) +", "", value)}
        elif name.endswith("HEADERS"):
            found |= {line.partition(":")[2].strip() for line in value.splitlines()}
        elif "@" in value and "://" in value:
            found |= set(credentials_of(value))
    # Quotes and backslashes around a value are no secret, and belong to the syntax of JSON.
    bare = {value.strip("\"'\\") for value in found}
    long = {v for v in bare if len(v) >= _SHORTEST and v.lower() not in _PLACEHOLDERS}
    return tuple(sorted(long, key=lambda v: (-len(v), v)))


# A pattern of all forms is slow, and most texts hold no key: first, whether one may be there.
_ESCAPE = re.compile(
    r"%(?:25)*([0-9A-Fa-f]{2})|\\+[ux](?:00)?([0-9A-Fa-f]{2})|&\#x0*([0-9A-Fa-f]{1,6});|&\#0*(\d{1,6});"
    r"|&(lt|gt|amp|quot);|\\+"
)
_BREAK = re.compile(r"\\++[rn]")


def _unescaped(found: re.Match[str]) -> str:
    *numbers, decimal, entity = found.groups()
    if digits := next(filter(None, numbers), None):
        return chr(min(int(digits, 16), 0x10FFFF))
    return html.unescape(f"&{entity};") if entity else chr(int(decimal)) if decimal else ""


@lru_cache(maxsize=64)
def _traces(value: str) -> tuple[str, list[str], str]:
    """What every text has that holds the value: its longest plain part, base64, digits."""
    parts = re.findall(r"[!#-%'-*,-.0-;=?-\[\]-~]+", value)
    plain = max(parts, key=len, default="")
    encoded = [max(re.split("[+/]", inner), key=len) for inner in _inner_base64(value)]
    return plain, encoded, value.encode("utf-8", "surrogatepass").hex()


def _inner_base64(value: str) -> list[str]:
    """Base64 of a value in its three phases, without what it shares with its neighbours."""
    data = value.encode("utf-8", "surrogatepass")
    return [
        base64.b64encode(bytes(before) + data).decode()[
            -(-before * 8 // 6) : (before + len(data)) * 8 // 6
        ]
        for before in range(3)
    ]


@lru_cache(maxsize=64)
def _pattern(value: str) -> re.Pattern[str]:
    """The value with its characters plain or escaped, its bytes as hex and as base64.

    With all of an escape in the midst of which it begins, so that JSON remains JSON.
    """
    data = value.encode("utf-8", "surrogatepass")
    forms = [
        "".join(map(_character, value)),
        "(?i:" + r"[\s:]?".join(f"{b:02x}" for b in data) + ")",
    ]
    for encoded in _inner_base64(value):
        inner = r"(?:\\++[rn]|\s)*".join(_BASE64.get(c, c) for c in encoded)
        forms.append(f"(?:{_SHARED})?{inner}[A-Za-z0-9+/_=-]{{0,2}}")
    return re.compile(rf"(?:(?<!\\)\\+(?:u[0-9A-Fa-f]{{0,3}})?)?(?:{'|'.join(forms)})")


# The character of base64 that a value shares with what is before it; none that ends an escape.
_SHARED = r"(?<!\\)(?<!\\u[0-9A-Fa-f]{3})[A-Za-z0-9+/_-]"
_LINES = {"\n": "n", "\r": "r", "\t": "t"}
_BASE64 = {"+": "(?:[+-]|%(?:25)*2[Bb])", "/": r"(?:\\*/|_|%(?:25)*2[Ff])"}


def _character(c: str) -> str:
    """Pattern of one character: itself, or escaped in URLs, JSON, Python or HTML."""
    data = c.encode("utf-8", "surrogatepass")
    percent = "".join(f"%(?:25)*{byte:02x}" for byte in data)
    units = c.encode("utf-16-be", "surrogatepass")
    unicode = "".join(rf"\\+u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
    escaped = [f"(?i:{percent}|{unicode}|&\\#x0*{ord(c):x};|&\\#0*{ord(c)};)"]
    if ord(c) < 256:
        escaped.append(rf"\\+x(?i:{ord(c):02x})")
    if not c.isalnum():
        escaped.append(r"\\+" + re.escape(c))
        escaped += [re.escape(html.escape(c))] if html.escape(c) != c else []
        escaped += [r"\+"] if c == " " else []
        escaped += [r"\\+" + _LINES[c]] if c in _LINES else []
    return f"(?:{'|'.join([re.escape(c), *escaped])})"


# ------------------------------------------------------------------------- where text leaves


def guard() -> None:
    """Mask standard output and error, log records, and all messages of a notebook's kernel."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            _wrap(stream, "write", lambda write: lambda text: write(mask(text)))
    if not getattr(logging.getLogRecordFactory(), "masks", False):
        logging.setLogRecordFactory(_recording(logging.getLogRecordFactory()))
    if "ipykernel" in sys.modules:
        from IPython import get_ipython

        if session := getattr(getattr(get_ipython(), "kernel", None), "session", None):
            _wrap(session, "pack", _packing)


def _wrap(owner: Any, name: str, around: Callable[[Any], Any]) -> None:
    """Replace a method of one object, once."""
    method = getattr(owner, name)
    if not getattr(method, "masks", False):
        wrapped = around(method)
        wrapped.masks = True
        setattr(owner, name, wrapped)


def _packing(pack: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    def packed(content: Any) -> bytes:
        return mask(pack(content).decode("utf-8", "surrogatepass")).encode("utf-8", "surrogatepass")

    return packed


def _recording(factory: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    def record(*arguments: Any, **options: Any) -> logging.LogRecord:
        made = factory(*arguments, **options)
        try:
            plain = made.getMessage()
        except Exception:  # the caller's mistake, which logging reports in its own way
            return made
        if (masked := mask(plain)) != plain:
            made.msg, made.args = masked, None
        if made.exc_info and made.exc_info[1] is not None:
            made.exc_text = mask("".join(format_exception(made.exc_info[1])).rstrip())
        return made

    record.masks = True
    return record
