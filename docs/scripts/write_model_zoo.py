"""Writes docs/model_zoo.md from the metafiles of the configs.

python docs/scripts/write_model_zoo.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/model_zoo.md"
# Where the authors publish their files.
SOURCES = {
    "RedNet": "[d-li14/involution](https://github.com/d-li14/involution)",
    "ODConv": "[OSVAI/ODConv](https://github.com/OSVAI/ODConv)",
    "SPConv": "[qiulinzhang/SPConv.pytorch](https://github.com/qiulinzhang/SPConv.pytorch)",
    "ACNet": "[DingXiaoH/ACNet](https://github.com/DingXiaoH/ACNet)",
    "CondConv": "[timm](https://github.com/huggingface/pytorch-image-models)",
    "DetectoRS": "[mmdetection](https://github.com/open-mmlab/mmdetection/tree/main/configs/detectors)",
}
HEAD = """# Model zoo

Every network with a published figure or file: its config, what is published, what was counted here.

`python docs/scripts/write_model_zoo.py` writes this page from the metafiles beside the configs. We
offer no weights and have trained none of these networks on their data. Parameters and FLOPs are
counted by `tools/analysis_tools/get_flops.py`, those of detectors without the frozen stages. A
published classifier, a published model with a RedNet and ODConv's detectors load after

```bash
python tools/model_converters/convert_checkpoint.py PUBLISHED.pth CONVERTED.pth --config CONFIG
```

The last column says what the tests do: "counted" stands for parameters and FLOPs, "conversion"
for that command on entries with the published names and shapes of the network, or of another
depth, width or number of kernels ([weights](weights.md)). The tests have no published file itself.
Of ODConv's detectors the command leaves out the classifier of the backbone, which their files hold
and a detector does not run. SAC's detectors load as they are.

| config | published by | published result | params (M), counted | FLOPs (G), counted | tests |
|---|---|---|---|---|---|
"""


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page())


def page() -> str:
    """The text of the page."""
    return HEAD + "\n".join(map(_row, _models())) + "\n"


def _models() -> Iterator[dict[str, Any]]:
    """The models of the index, in its order."""
    index = yaml.safe_load((ROOT / "model-index.yml").read_text())
    for path in index["Import"]:
        yield from yaml.safe_load((ROOT / path).read_text())["Models"]


def _row(model: dict[str, Any]) -> str:
    metrics = [
        f"{value} {name}"
        for result in model["Results"]
        for name, value in result.get("Metrics", {}).items()
    ]
    flops = model["Metadata"].get("FLOPs")
    cells = (
        f"`{model['Config'].removeprefix('configs/')}`",
        SOURCES[model["In Collection"]] if _is_published(model) else "",
        ", ".join(metrics),
        f"{model['Metadata']['Parameters'] / 1e6:.2f}",
        "" if flops is None else f"{flops / 1e9:.2f}",
        "counted, conversion" if _is_converted(model) else "counted",
    )
    return f"| {' | '.join(cells)} |"


def _is_published(model: dict[str, Any]) -> bool:
    """Whether its authors publish a file: for other layers' detectors, where there is a result."""
    is_detector = model["Config"].startswith("configs/detection/")
    collection = model["In Collection"]
    if collection == "CondConv":
        return "efficientnet" in model["Name"]
    if collection == "RedNet" or not (is_detector or collection == "DetectoRS"):
        return collection in SOURCES
    return any("Metrics" in result for result in model["Results"])


def _is_converted(model: dict[str, Any]) -> bool:
    """Whether tests/checkpoint converts such a network.

    Of SPConv's networks, ResNet-50 is. Of detectors, RedNet's and ODConv's are.
    """
    if model["In Collection"] in ("RedNet", "ODConv"):
        return True
    is_classifier = model["Config"].startswith("configs/variants/")
    if model["In Collection"] == "SPConv" and "resnet50" not in model["Name"]:
        return False
    return is_classifier and _is_published(model)


if __name__ == "__main__":
    main()
