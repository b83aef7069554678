"""The tokens of a ``print fmt``: C's strings, numbers, names of types and operators.

Rule: each pattern takes linear time: its repetitions are possessive (``*+``) and never backtrack.
"""

import re
from typing import Final

from lttd.abi.print_fmt_nodes import Number, Unparsable
from lttd.limits import NUMBER_DIGITS

_TOKEN: Final = re.compile(
    r"""\s*+(?:
        (?P<string>"(?:[^"\\]++|\\.)*+")
      | (?P<char>'(?:[^'\\]|\\.[0-9a-f]*+)')
      | (?P<number>0[xX][0-9a-fA-F]++[uUlL]*+|[0-9]++[uUlL]*+)
      | (?P<name>[A-Za-z_]\w*+)
      | (?P<operator>->|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^~!<>?:,.(){}\[\]])
      | (?P<other>[=;\#@$`\\])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPES: Final = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a"}
_ESCAPED: Final = re.compile(rb"\\(x[0-9a-fA-F]++|[0-7]{1,3}+|.)", re.DOTALL)
_SIZED: Final = {f"{u}{k}{bits}" for u in ("", "__") for k in "us" for bits in (8, 16, 32, 64)}
_ORDERED: Final = {f"__{order}{bits}" for order in ("le", "be") for bits in (16, 32, 64)}
_TYPE_WORDS: Final = (
    {"unsigned", "signed", "int", "long", "char", "short", "void", "const", "volatile", "bool"}
    | {"struct", "enum", "union", "uint", "ulong", "ushort", "uchar"}
    | _SIZED
    | _ORDERED
)


def tokens_of(text: str) -> list[tuple[str, str]]:
    """Return the type and the text of each token.

    Raises:
        Unparsable: it has a character that begins none.
    """
    found, at = [], 0
    text = text.rstrip()
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None or token.lastgroup is None:
            raise Unparsable(f"{text[at : at + 12]!r}")
        found.append((token.lastgroup, token[token.lastgroup]))
        at = token.end()
    return found


def number_of(token: str, long_bits: int) -> Number:
    """Return a constant with the first type of C's list that can hold it."""
    digits = token.rstrip("uUlL")
    if len(digits) > NUMBER_DIGITS.most:
        raise Unparsable(f"a constant of {len(digits)} digits")
    suffix = token[len(digits) :].lower()
    hexadecimal = digits[:2].lower() == "0x"
    octal = len(digits) > 1 and digits[0] == "0" and not hexadecimal
    try:
        value = int(digits, 16 if hexadecimal else 8 if octal else 10)
    except ValueError:
        raise Unparsable(f"number {token!r}") from None
    least = 64 if "ll" in suffix else long_bits if "l" in suffix else 32
    for bits in (32, 64):
        for signed in (True, False):
            allowed = not signed or "u" not in suffix
            allowed &= signed or hexadecimal or octal or "u" in suffix
            if bits >= least and allowed and value < 1 << (bits - signed):
                return Number(value, bits, signed)
    if value >= 1 << 64:
        raise Unparsable(f"constant {token}")
    return Number(value, 64, signed=False)


def unescaped(told: str) -> bytes:
    """Return the bytes of a C string constant; an escape is one byte."""
    if "\\" not in told:
        return told.encode()

    def plain(found: re.Match[bytes]) -> bytes:
        code = found[1]
        if code[:1] == b"x" and len(code) > 1:
            return bytes((int(code[-2:].lstrip(b"x"), 16),))
        if code.isdigit():
            return bytes((int(code, 8) & 0xFF,))
        return _ESCAPES.get(code, code)

    return _ESCAPED.sub(plain, told.encode())


def is_type(words: list[str]) -> bool:
    """Tell whether *words* name a C type."""
    names = [word for word in words if word != "*"]
    if not names:
        return False
    if names[0] in ("struct", "enum", "union", "const") or "*" in words:
        return True
    return all(word in _TYPE_WORDS or word.endswith("_t") for word in names)
