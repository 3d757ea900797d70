"""Shared by all segmentation configs."""

custom_imports = dict(imports=["rednet"], allow_failed_imports=False)

# Stops a training whose frozen stages or norms hold random weights.
custom_hooks = [dict(type="FrozenWeightsHook")]
