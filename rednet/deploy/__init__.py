"""Trained models made ready for inference: fused layers and ONNX files."""

from rednet.deploy.fusing import switch_to_deploy

__all__ = ["switch_to_deploy"]
