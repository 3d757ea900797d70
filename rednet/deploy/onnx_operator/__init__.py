"""Involution as one operator of an ONNX graph, ``rednet::Involution2d``.

It runs in ONNX Runtime on the CPU, with a library that is built from ``involution.cpp`` and the
sources of the CPU backend.
"""
