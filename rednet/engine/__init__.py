"""Hooks, training loops and optimizer wrappers for mmengine's Runner."""

from rednet.engine.backbone_checkpoint_hook import BackboneCheckpointHook
from rednet.engine.bare_weights_hook import BareWeightsHook
from rednet.engine.confusion_matrix_hook import ConfusionMatrixHook
from rednet.engine.cpu_amp_optim_wrapper import CpuAmpOptimWrapper
from rednet.engine.frozen_weights_hook import FrozenWeightsHook
from rednet.engine.interrupt_hook import InterruptHook
from rednet.engine.layer_visualization_hook import LayerVisualizationHook
from rednet.engine.non_finite_loss_hook import NonFiniteLossHook
from rednet.engine.resumable_loops import ResumableEpochTrainLoop, ResumableIterTrainLoop
from rednet.engine.safe_checkpoint_hook import SafeCheckpointHook
from rednet.engine.seeding import SeededBatchSampler
from rednet.engine.temperature_hook import TemperatureAnnealHook
from rednet.engine.training_curve_hook import TrainingCurveHook
from rednet.engine.whole_checkpoint_hook import WholeCheckpointHook

__all__ = [
    "BackboneCheckpointHook",
    "BareWeightsHook",
    "ConfusionMatrixHook",
    "CpuAmpOptimWrapper",
    "FrozenWeightsHook",
    "LayerVisualizationHook",
    "InterruptHook",
    "NonFiniteLossHook",
    "ResumableEpochTrainLoop",
    "ResumableIterTrainLoop",
    "SafeCheckpointHook",
    "SeededBatchSampler",
    "TemperatureAnnealHook",
    "TrainingCurveHook",
    "WholeCheckpointHook",
]
