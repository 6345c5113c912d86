"""Pickles read as data: a small interpreter that knows plain values and arrays, and runs nothing.

A pickle is a program for a stack machine, and Python's own interpreter of it imports what it is
told to, calls it, and trusts the sizes that it reads. This one has no means to import or call:
a name is a token, and the few calls that an array of numbers needs are worked out here. Whatever
else a file asks for is refused by its name. Time and memory are proportional to the file's size.
"""

from __future__ import annotations

import codecs
import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

_LONGEST_NUMBER = 8
"""Bytes of the longest whole number."""

_ENCODINGS = ("latin1", "latin-1", "utf-8", "ascii")


@dataclass(frozen=True, eq=False)
class Array:
    """A numpy array in the file, of at most one dimension longer than 1.

    Attributes:
        values: (n,) its numbers.
    """

    values: NDArray[np.generic]


def read_pickle(data: bytes) -> Any:
    """Return what a pickle of any protocol holds.

    Args:
        data: the file.

    Returns:
        None, truth values, numbers, text, bytes, lists, tuples, dictionaries with text as keys,
        and `Array` for arrays.

    Raises:
        ValueError: the pickle is damaged, or holds or asks for anything else.
    """
    return _Machine(data).run()


class _Name(NamedTuple):
    """Something that the file wants by its name; never looked up."""

    module: str
    name: str


@dataclass
class _Dtype:
    """Numpy's description of numbers: kind and bytes, and the order of bytes."""

    code: str
    order: str = "="

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


@dataclass
class _Unfilled:
    """An array whose content follows."""

    array: Array | None = None


_DTYPE, _NDARRAY = _Name("numpy", "dtype"), _Name("numpy", "ndarray")
_ENCODE = _Name("_codecs", "encode")
_BYTES = (_Name("__builtin__", "bytes"), _Name("builtins", "bytes"))
_PACKAGES = ("numpy.core", "numpy._core")
_RECONSTRUCT = tuple(_Name(f"{p}.multiarray", "_reconstruct") for p in _PACKAGES)
_SCALAR = tuple(_Name(f"{p}.multiarray", "scalar") for p in _PACKAGES)
_FROM_BUFFER = tuple(_Name(f"{p}.numeric", "_frombuffer") for p in _PACKAGES)
_KNOWN = frozenset({_DTYPE, _NDARRAY, _ENCODE, *_BYTES, *_RECONSTRUCT, *_SCALAR, *_FROM_BUFFER})


def _refuse(problem: str) -> NoReturn:
    raise ValueError(problem)


class _Machine:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while (code := self.take(1)) != b".":
            step = _STEPS.get(code)
            if step is None:
                _refuse(f"it uses an instruction that data do not need: {code!r}")
            step(self)
        return self.result(self.pop())

    # ---- the file ------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if count < 0 or len(taken) < count:
            _refuse("it ends before its data do")
        self.at += count
        return taken

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            _refuse("it ends before its data do")
        line = self.data[self.at : end]
        self.at = end + 1
        return line

    # ---- the stack -----------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        # What lies below a mark belongs to whoever set it.
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            _refuse("it takes more from its stack than it put there")
        return self.stack.pop()

    def marked(self) -> list[Any]:
        """Take everything down to the last mark."""
        if not self.marks:
            _refuse("it takes more from its stack than it put there")
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def top(self, kind: type) -> Any:
        value = self.pop()
        if type(value) is not kind:
            _refuse(
                f"it fills a {type(value).__name__.strip('_')} as if it were a {kind.__name__}"
            )
        self.push(value)
        return value

    def result(self, value: Any) -> Any:
        """Return a finished value; an array only once it is filled."""
        if isinstance(value, _Unfilled):
            if value.array is None:
                _refuse("it has an array without content")
            return value.array
        if isinstance(value, _Name | _Dtype):
            _refuse("it holds a name or a type where data belong")
        return value

    # ---- steps ---------------------------------------------------------------------------

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            _refuse("a key has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            text = _text(key) if isinstance(key, bytes) else key
            if not isinstance(text, str):  # anything else might be made to hash for ever
                _refuse("a key is no text")
            target[text] = self.result(value)

    def append(self, items: list[Any]) -> None:
        self.top(list).extend(map(self.result, items))

    def name(self, module: Any, name: Any) -> None:
        parts = [_text(part) if isinstance(part, bytes) else part for part in (module, name)]
        if not all(isinstance(part, str) for part in parts):
            _refuse("it asks for something that has no name")
        asked = _Name(*parts)
        if asked not in _KNOWN:
            shown = f"{asked.module}.{asked.name}"
            _refuse(f"it asks for {shown[:80]!r}, which data do not need")
        self.push(asked)

    def call(self) -> None:
        arguments, name = self.pop(), self.pop()
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            _refuse("it calls something that has no name")
        try:
            self.push(_called(name, arguments))
        except (TypeError, LookupError):
            _refuse(f"it calls {name.name!r} with what that does not take")

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        try:
            if isinstance(target, _Dtype):
                target.order = _byte_order(state[1])
            elif isinstance(target, _Unfilled):
                target.array = _array(state[1], state[2], state[4])
            else:
                _refuse("it changes something that is no array")
        except (TypeError, LookupError):
            _refuse("an array is not written as numpy writes it")
        self.push(target)

    def recall(self, number: int) -> None:
        if number not in self.memo:
            _refuse("it refers to something that it does not have")
        self.push(self.memo[number])

    def memoize(self, number: int) -> None:
        value = self.pop()
        self.memo[number] = value
        self.push(value)


def _called(name: _Name, arguments: tuple[Any, ...]) -> Any:
    """Return what a known call gives."""
    if name == _DTYPE:
        code = arguments[0]
        return _Dtype(_kind(_text(code) if isinstance(code, bytes) else code))
    if name in _RECONSTRUCT:
        if arguments[0] != _NDARRAY:
            _refuse("an array is of a kind that data do not need")
        return _Unfilled()
    if name in _FROM_BUFFER:
        return _Unfilled(_array(arguments[2], arguments[1], arguments[0]))
    if name in _SCALAR:
        return _array((), arguments[0], arguments[1]).values.item()
    if name == _ENCODE:
        text, encoding = arguments[0], (*arguments, "utf-8")[1]
        chosen = _text(encoding) if isinstance(encoding, bytes) else encoding
        if not isinstance(text, str) or chosen not in _ENCODINGS:
            _refuse("it encodes something else than text")
        return text.encode(chosen)
    if name in _BYTES and not arguments:
        return b""
    _refuse(f"it calls {name.name!r}, which data do not need")


def _kind(code: Any) -> str:
    if not isinstance(code, str) or not re.fullmatch(r"[iu][1248]|f[48]", code):
        _refuse(f"an array holds something else than numbers: {str(code)[:20]!r}")
    return code


def _byte_order(order: Any) -> str:
    text = _text(order) if isinstance(order, bytes) else order
    if text not in ("<", ">", "=", "|"):
        _refuse("an array's numbers have no order of bytes")
    return str(text)


def _array(shape: Any, dtype: Any, content: Any) -> Array:
    if not isinstance(dtype, _Dtype):
        _refuse("an array has no type")
    raw = content.encode("latin1") if isinstance(content, str) else content
    sizes = shape if isinstance(shape, tuple) else (shape,)
    if not isinstance(raw, bytes) or not all(type(size) is int and size >= 0 for size in sizes):
        _refuse("an array is not written as numpy writes it")
    kind = dtype.numpy()
    if sum(size != 1 for size in sizes) > 1 and math.prod(sizes):
        _refuse(f"an array has the shape {str(sizes)[:60]}, lists are needed")
    if math.prod(sizes) * kind.itemsize != len(raw):
        _refuse("an array has more or fewer numbers than it says")
    values = np.frombuffer(raw, dtype=kind)
    return Array(values.astype(kind.newbyteorder("=")))


# ---- the instructions ------------------------------------------------------------------------


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        _refuse(f"it has text that is not UTF-8: {raw[:40]!r}")


def _whole(raw: bytes) -> int:
    if len(raw) > _LONGEST_NUMBER:
        _refuse(f"it has a number of {len(raw)} bytes")
    return int.from_bytes(raw, "little", signed=True)


def _whole_line(line: bytes) -> int | bool:
    if line in (b"00", b"01"):
        return line == b"01"
    if not re.fullmatch(rb"[+-]?\d{1,19}L?", line):
        _refuse(f"it has no number where one belongs: {line[:40]!r}")
    return int(line.rstrip(b"L"))


def _real_line(line: bytes) -> float:
    try:
        return float(line[:40])
    except ValueError:
        _refuse(f"it has no number where one belongs: {line[:40]!r}")


def _quoted_line(line: bytes) -> bytes:
    quoted = line.strip()
    if len(quoted) < 2 or quoted[:1] not in (b"'", b'"') or quoted[:1] != quoted[-1:]:
        _refuse("it has text without quotes")
    try:
        return codecs.escape_decode(quoted[1:-1])[0]
    except ValueError:
        _refuse("it has text that cannot be read")


def _escaped_line(line: bytes) -> str:
    try:
        return line.decode("raw-unicode-escape")
    except UnicodeDecodeError:
        _refuse("it has text that cannot be read")


_Step = Callable[[_Machine], None]


def _constant(value: Any) -> _Step:
    return lambda m: m.push(value)


def _fresh(kind: type) -> _Step:
    return lambda m: m.push(kind())


def _fixed(layout: str) -> _Step:
    return lambda m: m.push(m.number(layout))


def _counted(layout: str, read: Callable[[bytes], Any]) -> _Step:
    return lambda m: m.push(read(m.take(m.number(layout))))


def _lined(read: Callable[[bytes], Any]) -> _Step:
    return lambda m: m.push(read(m.line()))


def _tuple_of(count: int) -> _Step:
    def step(m: _Machine) -> None:
        items = [m.pop() for _ in range(count)]
        m.push(tuple(items[::-1]))

    return step


def _pair(m: _Machine) -> list[Any]:
    value, key = m.pop(), m.pop()
    return [key, value]


def _dictionary(m: _Machine) -> None:
    items = m.marked()
    m.push({})
    m.set_items(items)


def _stacked_name(m: _Machine) -> None:
    name, module = m.pop(), m.pop()
    m.name(module, name)


def _repeat(m: _Machine) -> None:
    value = m.pop()
    m.push(value)
    m.push(value)


def _drop_marked(m: _Machine) -> None:
    m.marked()


def _memo_line(m: _Machine) -> int:
    return int(_whole_line(m.line()))


_STEPS: dict[bytes, _Step] = {
    b"\x80": lambda m: m.number("<B") <= 5 or _refuse("it is of a later protocol"),
    b"\x95": lambda m: m.number("<Q"),  # length of a frame: only a hint for reading ahead
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"0": lambda m: m.pop(),
    b"1": _drop_marked,
    b"2": _repeat,
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b"I": _lined(_whole_line),
    b"L": _lined(_whole_line),
    b"J": _fixed("<i"),
    b"K": _fixed("<B"),
    b"M": _fixed("<H"),
    b"\x8a": _counted("<B", _whole),
    b"\x8b": _counted("<i", _whole),
    b"F": _lined(_real_line),
    b"G": _fixed(">d"),
    b"S": _lined(_quoted_line),
    b"T": _counted("<i", bytes),
    b"U": _counted("<B", bytes),
    b"C": _counted("<B", bytes),
    b"B": _counted("<I", bytes),
    b"\x8e": _counted("<Q", bytes),
    b"\x96": _counted("<Q", bytes),
    b"V": _lined(_escaped_line),
    b"X": _counted("<I", _text),
    b"\x8c": _counted("<B", _text),
    b"\x8d": _counted("<Q", _text),
    b")": _fresh(tuple),
    b"]": _fresh(list),
    b"}": _fresh(dict),
    b"t": lambda m: m.push(tuple(m.marked())),
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"l": lambda m: m.push([m.result(item) for item in m.marked()]),
    b"a": lambda m: m.append([m.pop()]),
    b"e": lambda m: m.append(m.marked()),
    b"d": _dictionary,
    b"s": lambda m: m.set_items(_pair(m)),
    b"u": lambda m: m.set_items(m.marked()),
    b"p": lambda m: m.memoize(_memo_line(m)),
    b"q": lambda m: m.memoize(m.number("<B")),
    b"r": lambda m: m.memoize(m.number("<I")),
    b"\x94": lambda m: m.memoize(len(m.memo)),
    b"g": lambda m: m.recall(_memo_line(m)),
    b"h": lambda m: m.recall(m.number("<B")),
    b"j": lambda m: m.recall(m.number("<I")),
    b"c": lambda m: m.name(m.line(), m.line()),
    b"\x93": _stacked_name,
    b"R": lambda m: m.call(),
    b"b": lambda m: m.build(),
}
"""What each byte does. Not here: whatever makes objects, extensions, references to outside."""
