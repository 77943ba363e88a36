"""Stand-ins for what OpenMMLab's packages import and a backbone never calls: mmcv's compiled operators."""

import importlib.machinery
import sys
import types


def without_compiled_operators():
    """Lets `mmseg` and `mmpretrain` be imported with mmcv-lite, which has no `mmcv._ext`."""

    def operator(name):
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_, **__):
            raise RuntimeError(f"mmcv-lite has no compiled operator `{name}`")

        return refuse

    extension = types.ModuleType("mmcv._ext")
    extension.__getattr__ = operator
    extension.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
    sys.modules.setdefault("mmcv._ext", extension)
