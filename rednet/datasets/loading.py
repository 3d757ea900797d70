"""Reading image files."""

from __future__ import annotations

import os
from typing import Any

from mmcv.transforms import LoadImageFromFile
from PIL import Image, UnidentifiedImageError

from rednet.errors import ImageError
from rednet.registry import TRANSFORMS

_WIDE = (".png", ".tif", ".tiff")


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile``, whose errors name the file that cannot be read.

    It decodes with Pillow, which rejects a truncated file. OpenCV, mmcv's default, fills the
    missing part with gray.

    Args:
        imdecode_backend: Decoder, see :func:`mmcv.imfrombytes`.
        **kwargs: Other arguments of mmcv's class.

    Raises:
        ImageError: From :meth:`transform`, if the file is missing, truncated or not an image.
    """

    def __init__(self, imdecode_backend: str = "pillow", **kwargs: Any) -> None:
        super().__init__(imdecode_backend=imdecode_backend, **kwargs)
        # Pillow clips gray values of 16 bits at 255; OpenCV keeps their upper 8 bits.
        self._wide = LoadImageFromFile(imdecode_backend="cv2", **kwargs)

    def transform(self, results: dict) -> dict | None:
        """Reads ``img_path`` into ``img`` (uint8, (H, W, 3), BGR), ``img_shape``, ``ori_shape``.

        An image without a path was read already: mmpretrain's inferencers do that themselves.
        """
        if "img" in results and "img_path" not in results:
            return results
        try:
            if self.imdecode_backend == "pillow" and _has_wide_gray(results["img_path"]):
                return self._wide.transform(results)
            return super().transform(results)
        except OSError as error:  # from the file system and from Pillow
            raise ImageError(
                f"cannot read image {results['img_path']}: {_reason(error)}; replace or remove it"
            ) from error


def _has_wide_gray(path: str) -> bool:
    """Whether a local file is a gray image of more than 8 bits, which PNG and TIFF may be."""
    if not str(path).lower().endswith(_WIDE) or not os.path.isfile(path):
        return False
    with Image.open(path) as image:
        return image.mode.startswith("I")


def _reason(error: OSError) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own text is the address of a buffer
        return "its content is not an image"
    return error.strerror.lower() if error.strerror else str(error)
