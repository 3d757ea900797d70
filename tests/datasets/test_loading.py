from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from rednet.errors import ImageError
from rednet.registry import TRANSFORMS


def encoded(suffix: str) -> bytes:
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return cv2.imencode(suffix, image)[1].tobytes()


def load(path: Path) -> dict:
    return TRANSFORMS.build(dict(type="LoadImage"))(dict(img_path=str(path)))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_it_reads_what_opencv_reads(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    path.write_bytes(encoded(suffix))
    results = load(path)
    assert results["ori_shape"] == results["img_shape"] == (20, 30)
    difference = results["img"].astype(int) - cv2.imread(str(path)).astype(int)
    assert np.abs(difference).max() <= 2


JPEG, PNG = encoded(".jpg"), encoded(".png")
BROKEN = {
    "empty": (b"", "its content is not an image"),
    "text": (b"not an image", "its content is not an image"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated PNG": (PNG[: len(PNG) // 2], "truncated"),
    "garbled PNG": (PNG[:60] + bytes(100) + PNG[160:], "broken data stream"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named(tmp_path: Path, kind: str) -> None:
    content, reason = BROKEN[kind]
    path = tmp_path / "image.JPEG"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="missing.jpg: no such file"):
        load(tmp_path / "missing.jpg")


def test_gray_values_of_16_bits_keep_their_upper_8(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    cv2.imwrite(str(path), np.full((4, 5), 125 * 256 + 7, np.uint16))
    image = load(path)["img"]
    assert image.shape == (4, 5, 3) and image.dtype == np.uint8 and (image == 125).all()
