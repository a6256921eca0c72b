"""Raster files in every form that a user has them: the exact values, or a refusal that names the file."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsweep.data.files import Undecodable
from mmsweep.data.kinds.raster import RasterFormat, decode_labels, decode_raster, raster_format
from mmsweep.data.raster_files import Stack, Window, files_of, read_pixels
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target
from tests.data.rasters import png16, save

H, W = 5, 7


def values(channels: int, dtype: type = np.uint16, top: int = 65535) -> np.ndarray:
    found = np.random.default_rng(channels).integers(0, top + 1, (H, W, channels)).astype(dtype)
    return found[..., 0] if channels == 1 else found


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_png_keeps_all_bits(channels: int, tmp_path: Path) -> None:
    """Pillow opens 16-bit colour as 8-bit colour: the low byte would be lost without a word."""
    deep = values(channels)
    path = save(tmp_path / "a.png", deep)
    assert read_pixels(path).dtype == np.uint16 and (read_pixels(path) == deep).all()
    assert (read_pixels(path.read_bytes()) == deep).all()


@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_is_left_out(channels: int) -> None:
    deep = values(channels)
    kept = deep[..., :3] if channels == 4 else deep[..., 0]
    assert (read_pixels(png16(deep)) == kept).all()
    buffer = io.BytesIO()
    shallow = (deep >> 8).astype(np.uint8)
    Image.fromarray(shallow, {2: "LA", 4: "RGBA"}[channels]).save(buffer, "PNG")
    assert (read_pixels(buffer.getvalue()) == (kept >> 8)).all()


def test_a_palette_is_colours_of_a_raster_and_indices_of_a_label_map(tmp_path: Path) -> None:
    indexed = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    indexed.putpalette([9, 9, 9, 100, 0, 0, 0, 100, 0])
    indexed.save(tmp_path / "a.png")
    assert read_pixels(tmp_path / "a.png").tolist() == [[[9, 9, 9], [100, 0, 0], [0, 100, 0]]]
    assert read_pixels(tmp_path / "a.png", labels=True).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_greys_of_few_bits_are_their_values(bits: int) -> None:
    """Pillow spreads 4-bit greys over 0 to 255: class 1 would become 17."""
    import struct
    import zlib

    grey = np.arange(8, dtype=np.uint8).reshape(1, 8) % 2**bits
    packed = np.packbits(np.unpackbits(grey[..., None], axis=2)[..., 8 - bits :].reshape(1, -1), axis=1)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + packed.tobytes()))
    assert (read_pixels(png + chunk(b"IEND", b"")) == grey).all()


@pytest.mark.parametrize("shape", [(H, W), (H, W, 4), (4, H, W)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64, ">f4"])
def test_arrays_have_their_channels_last_or_first(shape: tuple[int, ...], dtype: type, tmp_path: Path) -> None:
    whole = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.save(tmp_path / "a.npy", whole)
    wanted = whole.transpose(1, 2, 0) if shape[0] == 4 else whole
    assert (read_pixels(tmp_path / "a.npy") == wanted).all()
    format = raster_format(tmp_path / "a.npy")
    stored = decode_raster(tmp_path / "a.npy", format)
    assert stored.dtype == (np.float32 if np.dtype(dtype).kind == "f" else dtype)
    assert (stored == np.atleast_3d(wanted).transpose(2, 0, 1)).all()


def test_arrays_of_other_axes_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3, H, W)))
    with pytest.raises(Undecodable, match=r"a\.npy is not \[H, W\], .*\(2, 3, 5, 7\)"):
        read_pixels(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("shape", "kept"),
    [((H, W), {}), ((H, W, 3), {"photometric": "rgb"}), ((H, W, 6), {"planarconfig": "contig"}),
     ((H, W, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
     ((6, H, W), {}), ((6, H, W), {"planarconfig": "separate"}),
     ((H, W, 2), {"planarconfig": "contig", "compression": "zlib"}), ((H, W), {"bigtiff": True})],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_every_channel_of_a_tiff_is_read(shape: tuple[int, ...], kept: dict, dtype: type, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    whole = (np.arange(np.prod(shape)).reshape(shape) * 37 % 251).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", whole, **{"photometric": "minisblack", **kept})
    wanted = whole.transpose(1, 2, 0) if shape[0] == 6 else whole
    read = read_pixels(tmp_path / "a.tif")
    assert read.dtype == dtype and read.shape == wanted.shape and (read == wanted).all()


def test_a_tiff_of_more_axes_or_without_data_is_refused(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 3, H, W), np.uint8), imagej=True, metadata={"axes": "TCYX"})
    with pytest.raises(Undecodable, match=r"a\.tif has the axes TCYX; expected rows"):
        read_pixels(tmp_path / "a.tif")
    height = np.full((H, W), 7, np.float32)
    height[1, 2:4] = -9999
    tifffile.imwrite(tmp_path / "b.tif", height, extratags=[(42113, "s", 0, "-9999", True)])
    with pytest.raises(Undecodable, match=r"b\.tif has no data in 2 places .*-9999 means no data"):
        read_pixels(tmp_path / "b.tif")


def test_a_tiff_without_tifffile_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((H, W), np.uint8)).save(tmp_path / "a.tif")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match=r"tifffile.*a\.tif.*pip install 'mmsweep\[tiff\]'"):
        read_pixels(tmp_path / "a.tif")


def test_a_stack_is_the_channels_of_its_files(tmp_path: Path) -> None:
    sin, cos = (save(tmp_path / f"{name}.npy", values(1, np.float32, 9) + i) for i, name in enumerate(("sin", "cos")))
    stack = Stack((sin, cos, Window(sin, 0, 0, H, W)))
    read = decode_raster(stack, RasterFormat((H, W), 3, "float32", None, None))
    assert (read == np.stack([np.load(sin), np.load(cos), np.load(sin)])).all()
    assert files_of(stack) == (sin, cos, sin)
    with pytest.raises(Undecodable, match=r"of different sizes: .*sin\.npy.*found 5 x 7, 3 x 7"):
        read_pixels(Stack((sin, Window(cos, 0, 0, 3, W))))
    with pytest.raises(Undecodable, match="different types of numbers"):
        read_pixels(Stack((sin, save(tmp_path / "c.png", values(1, np.uint8, 255)))))


@pytest.mark.parametrize("shape", [(6, 6, 20), (20, 6, 6), (6, 7, 3), (3, 6, 7), (6, 6, 3), (3, 6, 6)])
def test_the_axis_of_an_array_s_channels_is_the_odd_one_or_the_shorter(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Square tiles may have more channels than pixels a side, as hyperspectral ones do."""
    stored = np.random.default_rng(0).random(shape)
    pixels = read_pixels(save(tmp_path / "a.npy", stored))
    first = shape in ((20, 6, 6), (3, 6, 7), (3, 6, 6))
    assert (pixels == (stored.transpose(1, 2, 0) if first else stored)).all()


def test_bands_are_read_in_their_order(tmp_path: Path) -> None:
    stored = np.random.default_rng(6).integers(0, 65536, (9, 11, 6)).astype(np.uint16)
    path = save(tmp_path / "a.npy", stored)
    format = raster_format(path, [4, 0, 4])
    assert (decode_raster(path, format) == stored[..., [4, 0, 4]].transpose(2, 0, 1)).all()
    with pytest.raises(Undecodable, match=r"a\.npy is 9 x 11 with 6 channels; expected channel 6 \(counted from 0\)"):
        raster_format(path, [6])
    with pytest.raises(Undecodable, match="mean and std are of 2 channels"):
        raster_format(path, None, [0, 0], [1, 1])


def test_eight_bits_stand_for_sixteen_only_where_the_format_says_so(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", values(1, np.uint8, 255))
    format = RasterFormat((H, W), 1, "uint16", (0.0,), (65535.0,))
    with pytest.raises(Undecodable, match="holds uint8 values; expected uint16"):
        decode_raster(path, format)
    full = RasterFormat((H, W), 1, "uint16", (0.0,), (65535.0,), full_scale=True)
    assert (decode_raster(path, full)[0] == values(1, np.uint8, 255).astype(int) * 257).all()


def test_resizing_averages_rasters_and_takes_the_nearest_label(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 100, 10, 20], [100, 200, 30, 41]], np.uint8))
    format = RasterFormat((1, 2), 1, "uint8", (0.0,), (1.0,), resize=True)
    (row,) = decode_raster(path, format)
    assert row.shape == (1, 2) and abs(int(row[0, 0]) - 100) < 30 and abs(int(row[0, 1]) - 25) < 30
    flat = save(tmp_path / "b.png", np.full((9, 9), 7, np.uint8))
    assert (decode_raster(flat, RasterFormat((4, 3), 1, "uint8", (0.0,), (1.0,), resize=True)) == 7).all()
    labels = save(tmp_path / "c.png", np.array([[0, 1, 1, 0], [1, 1, 0, 0]], np.uint8))
    target = Target("segmentation", ("a", "b"))
    assert decode_labels(labels, target, (2, 2), resize=True).tolist() == [[1, 0], [1, 0]]
    assert (
        decode_labels(labels, target, (4, 8), resize=True).tolist()
        == np.kron([[0, 1, 1, 0], [1, 1, 0, 0]], np.ones((2, 2), int)).tolist()
    )


def test_labels_that_are_no_whole_numbers_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", np.array([[0, 1, 0.5]]))
    with pytest.raises(Undecodable, match=r"a\.npy holds the value 0\.5 \(row 0, column 2\)"):
        decode_labels(path, Target("segmentation", ("a", "b")), (1, 3))
    assert decode_labels(save(path, np.array([[0, 1, 255.0]])), Target("segmentation", ("a", "b")), (1, 3))[0, 2] == 255


def test_a_raster_of_too_many_pixels_is_refused() -> None:
    import struct

    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 9000, 9000, 16, 2, 0, 0, 0)
    import zlib

    png = header + struct.pack(">I", zlib.crc32(header[12:])) + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(Undecodable, match="too large to be decoded: 9,000 x 9,000 pixels"):
        read_pixels(png)
