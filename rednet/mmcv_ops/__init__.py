"""mmcv's compiled operators, by torchvision and PyTorch, where mmcv was installed without them.

mmcv-lite ships the Python half of ``mmcv.ops`` and lacks the compiled module ``mmcv._ext`` that it
calls. Importing this package appends a finder to ``sys.meta_path`` that offers a module of that
name. It comes last, so compiled operators always win; a finder at the front says what to do if
those do not load. Nothing else is imported until something imports ``mmcv._ext``, as ``mmcv.ops``
does.

Operators that are not served raise at their use, never at import.
"""

from rednet.mmcv_ops.finder import register_finders

register_finders()

__all__ = ["register_finders"]
