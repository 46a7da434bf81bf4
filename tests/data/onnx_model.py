"""A real ONNX file in YuNet's layout, written by hand: it finds white squares of 32 pixels on the grid of 32.

Only what ``cv2.FaceDetectorYN`` asks of a network: for strides 8, 16 and 32 the outputs ``cls``, ``obj``, ``bbox`` and
``kps``, of which those of strides 8 and 16 never fire. ONNX is protobuf; these few messages are written directly.
"""

import struct
from collections.abc import Sequence

# Landmarks of a cell in cells from its corner, as YuNet orders them: person's right eye (image left), left eye, nose
# tip, right mouth corner, left mouth corner.
POINTS = ((0.25, 0.25), (0.75, 0.25), (0.5, 0.5), (0.375, 0.75), (0.625, 0.75))
BOX = (0.5, 0.5, 0.0, 0.0)  # offset of the centre in cells, logarithms of the sides in cells


def yunet_like() -> bytes:
    nodes, weights, outputs = b"", b"", b""
    for stride in (8, 16, 32):
        fires = stride == 32
        mean = 1 / (255 * 3 * stride * stride)
        for name, biases, gain in (
            ("cls", [0.0], mean if fires else 0.0),
            ("obj", [0.0], mean if fires else 0.0),
            ("bbox", BOX, 0.0),
            ("kps", [value for point in POINTS for value in point], 0.0),
        ):
            n, own = len(biases), f"{name}_{stride}"
            weights += _tensor(f"w_{own}", (n, 3, stride, stride), [gain] * (n * 3 * stride * stride))
            weights += _tensor(f"b_{own}", (n,), biases) + _shape(f"s_{own}", (1, -1, n))
            sizes = _ints("kernel_shape", (stride, stride)) + _ints("strides", (stride, stride))
            nodes += _node("Conv", ["input", f"w_{own}", f"b_{own}"], f"c_{own}", sizes)
            nodes += _node("Transpose", [f"c_{own}"], f"t_{own}", _ints("perm", (0, 2, 3, 1)))
            nodes += _node("Reshape", [f"t_{own}", f"s_{own}"], own)
            outputs += _message(12, _value_info(own, (1, 1, n)))
    graph = nodes + _text(2, "white squares") + weights + _message(11, _value_info("input", (1, 3, 64, 64))) + outputs
    opset = _text(1, "") + _number(2, 11)
    return _number(1, 7) + _message(7, graph) + _message(8, opset)


def _node(kind: str, inputs: Sequence[str], output: str, attributes: bytes = b"") -> bytes:
    body = b"".join(_text(1, name) for name in inputs) + _text(2, output) + _text(3, output) + _text(4, kind)
    return _message(1, body + attributes)


def _ints(name: str, values: Sequence[int]) -> bytes:
    return _message(5, _text(1, name) + b"".join(_number(8, value) for value in values) + _number(20, 7))


def _tensor(name: str, sizes: Sequence[int], values: Sequence[float]) -> bytes:
    raw = struct.pack(f"<{len(values)}f", *values)
    return _message(5, b"".join(_number(1, size) for size in sizes) + _number(2, 1) + _text(8, name) + _message(9, raw))


def _shape(name: str, values: Sequence[int]) -> bytes:
    raw = struct.pack(f"<{len(values)}q", *values)
    return _message(5, _number(1, len(values)) + _number(2, 7) + _text(8, name) + _message(9, raw))


def _value_info(name: str, sizes: Sequence[int]) -> bytes:
    shape = b"".join(_message(1, _number(1, size)) for size in sizes)
    return _text(1, name) + _message(2, _message(1, _number(1, 1) + _message(2, shape)))


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _message(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (2**64 - 1))


def _varint(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])
