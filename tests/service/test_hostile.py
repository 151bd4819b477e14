"""Hostile bodies: each is answered by its problem, soon, and with little memory, by a server in a process of its own.

Run with `-s` to see what each took.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import resource
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import pytest
import torch
from PIL import Image

from ltdi import safetensors_bytes
from service.client import png

JSON, FORM, TENSORS = "application/json", "multipart/form-data; boundary=x", "application/vnd.safetensors"
MOST = 4 * 2**30  # bytes that the server may ever have, so that what it gets wrong ends it and not the machine
SECONDS, MEGABYTES = 2.0, 100  # a quiet machine needs a tenth of a second at most; the memory is what it is
A, B = [0.5] * 256, [0.1] * 256
DRAWING = png(torch.arange(784).reshape(28, 28).to(torch.uint8))
Build = Callable[[], bytes]


@dataclass
class Served:
    """A server and its process."""

    http: httpx.Client
    process: subprocess.Popen

    def memory(self, key: str) -> float:
        """`VmRSS` or `VmHWM`, in MB."""
        return int(re.search(rf"{key}:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1]) / 1024

    def __post_init__(self) -> None:
        self.quiet = self.memory("VmRSS")

    def forget_peak(self) -> None:
        """Let `VmHWM` begin again at what is in use."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


@pytest.fixture(scope="module")
def served(toy_folder: Path, toy_features_folder: Path, toy_features: object) -> Iterator[Served]:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not tell the peak of another process's memory")
    bundles = f"{toy_folder},{toy_features_folder}"
    command = [sys.executable, "-m", "ltdi.cli", "serve", "--port", "0", "--bundle", bundles]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back, so that it counts once
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (MOST, MOST))
        url = next(found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        reading = threading.Thread(target=process.stdout.read, daemon=True)
        reading.start()
        with httpx.Client(base_url=url, timeout=10) as http:
            until = time.monotonic() + 30
            while '"loading"' in http.get("/models").text and time.monotonic() < until:
                time.sleep(0.05)
            yield Served(http, process)
        process.terminate()
        reading.join(20)


def file(header: object, content: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header, and any length said of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def tensor(shape: list[int], end: int, dtype: str = "F32", begin: int = 0) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def task(metadata: dict[str, str] | None = None, **tensors: torch.Tensor) -> bytes:
    return safetensors_bytes(tensors, metadata or {})


TWO = {"features": torch.tensor([A, B]), "labels": torch.tensor([0, 1])}
WITHOUT_ROWS = {"descriptions": tensor([2**40, 0], 0)}
NOTHING = {"features": tensor([2**40, 0], 0), "labels": tensor([0], 0, "I64")}
SAFETENSORS = {
    "no bytes at all": (b"", 400, "body-malformed", None),
    "a header longer than the file": (file({}, length=2**40), 400, "body-malformed", None),
    "a header of 2^64 - 1 bytes": (file({}, length=2**64 - 1), 400, "body-malformed", None),
    "a header of no length": (file({}, length=0), 400, "body-malformed", None),
    "a header that ends early": (file({"features": tensor([1], 4)}, b"1234", length=9), 400, "body-malformed", None),
    "offsets that overlap": (file({"features": tensor([1], 4), "labels": tensor([1], 6, begin=2)}, b"123456"), 400, "body-malformed", None),
    "offsets beyond the file": (file({"features": tensor([2], 8)}, b"1234"), 400, "body-malformed", None),
    "offsets that go backwards": (file({"features": tensor([1], 0, begin=4)}, b"1234"), 400, "body-malformed", None),
    "bytes that no tensor owns": (file({"features": tensor([1], 4)}, b"1234more"), 400, "body-malformed", None),
    "a header of twenty megabytes": (lambda: file({"__metadata__": {"classes": "x" * 20 * 2**20}}), 400, "body-malformed", None),
    "a header of many tensors": (lambda: file({f"t{i}": tensor([0], 0) for i in range(200_000)}), 400, "body-malformed", None),
    "a tensor that stands twice": (file(b'{"features":%(t)s,"features":%(t)s}' % {b"t": json.dumps(tensor([1], 4)).encode()}, b"1234"), 400, "body-malformed", None),
    "metadata that stands twice": (file(b'{"__metadata__":{"seed":"1","seed":"2"}}'), 400, "body-malformed", None),
    "a header nested 100 000 deep": (file(b"[" * 100_000), 400, "body-malformed", None),
    "metadata nested 100 000 deep": (task({"options": "[" * 100_000}, **TWO), 413, "items-too-many", "options"),
    "a shape below zero": (file({"features": tensor([-1], 4)}, b"1234"), 400, "body-malformed", None),
    "a shape that overflows": (file({"features": tensor([2**62, 2**62], 4)}, b"1234"), 400, "body-malformed", None),
    "a shape beyond 64 bits": (file({"features": tensor([2**70], 4)}, b"1234"), 400, "body-malformed", None),
    "an unknown dtype": (file({"features": tensor([1], 4, "F33")}, b"1234"), 400, "body-malformed", None),
    "a dtype of a byte and a half": (file({"features": tensor([2], 1, "F4")}, b"1"), 400, "body-malformed", None),
    "features of eight bits": (file({"features": tensor([2, 256], 512, "F8_E4M3"), "labels": tensor([2], 528, "I64", 512)}, b"\0" * 528), 422, "features-invalid", "features"),
    "features of complex numbers": (task(features=torch.zeros(2, 256, dtype=torch.complex64), labels=torch.tensor([0, 1])), 422, "features-invalid", "features"),
    "features that are not numbers": (task(features=torch.full((2, 256), float("nan")), labels=torch.tensor([0, 1])), 422, "features-invalid", "support"),
    "metadata that is no text": (file({"__metadata__": {"seed": 1}}), 400, "body-malformed", None),
    "metadata that is no object": (file({"__metadata__": []}), 400, "body-malformed", None),
    "no tensors": (task(), 422, "support-invalid", "labels"),
    "labels that are missing": (task(features=torch.tensor([A, B])), 422, "support-invalid", "labels"),
    "labels below zero": (task({"classes": '["a", "b"]'}, features=torch.tensor([A, B]), labels=torch.tensor([0, -1])), 422, "support-invalid", "labels"),
    "a label for no example": (task(features=torch.tensor([A]), labels=torch.tensor([0, 1])), 422, "support-invalid", "labels"),
    "2^40 rows of nothing": (file(NOTHING), 413, "items-too-many", "features"),
    "2^40 descriptions of nothing": (file({"__metadata__": {"model": "toy-features"}} | WITHOUT_ROWS), 413, "items-too-many", "descriptions"),
    "a pool of 2^40 rows of nothing": (file({"__metadata__": {"model": "toy-features"}, "features": tensor([2, 1], 8), "labels": tensor([2], 24, "I64", 8), "unlabelled": tensor([2**40, 0], 24, begin=24)}, struct.pack("<ffqq", 0, 1, 0, 1)), 413, "items-too-many", "unlabelled"),
    "images of no height": (file({"images": tensor([2, 1, 0, 2**40], 0, "U8"), "labels": tensor([2], 16, "I64")}, struct.pack("<qq", 0, 1)), 422, "image-invalid", "images"),
    "a pickle": (b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x07builtins.", 400, "body-malformed", None),
}  # fmt: skip


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 0, data: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def animated(form: str) -> bytes:
    frames = [Image.new("RGB", (28, 28), (shade, 0, 0)) for shade in (0, 99, 255)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=10)


def with_exif(size: int) -> bytes:
    """A damaged JPEG before whose picture stands as much EXIF as it may have, again and again."""
    part = b"\xff\xe1" + struct.pack(">H", 65_535) + b"Exif\0\0" + b"\xff" * 65_527
    return b"\xff\xd8" + part * (size // 65_537)


def webp(size: int, body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", size) + b"WEBP" + body


BLANK = Image.new("L", (28, 28), 255)
IMAGES = {
    "no bytes": (b"", 422, "image-invalid"),
    "a PNG cut short": (DRAWING[:-30], 422, "image-invalid"),
    "a PNG of its first bytes": (DRAWING[:8], 422, "image-invalid"),
    "a PNG with a wrong checksum": (DRAWING[:40] + b"\0\0\0\0" + DRAWING[44:], 422, "image-invalid"),
    "a PNG that says 100 000 x 100 000": (png_of(100_000, 100_000), 413, "pixels-too-many"),
    "a PNG that says 2^31 - 1 x 1": (png_of(2**31 - 1, 1), 413, "pixels-too-many"),
    "a PNG that says 12 000 x 1": (png_of(12_000, 1), 422, "image-invalid"),
    "a PNG that says 4 000 x 4 000 and holds nothing": (png_of(4_000, 4_000, colour=6), 422, "image-invalid"),
    "a PNG of no size": (png_of(0, 0), 422, "image-invalid"),
    "a PNG of no height": (png_of(28, 0), 422, "image-invalid"),
    "a PNG whose colours are unknown": (png_of(28, 28, colour=5), 422, "image-invalid"),
    "a PNG whose text unpacks to 100 MB": (lambda: png_of(28, 28, chunk(b"zTXt", b"x\0\0" + zlib.compress(b"\0" * 100 * 2**20, 9))), 422, "image-invalid"),
    "a PNG whose colour profile unpacks to 100 MB": (lambda: png_of(28, 28, chunk(b"iCCP", b"x\0\0" + zlib.compress(b"\0" * 100 * 2**20, 9))), 422, "image-invalid"),
    "an animated PNG": (animated("PNG"), 422, "image-invalid"),
    "an animated WebP": (animated("WEBP"), 422, "image-invalid"),
    "a GIF called .png": (encoded(BLANK, "GIF"), 415, "image-type-unsupported"),
    "a TIFF": (encoded(BLANK, "TIFF"), 415, "image-type-unsupported"),
    "a BMP": (encoded(BLANK, "BMP"), 415, "image-type-unsupported"),
    "a PDF": (b"%PDF-1.7\n" + DRAWING, 415, "image-type-unsupported"),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "image-type-unsupported"),
    "an SVG after a declaration": (b"<?xml version='1.0'?>\n<!DOCTYPE svg [<!ENTITY a 'aaaa'>]>\n<svg>&a;</svg>", 415, "image-type-unsupported"),
    "a page that ends in a PNG": (b"<html><script>alert(1)</script></html>" + DRAWING, 422, "image-invalid"),
    "a ZIP": (b"PK\x03\x04" + b"\0" * 40, 422, "image-invalid"),
    "a JPEG of its first bytes": (b"\xff\xd8\xff\xe0", 422, "image-invalid"),
    "a JPEG with ten megabytes of EXIF": (lambda: with_exif(10 * 2**20), 422, "image-invalid"),
    "a JPEG that says 65 000 x 65 000": (encoded(BLANK, "JPEG").replace(struct.pack(">HH", 28, 28), struct.pack(">HH", 65_000, 65_000)), 413, "pixels-too-many"),
    "a WebP that lies of its size": (webp(2**32 - 1, b"VP8 " + struct.pack("<I", 2**31) + b"\0" * 40), 422, "image-invalid"),
    "a WebP cut short": (encoded(BLANK, "WEBP")[:-10], 422, "image-invalid"),
    "a WebP of noise": (webp(1000, b"VP8L" + struct.pack("<I", 988) + bytes(range(247)) * 4), 422, "image-invalid"),
}  # fmt: skip


def form(*parts: bytes, end: bytes = b"--x--\r\n") -> bytes:
    return b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + end


def part(disposition: bytes, content: bytes = b"", more: bytes = b"") -> bytes:
    return b"Content-Disposition: form-data; " + disposition + b"\r\n" + more + b"\r\n" + content


def drawing(filename: bytes) -> bytes:
    return part(b'name="support"; filename="' + filename + b'"', DRAWING)


GOOD = (drawing(b"a/1.png"), drawing(b"b/1.png"))
FORMS = {
    "no boundary": (form(*GOOD), "multipart/form-data", 400, "body-malformed", None),
    "an empty boundary": (form(*GOOD), "multipart/form-data; boundary=", 400, "body-malformed", None),
    "a boundary of 10 000 bytes": (form(*GOOD), "multipart/form-data; boundary=" + "x" * 10_000, 400, "body-malformed", None),
    "a boundary that is another": (form(*GOOD), "multipart/form-data; boundary=y", 400, "body-malformed", None),
    "a boundary that never ends": (form(*GOOD, end=b""), FORM, 400, "body-malformed", None),
    "no parts": (form(), FORM, 422, "support-empty", "support"),
    "dashes and no boundary": (lambda: b"\r\n--" * 2_000_000, FORM, 400, "body-malformed", None),
    "thirteen thousand parts": (lambda: form(*[part(b'name="support"; filename="a/1.png"')] * 13_000), FORM, 413, "items-too-many", None),
    "a part with a header of ten megabytes": (lambda: form(part(b'name="support"', more=b"X-A: " + b"a" * 10 * 2**20 + b"\r\n")), FORM, 400, "body-malformed", None),
    "a part with ten thousand headers": (form(part(b'name="support"', more=b"X-A: b\r\n" * 10_000)), FORM, 400, "body-malformed", None),
    "a part without a name": (form(part(b'filename="a/1.png"', DRAWING)), FORM, 400, "body-malformed", None),
    "a part without headers": (form(b"\r\n" + DRAWING), FORM, 400, "body-malformed", None),
    "a file name that climbs": (form(drawing(b"../1.png"), GOOD[0]), FORM, 422, "support-invalid", "support/0"),
    "a file name that climbs inside": (form(GOOD[0], drawing(b"b/../../c/1.png")), FORM, 422, "support-invalid", "support/1"),
    "a file name from the root": (form(drawing(b"/etc/1.png"), GOOD[0]), FORM, 422, "support-invalid", "support/0"),
    "a file name with NUL": (form(drawing(b"a\0b/1.png"), GOOD[0]), FORM, 422, "support-invalid", "support/0"),
    "a file name without a class": (form(drawing(b"1.png"), GOOD[0]), FORM, 422, "support-invalid", "support/0"),
    "the part `request` twice": (form(part(b'name="request"', b"{}"), part(b'name="request"', b"{}"), *GOOD), FORM, 422, "request-invalid", "request"),
    "a request that is no JSON": (form(part(b'name="request"', b"{"), *GOOD), FORM, 400, "body-malformed", "request"),
    "an unknown part": (form(part(b'name="' + b"n" * 4_000 + b'"', b"{}"), *GOOD), FORM, 422, "request-invalid", "n" * 80),
    "a form in a form": (form(part(b'name="support"; filename="a/1.png"', form(*GOOD), b"Content-Type: multipart/mixed; boundary=x\r\n")), FORM, 422, "image-invalid", "support/0"),
}  # fmt: skip


def one(**fields: object) -> bytes:
    return json.dumps({"support": [{"label": "a", "features": A}, {"label": "b", "features": B}]} | fields).encode()


PAIR = b'"support":[{"label":"a","features":[1]},{"label":"b","features":[2]}]'
MB10 = 10 * 2**20
DOCUMENTS = {
    "no bytes": (b"", 400, "body-malformed", None),
    "NUL": (b"\0" * 1000, 400, "body-malformed", None),
    "lists 100 000 deep": (b"[" * 100_000 + b"]" * 100_000, 413, "items-too-many", None),
    "lists 40 000 deep": (b"[" * 40_000 + b"]" * 40_000, 400, "body-malformed", None),
    "objects 40 000 deep": (b'{"a":' * 40_000, 400, "body-malformed", None),
    "brackets in a text that does not end": (lambda: b'{"support":[{"label":"' + rb"[\"[" * 4_000_000, 413, "items-too-many", None),
    "ten million empty texts": (lambda: b'{"support":[' + b'"",' * MB10 + b'""]}', 413, "items-too-many", None),
    "nine hundred lists in a list": (b'{"support":' + b"[" * 900 + b"]" * 900 + b"}", 422, "request-invalid", "/support/0"),
    "ten million empty lists": (lambda: b'{"support":[' + b"[]," * MB10 + b"[]]}", 413, "items-too-many", None),
    "two million empty objects": (lambda: b'{"support":[' + b"{}," * 2_000_000 + b"{}]}", 413, "items-too-many", None),
    "sixteen million zeros": (lambda: b'{"support":[{"label":"a","features":[' + b"0," * (15 * 2**20) + b"0]}]}", 413, "items-too-many", None),
    "1e999": (b'{"support":[{"label":"a","features":[1e999]},{"label":"b","features":[2]}],"model":"toy-features"}', 422, "features-invalid", "/support"),
    "NaN": (b'{"support":[{"label":"a","features":[NaN]},{"label":"b","features":[2]}],"model":"toy-features"}', 422, "features-invalid", "/support"),
    "a number of 4 000 digits": (one(seed=10**3_999), 422, "invalid-input", "/seed"),
    "a number of 100 000 digits": (one().replace(b"0.5", b"9" * 100_000, 1), 400, "body-malformed", None),
    "a feature of 4 000 digits": (b'{"support":[{"label":"a","features":[' + b"9" * 4_000 + b"]}]}", 422, "request-invalid", "/support/0/features/0"),
    "a seed that is a fraction": (one(seed=0.5), 422, "request-invalid", "/seed"),
    "a key that stands twice": (b"{" + PAIR + b"," + PAIR + b"}", 400, "body-malformed", None),
    "half a surrogate pair in a label": (b'{"support":[{"label":"\\ud800","features":[1]},{"label":"b","features":[2]}]}', 400, "body-malformed", None),
    "half a surrogate pair in a key": (b'{"\\udfff":1}', 400, "body-malformed", None),
    "half a surrogate pair in a model": (b'{"model":"\\ud800",' + PAIR + b"}", 400, "body-malformed", None),
    "half a surrogate pair in a description": (b'{"model":"toy-features","classes":[{"label":"a","description":"\\ud800"}],' + PAIR + b"}", 400, "body-malformed", None),
    "a key of ten megabytes": (lambda: b'{"' + b"k" * MB10 + b'":1}', 422, "request-invalid", ...),
    "a label of ten megabytes": (lambda: one(classes=[{"label": "a" * MB10}, {"label": "b"}]), 422, "support-invalid", "/classes"),
    "a model of ten megabytes": (lambda: one(model="m" * MB10), 404, "model-unknown", "/model"),
    "a text of ten megabytes where a number stands": (lambda: one(seed="1" * MB10), 422, "request-invalid", "/seed"),
    "a kind of ten megabytes": (lambda: one(kind="k" * MB10), 422, "request-invalid", "/kind"),
    "base64 of ten megabytes of nothing": (lambda: one(support=[{"label": "a", "image": "A" * MB10}]), 422, "image-invalid", "/support/0"),
    "a head of ten megabytes of nothing": (lambda: one(support=[], task_embedding="A" * MB10), 422, "file-damaged", "/task_embedding"),
    "bytes that are no UTF-8": (b'{"support":"\xff\xfe"}', 400, "body-malformed", None),
    "UTF-16": (one().decode().encode("utf-16"), 400, "body-malformed", None),
    "a byte order mark": (b"\xef\xbb\xbf" + one(), 400, "body-malformed", None),
    "a text alone": (b'"support"', 422, "request-invalid", ""),
    "nothing alone": (b"null", 422, "request-invalid", ""),
    "numbers for objects": (one(support=1, classes=2, options=3), 422, "request-invalid", "/classes"),
    "an object for a list": (one(support={"0": {}}), 422, "request-invalid", "/support"),
    "lists for texts": (one(support=[{"label": ["a"], "features": A}]), 422, "request-invalid", "/support/0/label"),
    "texts for numbers": (one(support=[{"label": "a", "features": ["1"]}]), 422, "request-invalid", "/support/0/features/0"),
    "true for a number": (one(seed=True), 422, "request-invalid", "/seed"),
    "two values": (b"{}{}", 400, "body-malformed", None),
    "comments": (b"/* */ {}", 400, "body-malformed", None),
}  # fmt: skip


def pictures(content: bytes) -> bytes:
    images = {label: base64.b64encode(image).decode() for label, image in (("a", content), ("b", DRAWING))}
    return json.dumps({"support": [{"label": label, "image": image} for label, image in images.items()]}).encode()


def built(content: bytes | Build) -> bytes:
    return content() if callable(content) else content


CASES = [
    *[pytest.param(content, TENSORS, *rest, id=f"safetensors: {name}") for name, (content, *rest) in SAFETENSORS.items()],
    *[
        pytest.param(lambda content=content: pictures(built(content)), JSON, status, code, "/support/0", id=f"image: {name}")
        for name, (content, status, code) in IMAGES.items()
    ],
    *[pytest.param(content, *rest, id=f"form: {name}") for name, (content, *rest) in FORMS.items()],
    *[pytest.param(content, JSON, *rest, id=f"JSON: {name}") for name, (content, *rest) in DOCUMENTS.items()],
]  # fmt: skip
assert len(CASES) >= 100


@pytest.mark.parametrize(("content", "content_type", "status", "code", "field"), CASES)
def test_a_hostile_body_is_answered_soon_and_with_little_memory(
    served: Served, content: bytes | Build, content_type: str, status: int, code: str, field: object, request
) -> None:
    body, seconds = built(content), []
    served.http.get("/livez")
    served.forget_peak()
    for _ in range(3):
        started = time.perf_counter()
        answer = served.http.post("/generate-head", content=body, headers={"Content-Type": content_type})
        seconds.append(time.perf_counter() - started)
    took, more = median(seconds), served.memory("VmHWM") - served.quiet
    print(f"\n{1000 * took:7.1f} ms {more:7.1f} MB {len(body) / 2**20:6.2f} MB sent  {request.node.callspec.id}", end="")
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (status, f"urn:ltdi:{code}"), answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    assert 15 < len(problem["detail"]) < 1000
    assert len(problem["field"] or "") < 200
    assert field is ... or problem["field"] == field
    assert took < SECONDS
    assert more < MEGABYTES


BAD_HEADS = {
    "a header of many tensors": SAFETENSORS["a header of many tensors"][0],
    "a header longer than the file": SAFETENSORS["a header longer than the file"][0],
    "a name that stands twice": SAFETENSORS["a tensor that stands twice"][0],
    "a pickle": SAFETENSORS["a pickle"][0],
}


@pytest.mark.parametrize("name", BAD_HEADS)
def test_a_hostile_head_to_predict_with_is_refused(served: Served, name: str) -> None:
    head = base64.b64encode(built(BAD_HEADS[name])).decode()
    started = time.perf_counter()
    answer = served.http.post("/predict", json={"head": head, "queries": [{"features": A}]})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:ltdi:file-damaged")
    assert answer.json()["field"] == "/head" and time.perf_counter() - started < SECONDS


UNUSUAL = {
    "CMYK": encoded(Image.new("CMYK", (28, 28)), "JPEG"),
    "16 bits": encoded(Image.new("I;16", (28, 28), 40_000), "PNG"),
    "a palette with transparency": encoded(Image.new("P", (28, 28), 3), "PNG", transparency=3),
    "a WebP whose name says PNG": encoded(BLANK, "WEBP"),
    "a PNG that ends in a ZIP": DRAWING + b"PK\x03\x04" + b"\0" * 40,
    "a JPEG with EXIF": encoded(BLANK, "JPEG", exif=b"Exif\0\0" + b"\0" * 60_000),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_image_is_read_all_the_same(served: Served, name: str) -> None:
    parts = [("support", (f"{label}/1.png", UNUSUAL[name], "image/png")) for label in "ab"]
    assert served.http.post("/generate-head", files=parts).status_code == 200
