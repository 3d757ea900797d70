"""A page that shows maps and kernels, in one file that needs neither a server nor a network."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rednet.visualization.recordings import Maps
from rednet.visualization.watching import View

TEMPLATE = Path(__file__).with_name("page.html")
_MARK = "/*DATA*/null"
_LARGEST_BYTE, _LARGEST_SIGNED = 255, 127


def write_page(path: Path, views: Sequence[View], title: str) -> None:
    """Writes the page.

    Args:
        path: The file.
        views: What was computed from each image, with kernels on a lattice where layers have them.
        title: The page's title.
    """
    data = json.dumps(dict(title=title, images=[_image(view) for view in views]))
    # "</" would end the script that holds the data.
    page = TEMPLATE.read_text().replace(_MARK, data.replace("</", "<\\/"))
    path.write_text(page)


def _image(view: View) -> dict[str, Any]:
    height, width = view.picture.shape[:2]
    encoded = cv2.imencode(".png", view.picture[..., ::-1])[1]
    return dict(
        name=view.path.name,
        width=width,
        height=height,
        extent=list(view.extent),
        picture=f"data:image/png;base64,{_text(encoded)}",
        layers=[_layer(name, maps) for name, maps in view.maps.items() if name in view.over_image],
    )


def _layer(name: str, maps: Maps) -> dict[str, Any]:
    low = maps.values.min((1, 2), keepdims=True)
    high = maps.values.max((1, 2), keepdims=True)
    share = (maps.values - low) / np.maximum(high - low, 1e-12)
    return dict(
        name=name,
        quantity=maps.quantity,
        unit=maps.unit,
        shape=list(maps.values.shape),
        low=low.ravel().tolist(),
        high=high.ravel().tolist(),
        values=_text((share * _LARGEST_BYTE).round().astype(np.uint8)),
        kernels=None if maps.lattice is None else _kernels(maps.lattice),
    )


def _kernels(lattice: np.ndarray) -> dict[str, Any]:
    """Kernels as bytes, a group's largest magnitude being 127."""
    largest = np.maximum(np.abs(lattice).max((1, 2, 3, 4), keepdims=True), 1e-12)
    levels = (lattice / largest * _LARGEST_SIGNED).round().astype(np.int8)
    return dict(shape=list(lattice.shape), largest=largest.ravel().tolist(), values=_text(levels))


def _text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
