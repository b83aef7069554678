"""Parse the ``print fmt`` of an event: a C format string, and the expressions that it prints.

    "prev_comm=%s flags=%s", REC->prev_comm, __print_flags(REC->flags, "|", { 1, "A" }, { 2, "B" })

Source of the language: the kernel's ``TP_printk`` with expanded macros; libtraceevent's
event-parse.c lists the parts of C that occur.

A constant of an enum has a name in the text, and a value that only the kernel's type information
tells: the caller gives it in *constants*, or the name becomes an Unknown.

Rule: pure; the parser does not guess.  An argument that it does not understand becomes an Unparsed
with the reason, and the others still count.  Anything else raises Unparsable.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from lttd.abi.print_fmt_nodes import (
    Binary,
    Call,
    Cast,
    Conditional,
    Conversion,
    FieldRef,
    Index,
    Node,
    Number,
    Pairs,
    PrintFmt,
    Text,
    Unary,
    Unknown,
    Unparsable,
    Unparsed,
    holds_unknown,
)
from lttd.abi.print_fmt_tokens import is_type, number_of, tokens_of, unescaped
from lttd.limits import NUMBER_DIGITS, PRINT_FMT_DEPTH

# Each pattern takes linear time: its repetitions are possessive (``*+``) and never backtrack.
_CONVERSION: Final = re.compile(
    r"%(?P<flags>[-+ #0]*+)(?P<width>[0-9]++|\*)?+(?:\.(?P<precision>[0-9]++|\*)?+)?+"
    r"(?P<length>hh|h|ll|l|z|Z|t|j|L|q)?(?P<letter>[diouxXcspn%])"
)
# Linux lib/vsprintf.c, pointer(): the extensions of %p, the longest first.
_EXTENSION: Final = re.compile(
    r"I[46]?S[pfs]*+c?[pfs]*+|[Ii][46][hnbl]?c?|[iI]6c|[Mm][FR]?|U[bBlL]|U|[sS]R?|[fF]|x|"
    r"b?l|e|K|d[dt]?|h[CDN]?|a[dp]?|B|R|r|[Dg]|"
)
_PRECEDENCE: Final = (
    ("||",), ("&&",), ("|",), ("^",), ("&",), ("==", "!="), ("<", ">", "<=", ">="),
    ("<<", ">>"), ("+", "-"), ("*", "/", "%"),
)  # fmt: skip
_NO_CONSTANTS: Final[Mapping[str, int]] = {}
_LEVELS: Final = {word: level for level, words in enumerate(_PRECEDENCE) for word in words}


def parse_print_fmt(
    text: str, long_bytes: int = 8, constants: Mapping[str, int] = _NO_CONSTANTS
) -> PrintFmt:
    """Parse the text after ``print fmt:``; *constants* has the values of enum constants by name.

    Raises:
        Unparsable: it has a part that this parser does not know.
    """
    parser = _Parser(text, long_bytes, constants)
    told = parser.strings()
    arguments: list[Node] = []
    while parser.accept(","):
        arguments.append(parser.argument())
    if parser.token is not None:
        raise Unparsable(f"{parser.token!r} after the arguments")
    return PrintFmt(tuple(_pieces(told, arguments)))


def _pieces(fmt: bytes, arguments: Sequence[Node]) -> list[bytes | Conversion]:
    given = iter(arguments)
    told = fmt.decode("latin-1")  # one letter per byte, for any bytes

    def star(stated: str | None) -> int | Node | None:
        return next(given) if stated == "*" else _width(stated)

    pieces: list[bytes | Conversion] = []
    at = 0
    try:
        for found in _CONVERSION.finditer(told):
            if found.start() < at:
                continue
            pieces.append(told[at : found.start()].encode("latin-1"))
            at = found.end()
            if found["letter"] == "%":
                pieces.append(b"%")
                continue
            width, precision = star(found["width"]), star(found["precision"])
            if precision is None and "." in found[0]:
                precision = 0
            extension = ""
            if found["letter"] == "p":
                behind = _EXTENSION.match(told, at)
                extension = behind[0] if behind else ""
                at += len(extension)
            pieces.append(
                Conversion(
                    found["flags"],
                    width,
                    precision,
                    found["length"] or "",
                    found["letter"],
                    extension,
                    next(given),
                )
            )
    except StopIteration:
        raise Unparsable("more conversions than arguments") from None
    rest = told[at:]
    if "%" in rest:
        raise Unparsable(f"conversion {rest[rest.index('%') :][:8]!r}")
    return [piece for piece in [*pieces, rest.encode("latin-1")] if piece != b""]


def _width(stated: str | None) -> int | None:
    if stated and len(stated) > NUMBER_DIGITS.most:
        raise Unparsable(f"a width of {len(stated)} digits")
    return int(stated) if stated else None


class _Parser:
    """A recursive descent parser with one token of look-ahead.

    Invariant: ``_height`` is the height of the last parsed tree.  Neither it nor the parser's own
    depth exceeds PRINT_FMT_DEPTH, so code that walks the tree may recurse.
    """

    def __init__(self, text: str, long_bytes: int, constants: Mapping[str, int]) -> None:
        self._long_bits = 8 * long_bytes
        self._constants = constants
        self._tokens = tokens_of(text)
        self._at = 0
        self._depth = 0
        self._height = 0

    @property
    def token(self) -> str | None:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else None

    @property
    def _token_type(self) -> str | None:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else None

    def accept(self, token: str) -> bool:
        if self.token == token and self._token_type == "operator":
            self._at += 1
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self.accept(token):
            self._wrong(f"expected {token!r}, not")

    def _wrong(self, what: str) -> NoReturn:
        raise Unparsable(f"{what} {self.token!r}")

    def strings(self) -> bytes:
        """Return adjoining string constants as one."""
        parts = []
        while self._token_type == "string":
            parts.append(unescaped(str(self.token)[1:-1]))
            self._at += 1
        if not parts:
            self._wrong("expected a string, not")
        return b"".join(parts)

    def argument(self) -> Node:
        """Return the expression up to the next comma outside of brackets, or an Unparsed."""
        begin = self._at
        try:
            found = self.expression()
            if self.token is not None and not self._stands(","):
                self._wrong("after an argument:")
        except Unparsable as error:
            self._depth = self._height = 0
            self._at = self._end_of_argument(begin)
            words = [token for _, token in self._tokens[begin : self._at]]
            return Unparsed(str(error), _fields_in(words))
        return found

    def _stands(self, token: str) -> bool:
        return self.token == token and self._token_type == "operator"

    def _end_of_argument(self, at: int) -> int:
        depth = 0
        while at < len(self._tokens):
            token_type, token = self._tokens[at]
            if token_type == "operator":
                if token == "," and depth <= 0:
                    break
                depth += (token in "([{") - (token in ")]}")
            at += 1
        return at

    def expression(self) -> Node:
        self._deeper(1)
        condition = self._binary(0)
        if self.accept("?"):
            height = self._height
            # GNU C allows an empty middle, which means the condition itself.
            then = condition if self.token == ":" else self.expression()
            height = max(height, self._height)
            self._expect(":")
            condition = Conditional(condition, then, self.expression())
            self._grow(height)
        self._deeper(-1)
        return condition

    def _deeper(self, levels: int) -> None:
        self._depth += levels
        if self._depth > PRINT_FMT_DEPTH.most:
            raise Unparsable("nested too deeply")

    def _grow(self, height: int = 0) -> None:
        """Put a node on top of the last parsed tree, and of another tree of *height*."""
        self._height = max(self._height, height) + 1
        if self._height > PRINT_FMT_DEPTH.most:
            raise Unparsable("nested too deeply")

    def _binary(self, least: int) -> Node:
        """Parse operators of at least level *least*, which group from the left."""
        left = self._unary()
        while self._token_type == "operator" and _LEVELS.get(str(self.token), -1) >= least:
            operator, height = str(self.token), self._height
            self._at += 1
            left = Binary(operator, left, self._binary(_LEVELS[operator] + 1))
            self._grow(height)
        return left

    def _unary(self) -> Node:
        for operator in "-+~!*&":
            if self.accept(operator):
                self._deeper(1)
                operand = self._unary()
                self._deeper(-1)
                self._grow()
                return operand if operator == "+" else Unary(operator, operand)
        named = self._cast()
        if named is not None and self.accept("{"):
            return self._compound()
        if named is not None:
            self._deeper(1)
            cast = Cast(named, self._unary())
            self._deeper(-1)
            self._grow()
            return cast
        self._height = 1
        return self._postfix(self._primary())

    def _cast(self) -> str | None:
        """Parse ``(type)`` if it is next."""
        if self.token != "(" or self._token_type != "operator":
            return None
        at = self._at + 1
        words = []
        while at < len(self._tokens) and self._tokens[at][1] != ")":
            token_type, word = self._tokens[at]
            if token_type != "name" and word != "*":
                return None
            words.append(word)
            at += 1
        if at >= len(self._tokens) or not is_type(words):
            return None
        self._at = at + 1
        return " ".join(words)

    def _compound(self) -> Node:
        """Parse ``.member = value }``, the rest of a compound literal.

        Linux 3.x and 4.x: ``((ktime_t) { .tv64 = REC->now }).tv64``.
        """
        self._expect(".")
        member = self.token
        self._at += 1
        if self.token != "=":
            self._wrong("expected '=', not")
        self._at += 1
        self._deeper(1)
        value = self.expression()
        self._deeper(-1)
        self._expect("}")
        self._grow()
        return self._postfix(Call(f"{{.{member}}}", (value,)))

    def _primary(self) -> Node:
        token_type, token = self._token_type, self.token
        if token_type == "string":
            return Text(self.strings())
        if self.accept("("):
            inside = self.expression()
            self._expect(")")
            return inside
        if token_type is None or token is None or token_type == "operator":
            self._wrong("expected a value, not")
        self._at += 1
        if token_type == "number":
            return number_of(token, self._long_bits)
        if token_type == "char":
            return Number(ord(unescaped(token[1:-1])[:1] or b"\0"), 32, signed=True)
        return self._named(token)

    def _named(self, token: str) -> Node:
        constant = {"true": 1, "false": 0, "NULL": 0}.get(token)
        if constant is not None:
            return Number(constant, self._long_bits if token == "NULL" else 32, signed=True)
        if token == "REC":
            return FieldRef("")
        if token == "sizeof":
            return self._sizeof()
        if self.accept("("):
            return Call(token, self._arguments())
        value = self._constants.get(token)
        return Unknown(token) if value is None else _constant(value)

    def _postfix(self, node: Node) -> Node:
        while True:
            if self.accept("->") or self.accept("."):
                if isinstance(node, Call) and node.name == f"{{.{self.token}}}":
                    node = node.arguments[0]
                    self._at += 1
                    continue
                is_record = isinstance(node, FieldRef) and not node.name
                if not is_record or self._token_type != "name":
                    self._wrong("member")
                node = FieldRef(str(self.token))
                self._at += 1
                if node.name == "ent" and self.accept("."):  # struct trace_entry ent
                    node = FieldRef(f"common_{self.token}")
                    self._at += 1
            elif self.accept("["):
                height = self._height
                node = Index(node, self.expression())
                self._expect("]")
                self._grow(height)
            else:
                return node

    def _sizeof(self) -> Node:
        named = self._cast()
        if named is None:
            self._expect("(")
            inside = self.expression()
            self._expect(")")
            return Call("sizeof", (inside,))
        return Call("sizeof", (Text(named.encode()),))

    def _arguments(self) -> tuple[Node, ...]:
        found: list[Node] = []
        pairs: list[tuple[Node, bytes]] = []
        paired, height = False, 0
        while not self.accept(")"):
            if self.accept("{"):
                paired = True
                pairs += self._pair()
            elif self._token_type == "name" and self._is_bare():
                # A field's name, the argument of __get_str and similar functions.
                found.append(FieldRef(str(self.token)))
                self._at += 1
            else:
                found.append(self.expression())
            height = max(height, self._height)
            if not self.accept(",") and self.token != ")":
                self._wrong("in arguments:")
        self._grow(height)
        return (*found, Pairs(tuple(pairs))) if paired else tuple(found)

    def _pair(self) -> list[tuple[Node, bytes]]:
        """Parse ``value, "name" }``; return none for ``-1, NULL`` or an empty pair at the end."""
        if self.accept("}"):
            return []
        value = self.expression()
        self._expect(",")
        name = self.expression()
        self._expect("}")
        if isinstance(name, Text):
            return [] if holds_unknown(value) else [(value, name.value)]
        null = name.operand if isinstance(name, Cast) else name
        if isinstance(null, Number) and not null.value:
            return []
        raise Unparsable(f"name of a value: {name}")

    def _is_bare(self) -> bool:
        after = self._tokens[self._at + 1][1] if self._at + 1 < len(self._tokens) else None
        return after in (",", ")") and self.token not in ("REC", "true", "false", "NULL")


def _constant(value: int) -> Number:
    """Return a constant of an enum, with the type that C gives it."""
    if -(1 << 31) <= value < 1 << 31:
        return Number(value, 32, signed=True)
    return Number(value, 32 if 0 <= value < 1 << 32 else 64, signed=value < 0)


def _fields_in(words: list[str]) -> tuple[str, ...]:
    """Return the fields in some tokens: REC->name, __get_str(name)."""
    found: dict[str, None] = {}
    for before, sign, name in zip(words, words[1:], words[2:], strict=False):
        if (before == "REC" and sign == "->") or (before.startswith("__get_") and sign == "("):
            found[name] = None
    return tuple(found)


def parse_conversions(fmt: bytes) -> PrintFmt:
    """Parse a format string whose arguments are elsewhere; each argument and ``*`` is Unknown.

    Raises:
        Unparsable: it has a conversion that this parser does not know.
    """
    return PrintFmt(tuple(_pieces(fmt, [Unknown("")] * (3 * fmt.count(b"%")))))
