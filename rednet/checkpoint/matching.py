"""Which weights of a checkpoint fit a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rednet.errors import UserError, first_names

# Batch norms count batches for a momentum of None only, and files of other frameworks lack it.
_OPTIONAL = "num_batches_tracked"
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Match:
    """What a model took of a state_dict.

    Attributes:
        taken: How many of the model's weights were loaded.
        missing: The model's weights that the state_dict lacks.
        unexpected: The weights of the state_dict that the model lacks.
        other_shape: For each weight of another shape, its name and both shapes.
    """

    taken: int
    missing: list[str]
    unexpected: list[str]
    other_shape: list[str]

    @property
    def whole(self) -> bool:
        """Whether every weight found its counterpart."""
        return not (self.missing or self.unexpected or self.other_shape)

    def __str__(self) -> str:
        groups = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.other_shape,
        }
        parts = [f"{self.taken} weights loaded"]
        for what, names in groups.items():
            if names:
                parts.append(f"{len(names)} {what} ({first_names(names, _NAMES_SHOWN)})")
        return ", ".join(parts)


def load_matching_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Match:
    """Loads the weights that fit, through the model's own loading hooks.

    Args:
        model: The model.
        state_dict: The weights, under the model's names.

    Returns:
        What was loaded, and what did not fit.
    """
    own = {name: getattr(value, "shape", None) for name, value in model.state_dict().items()}
    wrong: dict[str, str] = {}
    try:
        missing, unexpected = model.load_state_dict(state_dict, strict=False)
    except RuntimeError:  # torch's way to say that shapes differ
        for name, value in state_dict.items():
            shape = own.get(name)
            if shape is not None and value.shape != shape:
                wrong[name] = f"{name}: {list(value.shape)}, in the model {list(shape)}"
        if not wrong:
            raise
        fitting = {name: value for name, value in state_dict.items() if name not in wrong}
        missing, unexpected = model.load_state_dict(fitting, strict=False)
    # Batch norms do not report counts that old files lack.
    uncounted = {each for each in own if each.endswith(_OPTIONAL) and each not in state_dict}
    absent = {*missing, *wrong, *uncounted}
    missing = [name for name in missing if name not in wrong and not name.endswith(_OPTIONAL)]
    return Match(len(set(own) - absent), missing, list(unexpected), list(wrong.values()))


def check_finite(state_dict: Mapping[str, Tensor]) -> None:
    """Checks that no weight is NaN or infinite.

    Raises:
        UserError: If one is; it names the first.
    """
    names = [
        name
        for name, value in state_dict.items()
        if isinstance(value, Tensor)
        and (value.is_floating_point() or value.is_complex())
        and not value.isfinite().all()
    ]
    if names:
        raise UserError(
            f"{len(names)} of {len(state_dict)} weights hold NaN or infinite values "
            f"({first_names(names, _NAMES_SHOWN)})"
        )
