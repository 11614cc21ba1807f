"""Small damages of a valid file, each drawn by the caller.

A `Pick` returns a number below its argument: hypothesis, atheris and a seeded generator are
one each, so that a test shrinks what a fuzzer found.
"""

import copy
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

__all__ = [
    "JUNK",
    "Damage",
    "Pick",
    "damage_bytes",
    "damage_external",
    "damage_gguf",
    "damage_json",
    "damage_lines",
    "damage_onnx",
    "damage_safetensors",
    "damage_yaml",
    "damage_zip",
    "deep",
]

Pick = Callable[[int], int]
Damage = Callable[[bytes, Pick], bytes]


def deep(levels: int) -> Any:
    """A list in a list, so many levels down."""
    nested: Any = []
    for _ in range(levels):
        nested = [nested]
    return nested


# What stands where something else should: other types, edges of ranges, names of files
# elsewhere, text that no encoding takes, and depth.
JUNK: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    7,
    2**31,
    2**63,
    10**40,
    1e308,
    float("nan"),
    float("inf"),
    0.5,
    "",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a" * 5000,
    "\x00",
    "\ud800",
    "\u202e\x1b[31m",
    "[red]{x}%s",
    [],
    [1, 2],
    [None],
    ["x"],
    {},
    {"": None},
    {"version": 1},
    deep(40),
    deep(900),
)

_INTEGERS = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, -(2**31), 2**32, 2**40, 2**62, 2**63 - 1)
_TEXTS = ("", "x", "..", "../../etc/passwd", "/etc/passwd", "\x00", "a" * 3000, "data")
_PLACES = (
    "../outside.onnx.data",
    "../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "a/../../x",
    ".",
    "",
    "out",
    "outside.onnx",
    "outside.onnx.data/",
    "./outside.onnx.data",
    "C:\\x",
    "..\\x",
    "\x00",
    "\udcff".encode("utf-8", "replace").decode(),
    "a" * 3000,
    "missing",
)
# As far as the keys, values and tensors of a small model are told.
_GGUF_HEADER = 6000
# Bytes that formats take for lengths, ends and beginnings.
_CHUNKS = (b"\xff" * 8, b"\x00" * 8, b"PK\x03\x04", b"{", b'"', b"\x80", b"[" * 2000, b"\n")


def damage_bytes(data: bytes, pick: Pick) -> bytes:
    """Cuts, turns, repeats or replaces some bytes, wherever they are."""
    at = pick(len(data) + 1)
    kind = pick(5)
    if kind == 0:
        return data[:at]
    if kind == 1 and data:
        at = min(at, len(data) - 1)
        return data[:at] + bytes([data[at] ^ (1 << pick(8))]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + _CHUNKS[pick(len(_CHUNKS))] + data[at:]
    if kind == 3:
        chunk = _CHUNKS[pick(len(_CHUNKS))]
        return data[:at] + chunk + data[at + len(chunk) :]
    end = at + pick(64)
    return data[:at] + data[at:end] * (1 + pick(3)) + data[end:]


def damage_json(data: bytes, pick: Pick) -> bytes:
    """Replaces, drops or doubles one value of a JSON text."""
    text: str = json.dumps(_damaged(json.loads(data), pick))
    return text.encode()


def _damaged(value: Any, pick: Pick) -> Any:
    """Goes down a random way and changes what it meets there."""
    inside = isinstance(value, dict | list) and value and pick(5)
    if not inside:
        return JUNK[pick(len(JUNK))]
    changed = copy.copy(value)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[pick(len(keys))]
    if pick(8) == 0:
        del changed[key]
    elif pick(16) == 0 and isinstance(changed, list):
        changed.append(changed[key])
    else:
        changed[key] = _damaged(value[key], pick)
    return changed


def damage_yaml(data: bytes, pick: Pick) -> bytes:
    """Adds what YAML alone has: references to itself, a bomb of them, tags, merges."""
    tricks = (
        b"a: &a [*a]\n",
        b"a: &a {b: *a}\n",
        b"a: !!python/object/apply:os.system ['true']\n",
        b"a0: &a0 [x]\n"
        + b"".join(
            b"a%d: &a%d [%s]\n" % (i, i, b"*a%d, " % (i - 1) * 9) for i in range(1, 12)
        ),
        b"tile: &t band:8\n? [1, 2]\n: x\n",
        b"ignore: &i\n- *i\n",
        b"<<: [x]\n",
        b"2001-01-01: 2001-01-01\n",
        b"!!binary aGk=: 1\n",
        b"---\nx: 1\n---\ny: 2\n",
        b"tile: " + b"[" * 3000 + b"\n",
        b"1: 2\nnull: 3\ntrue: 4\n",
        b"n: 0x" + b"f" * 9000 + b"\n",
    )
    return data + tricks[pick(len(tricks))]


def damage_lines(data: bytes, pick: Pick) -> bytes:
    """Drops, doubles or moves a line, or puts another number or word into it."""
    lines = data.split(b"\n")
    at = pick(len(lines))
    kind = pick(4)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(pick(len(lines) + 1), lines[at])
    elif kind == 2:
        lines[at] = damage_bytes(lines[at], pick)
    else:
        words = lines[at].split(b" ")
        junk = (b"", b"-1", b"nan", b"1e999", b"9" * 5000, b"\xff\xfe", b"x", b"..", b"1.2.3")
        words[pick(len(words))] = junk[pick(len(junk))]
        lines[at] = b" ".join(words)
    return b"\n".join(lines)


def damage_safetensors(data: bytes, pick: Pick) -> bytes:
    """Damages the header as JSON, its length, or any byte."""
    kind = pick(4)
    if kind == 0:
        return damage_bytes(data, pick)
    size = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + size], data[8 + size :]
    if kind == 1:
        length = (0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1)[pick(7)]
        return struct.pack("<Q", length) + header + body
    header = damage_json(header, pick)
    return struct.pack("<Q", len(header)) + header + body


def damage_gguf(data: bytes, pick: Pick) -> bytes:
    """Puts another number or text where the header of a GGUF file has one.

    Numbers are little-endian and unaligned, so that any place may be one: version and counts
    first, then keys and values.
    """
    at = 4 + pick(min(len(data), _GGUF_HEADER))
    kind = ("<I", "<Q")[pick(2)]
    limit = 2 ** (8 * struct.calcsize(kind)) - 1
    number = struct.pack(kind, _INTEGERS[pick(len(_INTEGERS))] & limit)
    return data[:at] + number + data[at + len(number) :]


def damage_zip(data: bytes, pick: Pick) -> bytes:
    """Damages one member and packs anew, renames it, or damages any byte of the archive."""
    if pick(4) == 0:
        return damage_bytes(data, pick)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = pick(len(members))
    name, content = members[at]
    kind = pick(6)
    if kind == 0:
        members[at] = (("../../escape.npy", "/etc/passwd", "", "x" * 60000)[pick(4)], content)
    elif kind == 1:
        del members[at]
    elif kind == 2:
        members.append(members[at])
    elif kind == 3:
        members[at] = (name, _other_header(content, pick))
    else:
        members[at] = (name, damage_bytes(content, pick))
    return _packed(members)


def _other_header(member: bytes, pick: Pick) -> bytes:
    """The .npy header says another type, order or shape than the data have."""
    descr = ("|u1", "|O", "<f8", "|b1", "<i8", "<U4", "|V9", ">i2", "<M8[s]")[pick(9)]
    shape = ("()", "(2,)", "(0,)", "(-1,)", f"({2**62},)", f"({2**40}, {2**40})", "(2, 2)")
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape[pick(7)]}, }}"
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + member[128:]


def _packed(members: Sequence[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        written: set[str] = set()
        for name, content in members:
            # zipfile warns of a name that comes twice.
            unique = name if name not in written else f"{name}/again"
            written.add(unique)
            archive.writestr(unique, content)
    return buffer.getvalue()


def damage_onnx(data: bytes, pick: Pick) -> bytes:
    """Changes fields of a model, whatever message they lie in, or any byte of it."""
    if pick(5) == 0:
        return damage_bytes(data, pick)
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        return damage_bytes(data, pick)
    for _ in range(1 + pick(3)):
        fields = list(_fields(model))
        _change(*fields[pick(len(fields))], pick)
    return bytes(model.SerializeToString())


def damage_external(data: bytes, pick: Pick) -> bytes:
    """Changes where one weight's data are said to lie, or its shape or type."""
    model = onnx.ModelProto.FromString(data)
    tensors = model.graph.initializer
    tensor = tensors[pick(len(tensors))]
    kind = pick(4)
    if kind == 0:
        tensor.dims[pick(len(tensor.dims))] = _INTEGERS[pick(len(_INTEGERS))]
        return bytes(model.SerializeToString())
    if kind == 1:
        tensor.data_type = pick(25)
        return bytes(model.SerializeToString())
    entry = tensor.external_data[pick(len(tensor.external_data))]
    values = (*_PLACES, *map(str, _INTEGERS), "nan", "0x10", "1e3", " 4", "9" * 5000, "½")
    entry.value = values[pick(len(values))]
    if pick(8) == 0:
        tensor.external_data.add(key="location", value=_PLACES[pick(len(_PLACES))])
    return bytes(model.SerializeToString())


def _fields(message: Message) -> Iterator[tuple[Message, Any]]:
    """Every field that a message could have, of it and of all that it holds."""
    for field in message.DESCRIPTOR.fields:
        yield message, field
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        value = getattr(message, field.name)
        if field.is_repeated:
            for item in value:
                yield from _fields(item)
        elif message.HasField(field.name):
            yield from _fields(value)


def _change(message: Message, field: FieldDescriptor, pick: Pick) -> None:
    if field.is_repeated:
        _change_list(message, field, pick)
    elif field.type == FieldDescriptor.TYPE_MESSAGE or pick(4) == 0:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _scalar(field, pick))


def _change_list(message: Message, field: FieldDescriptor, pick: Pick) -> None:
    items = getattr(message, field.name)
    kind = pick(4)
    if kind == 0 and len(items):
        del items[pick(len(items))]
    elif kind == 1 and len(items):
        items.extend([items[pick(len(items))]])
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        items.add()
    elif kind == 2 and len(items):
        items[pick(len(items))] = _scalar(field, pick)
    else:
        items.append(_scalar(field, pick))


def _scalar(field: FieldDescriptor, pick: Pick) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return _TEXTS[pick(len(_TEXTS))]
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _CHUNKS[pick(len(_CHUNKS))] * pick(3)
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return (0.0, -1.0, float("nan"), float("inf"), 3e38)[pick(5)]
    if field.type == FieldDescriptor.TYPE_ENUM:
        assert field.enum_type is not None
        values = field.enum_type.values
        return values[pick(len(values))].number
    value = _INTEGERS[pick(len(_INTEGERS))]
    if field.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_SINT32):
        return max(-(2**31), min(value, 2**31 - 1))
    if field.type in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64):
        return abs(value)
    return value
