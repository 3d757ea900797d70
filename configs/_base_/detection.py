"""What every detector of RedNet shares."""

custom_imports = dict(imports=["rednet"], allow_failed_imports=False)

# Refuses to train where stages or norms are frozen that hold random weights.
custom_hooks = [dict(type="FrozenWeightsHook")]
