"""Detect credentials in settings, and remove them from texts. Pure.

A *setting* that is a credential is refused, because the store keeps all settings of a launch, readable for
everyone with access. A *text* that may contain one (a message, traceback, command line or diff) is redacted.

Two rules identify a credential, see `reason_of`:

* Its form: keys of AWS, GitHub, GitLab, Hugging Face, OpenAI, Slack and others, private key blocks, JSON web
  tokens, passwords in URLs. gitleaks and detect-secrets search for the same forms; these are our patterns.
* Its name, with a value that could be a credential. Under ``password``, ``secret``, ``api_key``, ``hf_token``
  and similar names any text counts. But ``key`` and ``token`` have many meanings (``sort_key: loss``,
  ``pad_token: <pad>``). Under these a value counts only if it is not made of words or, for most keys, only
  if it looks random.

Never a credential: numbers, paths, addresses without a password, digests, special tokens in brackets,
``$VARIABLE``, and the name of an environment variable.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from enum import IntEnum
from functools import lru_cache
from itertools import pairwise
from typing import Any

MASK = "***"

_FORMS = {
    "an AWS access key": r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",
    "a GitHub token": r"\b(?:gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,})",
    "a GitLab token": r"\bgl(?:pat|dt|rt|ptt|cbt|ft|imt|oas|soat|agent)-[\w-]{16,}",
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{24,}",
    "a W&B key": r"\bwandb_v\d+_\w{20,}",
    "an OpenAI or Anthropic key": (
        r"\bsk-(?:(?:ant|proj|svcacct|admin|or)-[\w-]{16,}"
        r"|(?=[\w-]{0,200}?[A-Za-z0-9]{16})(?=[\w-]{0,200}?\d)[\w-]{20,})"
    ),
    "a Slack token": (
        r"\bxox[a-z]-[A-Za-z0-9-]{8,}|\bxapp-\d-[A-Za-z0-9-]{8,}"
        r"|hooks\.slack\.com/(?:services|workflows|triggers)/[\w/]{20,}"
    ),
    "a Stripe key": r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{10,}",
    "a Google key": r"\bAIza[\w-]{35}|\bGOCSPX-[\w-]{20,}|\bya29\.[\w-]{20,}",
    "an Azure key": r"\b(?:AccountKey|SharedAccessKey)=[A-Za-z0-9+/=]{30,}|[?&]sig=[A-Za-z0-9%+/=]{30,}",
    "a signed address": r"\bX-Amz-(?:Signature|Security-Token)=[A-Za-z0-9%+/=]{16,}",
    "a credential in an address": (
        r"[?&](?i:api[_-]?key|(?:access|auth|refresh)[_-]?token|token|(?:client[_-]?)?secret|password)"
        r"=[\w.~%+-]{8,}"
        # alone before the host, but not a name of words and numbers, nor an image before @sha256:
        r"|(?<=://)(?=[\w-]{0,199}?(?:(?=[A-Za-z]{0,30}\d{1,20}[A-Za-z]{1,30}\d)[A-Za-z0-9]{16}"
        r"|(?i:[a-f0-9]{8}-(?:[a-f0-9]{4}-){3}[a-f0-9]{12})))[\w-]{20,200}(?=@(?!sha\d))"
        r"|\b(?:discord(?:app)?\.com/api/webhooks/\d|\w+\.webhook\.office\.com/)[\w/@-]{20,}"
    ),
    "an access token": (
        r"\bnpm_[A-Za-z0-9]{30,}|\bpypi-[\w-]{40,}|\bdckr_pat_[\w-]{20,}"
        r"|\b(?:dapi[a-f0-9]{32}|dop_v1_[a-f0-9]{40,}|r8_[A-Za-z0-9]{30,}|gsk_[A-Za-z0-9]{40,}"
        r"|(?:nvapi|pplx|tskey-[a-z]+|xai)-(?=[\w-]{0,60}?\d)[\w-]{24,}|hv[bs]\.[\w-]{20,}|ATATT3[\w=-]{30,}"
        r"|(?:figd|lin_api|lsv2_(?:pt|sk)|ntn|pcsk|sbp|shp(?:at|ca|pa|ss)|tgp_v1|whsec)_(?=\w{0,40}?\d)\w{24,})"
        r"|\bSG\.[\w-]{16,}\.[\w-]{16,}|\b\d{8,10}:AA[\w-]{30,}|\bAGE-SECRET-KEY-1[A-Z0-9]{40,}"
    ),
    "a JSON web token": r"\beyJ[\w-]{6,}\.(?:eyJ[\w-]{4,}(?:\.[\w-]+)?|[\w-]*\.[\w-]{8,}\.[\w-]{8,})",
    "a Neptune token": r"\beyJhcGlfYWRkcmVzcyI6[\w+/=-]{20,}",
    "an authorization header": (
        r"\b(?i:bearer)\s+(?=[\w.~+/=-]{0,200}?\d)[\w.~+/=-]{16,}"
        r"|\b(?i:authorization)[\"']?\s?[:=]\s?[\"']?(?i:basic|bearer|token)\s+[\w.~+/=-]{6,}"
    ),
    "a private key": (
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-----"
        r"(?:(?s:.{0,9000}?)-----END [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-----"
        r"|(?:[\s\\]{0,9}[A-Za-z0-9+/=]{16,}){0,200})"
    ),
}
# One pattern for all forms is fast on long texts; the single patterns then identify the kind.
_ANY_FORM = re.compile("|".join(_FORMS.values()))
_BY_FORM = {kind: re.compile(form) for kind, form in _FORMS.items()}

# After the colon, a port (host:8080) and a variable ($PASS) are no passwords; nor is a tag before @sha256:.
_URL_PASSWORD = re.compile(
    r"(?<=://)(?P<user>[^\s/:@'\"\[\]]{0,100}):(?!\d{1,5}(?:[/?#]|$))(?!\$\w+[/?#])"
    r"(?P<value>[^\s'\"]{1,300})@(?!sha\d+:)"
)

# The words of a name, also of one in camel case: hfApiToken -> hf, Api, Token.
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# Words of names, by what they imply about the value; `_level` combines them.
_ALWAYS = re.compile(
    r"secrets?|[a-z]*passwords?|passwd|passphrase|credentials?|(?:api|auth|access|secret|private)keys?"
    r"|(?:api|auth|access|bearer|refresh)tokens?"
)
_SHORT = re.compile(r"(?:(?:admin|db|ftp|http|login|mysql|postgres|proxy|redis|root|smtp|user)pass|\w*pwd)")
_PROVIDERS = re.compile(
    r"anthropic|aws|azure|comet|dagshub|gcp|gh|github|gitlab|google|hf|huggingface|hub|mlflow|neptune|openai"
    r"|openrouter|slack|wandb"
)
_QUALIFIERS = re.compile(
    _PROVIDERS.pattern
    + r"|access|account|api|auth|bearer|bot|deploy|encryption|oauth|private|refresh|registry"
    r"|kms|secret|session|signing|ssh|webhook"
)
_SECTIONS = re.compile(_PROVIDERS.pattern + r"|api|auth|credentials?|login|secrets?")
_VOCABULARY = re.compile(
    r"audio|begin|bos|change|cls|end|eos|image|mask|max|min|new|next|num|pad|page|sep|special|start|stop|unk|video|vocab"
)
# Values that are no credentials under any name, up to `_VARIABLE`; `_is_exempt` combines them.
_EMPTY = re.compile(
    r"(?i:|anon|anonymous|auto|default|dummy|empty|env|environment|false|n/a|no-key|none|not-needed|null|prompt"
    r"|redacted|true|unused)"
)

_NUMBER = re.compile(r"[+-]?(?:\d[\d_]*)?\.?\d+(?:[eE][+-]?\d+)?")
_REFERENCE = re.compile(r"(?s)\$\w+|\$[({].*|\{[\w.:,/ -]*\}?|`.*|%\w+%|<.*>|\[.*\]|[*x.•-]{3,}|\W{1,4}")
_PLACE = re.compile(
    r"(?:~\w*|\.{1,2})?/[\w.@%+ -]+(?:/[\w.@%+ -]*)*|[A-Za-z]:\\.*|[a-z][a-z0-9+.-]*://\S*|arn:\S*"
    r"|[\w./-]+\.(?:pem|key|pub|crt|txt|json|ya?ml|env|toml|ini|netrc|token|safetensors)"
)
_VARIABLE = re.compile(r"[A-Z]+[0-9]{0,2}(?:_(?:[A-Z]+[0-9]{0,2}|[0-9]{1,2}))+")
_DIGEST = re.compile(r"(?:sha\d+|md5|blake\w+)[:=-][0-9a-fA-F]{8,}|[0-9a-f]{7,128}|[0-9A-F]{32,128}")
_DIGESTS = re.compile(r"commit|digest|fingerprint|hash|id|revision|sha")
_WANDB_KEY = re.compile(r"(?:local-)?[0-9a-f]{40}")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PIECES = re.compile(r"[\s_.,:;/|+@#=-]+")
_SHELL_KEYS = re.compile(r"args|argv|cmd|command|env|environment|script|setup")

_SETTING = re.compile(  # name: value, "name": "value", NAME=value, --name value
    r"(?<![\w.-])(?P<dashes>--)?(?P<name>(?:[A-Za-z_][\w.-]{0,100}?)?"
    r"(?i:key|token|secret|password|passwd|passphrase|credential|pass|pwd)s?)\\?[\"'\]]{0,2}"
    r"(?:[ \t]{0,3}(?P<sign>:|=>|={1,2})[ \t]{0,3}|(?(dashes)[ \t]+|(?!)))"
    r"(?:[bBfFrRuU]{0,2}\\?(?P<quote>[\"'])(?P<quoted>[^\"'\n]{1,400})\\?(?P=quote)"
    r"|(?P<bare>[^\s\"',;&|)}\]]{1,400}+)(?!\s*=\s))"
)
# Code that computes a value, by a call, an index or an attribute, does not contain the value.
_EXPRESSION = re.compile(r"[A-Za-z_][\w.]*[(\[].*|(?:self|args|config|cfg|os)\.[\w.]+")
# What logs in by other words than a name and a sign: netrc files, and options of some programs.
_LOGIN = re.compile(
    r"(?P<before>\blogin\s{1,9}\S{1,100}\s{1,9}password\s{1,9}|\bsshpass[ ]{1,9}-p[ ]{0,9}[\"']?"
    r"|\bwandb[ ]{1,9}login[ ]{1,9}(?:--?[\w-]{1,30}[ ]{1,9}){0,4}(?=[\w-]{40})"
    r"|\bcurl\b[^\n|;]{0,200}?[ ](?:-[uUx]|--(?:proxy-)?user|--proxy)[ =]{0,9}[\"']?[^\s:/\"']{1,100}:(?!/)"
    r"|\bdocker[ ]{1,9}login\b[^\n|;]{0,200}?[ ]-p[ ]{1,9}[\"']?|\bmysql\w{0,9}\b[^\n|;]{0,200}?[ ]-p[\"']?)"
    r"(?P<value>[^\s\"']{1,300})"
)
# What databases are reached by, which is nothing but pairs: Server=a;Uid=b;Pwd=c or host=a password=c
_CONNECTION = re.compile(
    r"\s*\w[\w ]{0,30}=[^;=]*(?:;\s*\w[\w ]{0,30}=[^;=]*){1,30};?\s*|\w+=[^\s=]+(?:\s+\w+=[^\s=]+){1,30}\s*"
)
_EXAMPLE = re.compile(r":(?:pass(?:word|wd)?|pwd|secret|token)@", re.IGNORECASE)
# A whole line, or the rest after a # outside quotes: in a shell ; separates commands, // occurs in values.
_COMMENT = re.compile(
    r"\s*+((?:#+|//|;+)\s.*)|(?:[^\"'\\#]|\\.|\"(?:[^\"\\]|\\.)*+\"|'[^']*+'|(?<!\s)#|#(?!#*\s))*+(#+\s.*)"
)


class _Name(IntEnum):
    """Which values under a name are credentials: none, random ones, those not made of words, or any text."""

    PLAIN = 0
    RANDOM = 1
    NO_WORDS = 2
    ANY = 3


def reason_of(name: str, value: object) -> str:
    """Return why a setting is a credential, "" if it is none.

    Args:
        name: the dotted key of the setting.
        value: of any type; only text can be a credential.
    """
    return _reason(name, value) if isinstance(value, str) else ""


@lru_cache(maxsize=20_000)
def _reason(name: str, value: str) -> str:
    is_header = name.lower().endswith("authorization") and len(value.split()) == 2  # else it is prose
    if len(value) >= 8 and (kind := form_of(f"{name}: {value}" if is_header else value)):
        return kind
    # W&B keys look like SHA-1 digests, so the name must mention W&B and no digest.
    words = [word.lower() for word in _WORDS.findall(name)]
    if _WANDB_KEY.fullmatch(value) and "wandb" in words and not _DIGESTS.fullmatch(words[-1]):
        return "a W&B key"
    return "its name" if _counts(_level(name), value) else ""


def form_of(text: str) -> str:
    """Return the kind of the first credential with a known form in a text, "" if there is none."""
    if _ANY_FORM.search(text):
        return next(kind for kind, form in _BY_FORM.items() if form.search(text))
    if any(not _is_exempt(found["value"]) for found in _URL_PASSWORD.finditer(text)):
        return "a password in an address"
    return ""


def line_reason(text: str) -> str:
    """Return why a shell line or a command contains a credential, "" if it contains none."""
    if kind := form_of(text):
        return kind
    if any(not _is_exempt(found["value"]) for found in _LOGIN.finditer(text)):
        return "a login"
    return next((f"the value of {name}" for name, _, _ in _settings(text)), "")


def lines_with(text: str, *, by_name: bool) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) of each line that contains a credential, and the reason.

    Args:
        text: of the file; a megabyte takes about 0.3 s.
        by_name: whether values also count by their names, as in a file of settings. In code they do not.
    """
    if not by_name and not form_of(text):
        return
    for number, line in enumerate(text.splitlines(), start=1):
        reason = form_of(_EXAMPLE.sub("", line))
        if by_name and not reason:
            comment = (found[1] or found[2]) if (found := _COMMENT.match(line)) else ""
            reason = line_reason(_EXAMPLE.sub("", line.removesuffix(comment)))
            # A comment is prose, in which a word after a colon is no value.
            if not reason and (named := next(_settings(comment, _Name.NO_WORDS), None)):
                reason = f"the value of {named[0]}"
        if reason:
            yield number, reason


def found_in(
    tree: object, key: str = "", *, known: Collection[str] = (), shell: bool = False, checked: object = None
) -> Iterator[tuple[str, str]]:
    """Yield the credentials in a tree of settings, each as its dotted key and the reason.

    Args:
        tree: mappings, lists and scalars.
        key: the dotted key of the tree.
        known: values of credentials, see `known_values`.
        shell: whether texts are shell lines, which may set variables.
        checked: a tree checked before. Objects that `tree` shares with it (the same object) are skipped.
    """
    if tree is checked:
        return
    before = checked if isinstance(checked, Mapping) else {}
    match tree:
        case Mapping():
            for name, value in tree.items():
                inner = f"{key}.{name}" if key else str(name)
                if kind := form_of(str(name)):
                    yield f"{key or 'the config'}, in the name of a key", kind
                yield from found_in(value, inner, known=known, shell=shell, checked=before.get(name))
            for name in ("name", "key"):  # {name: API_KEY, value: ...}: variables of a container
                if isinstance(named := tree.get(name), str) and (
                    reason := reason_of(named, tree.get("value"))
                ):
                    yield f"{key}.value" if key else "value", reason
        case list() | tuple():
            for option, value in pairwise(tree):  # ["--api-key", "..."]: arguments of a program
                is_named = isinstance(option, str) and isinstance(value, str) and option.startswith("--")
                if is_named and (reason := reason_of(str(option).lstrip("-"), value)):
                    yield key, reason
            for value in tree:
                yield from found_in(value, key, known=known, shell=shell)
        case str():
            names = [key, *(name for name in key.split(".")[:-1] if "password" in name.lower())]
            reason = next(filter(None, (reason_of(name, tree) for name in names)), "")
            if not reason and len(tree) >= 8 and any(value in tree for value in known):
                reason = "a credential of the environment"
            is_line = shell or _SHELL_KEYS.fullmatch(key.rpartition(".")[2].lower())
            if not reason and (is_line or _CONNECTION.fullmatch(tree)):
                reason = line_reason(tree)
            if reason:
                yield key, reason


def known_values(environment: Mapping[str, str]) -> frozenset[str]:
    """Return the credentials in environment variables, so that they can be found wherever they appear.

    Args:
        environment: of a process. Short values and plain words are left out: they occur in harmless texts.
    """
    return frozenset(
        value
        for name, value in environment.items()
        if len(value) >= 8 and _level(name) is _Name.ANY and not _is_exempt(value) and not value.isalpha()
    )


def redacted(text: str, known: Collection[str] = ()) -> str:
    """Return a text with all credentials in it, and these known values of some, replaced by ``***``."""
    for value in known:
        text = text.replace(value, MASK)
    text = _ANY_FORM.sub(MASK, text)
    for pattern in (_URL_PASSWORD, _LOGIN):
        text = pattern.sub(_without_value, text)
    # From the end, so that the positions of the earlier settings stay valid.
    for _, start, end in reversed([*_settings(text)]):
        text = f"{text[:start]}{MASK}{text[end:]}"
    return text


def _without_value(found: re.Match[str]) -> str:
    start, end = (place - found.start() for place in found.span("value"))
    return found[0] if _is_exempt(found["value"]) else f"{found[0][:start]}{MASK}{found[0][end:]}"


def masked(tree: Any, key: str = "") -> Any:
    """Return a tree of settings with credentials replaced by ``***``, for configs recorded earlier."""
    if isinstance(tree, Mapping):
        return {name: masked(value, f"{key}.{name}" if key else str(name)) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [masked(value, key) for value in tree]
    return MASK if reason_of(key, tree) else tree


def _settings(text: str, most: _Name = _Name.ANY) -> Iterator[tuple[str, int, int]]:
    """Yield each setting of a text that is a credential: its name, start and end of its value.

    Args:
        text: to search.
        most: the highest level that a name may have here.
    """
    position = 0
    while found := _SETTING.search(text, position):
        kind = "quoted" if found["quoted"] else "bare"
        position = found.start(kind)  # a value may itself be a setting: --env NAME=...
        if _sets(found, most):
            yield found["name"], position, (position := found.end(kind))


def _sets(found: re.Match[str], most: _Name) -> bool:
    value, level = found["quoted"] or found["bare"], _level(found["name"])
    if found["bare"] and (_EXPRESSION.fullmatch(value) or _is_argument(found)):
        return False
    if found["name"] == "TOKEN" and found["sign"] == "=":
        level = _Name.ANY  # a variable that a shell sets
    return _counts(min(level, most), value)


def _is_argument(found: re.Match[str]) -> bool:
    """Return whether the value is a variable of code, named like a credential: ``api_key=api_key``."""
    is_code = not found["dashes"] and not found["name"].isupper()
    return is_code and found["bare"].isidentifier() and _level(found["bare"]) is not _Name.PLAIN


@lru_cache(maxsize=20_000)
def _level(name: str) -> _Name:
    """Return what a setting's name implies. The last word decides: ``api_key_env`` holds no key."""
    section, _, own = re.sub(r"/|\[.*?\]", ".", name).rstrip(".").rpartition(".")
    words = [word.lower() for word in _WORDS.findall(own)]
    if not words or "public" in words:
        return _Name.PLAIN
    *before, last = words
    if _ALWAYS.fullmatch(last) or (_SHORT.fullmatch("".join(words[-2:])) and own not in ("PWD", "OLDPWD")):
        return _Name.ANY
    if last not in ("key", "keys", "token", "tokens"):
        return _Name.PLAIN
    if any(map(_QUALIFIERS.fullmatch, before)):
        return _Name.ANY
    if any(map(_VOCABULARY.fullmatch, before)):
        return _Name.RANDOM
    if last == "token":
        return _Name.ANY if own.isupper() and before else _Name.NO_WORDS
    if own.isupper() or any(_SECTIONS.fullmatch(word.lower()) for word in _WORDS.findall(section)):
        return _Name.NO_WORDS
    return _Name.RANDOM


def _counts(level: _Name, value: str) -> bool:
    """Return whether a value is a credential under a name of this level."""
    if level is _Name.PLAIN or _is_exempt(value):
        return False
    if level is _Name.ANY:
        return True
    if level is _Name.NO_WORDS:
        return not _is_words(value)
    return not (_DIGEST.fullmatch(value) or _UUID.fullmatch(value)) and _is_random(value)


@lru_cache(maxsize=20_000)
def _is_exempt(value: str) -> bool:
    """Return whether a value cannot be a credential under any name: a number, a path, a reference."""
    forms = (_EMPTY, _NUMBER, _REFERENCE, _PLACE, _VARIABLE)
    return any(form.fullmatch(value.strip()) for form in forms)


def _is_words(value: str) -> bool:
    """Return whether a value is made of words: letters, short numbers, short mixtures such as ``qwen3``."""
    pieces = [piece for piece in _PIECES.split(value) if piece]
    return len(value) < 6 or all(
        (piece.isalpha() and len(piece) <= 24) or (piece.isdigit() and len(piece) <= 6) or len(piece) < 6
        for piece in pieces
    )


def _is_random(value: str) -> bool:
    """Return whether a long piece of the value often changes between letters and digits."""
    for piece in re.split(r"[\s_.,:;/|@#-]+", value):
        if len(piece) < 16 or not any(map(str.isdigit, piece)):
            continue
        # Count how often the kind of character changes: a random piece changes at every few characters.
        kinds = ["d" if c.isdigit() else "u" if c.isupper() else "l" if c.isalpha() else "o" for c in piece]
        changes = sum(a != b for a, b in pairwise(kinds))
        if changes >= len(piece) / 4:
            return True
    return False
