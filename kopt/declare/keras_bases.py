"""The classes of Keras that declared classes extend.

A type checker cannot follow them, and takes any argument for a class with a base that it does not know. It sees
stand-ins, with the methods that are extended here.
"""

from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:

    class KerasOptimizer:
        slots: Any  # attributes or properties of a rule
        shared: Any
        needs_loss: Any

        def __getattr__(self, name: str) -> Any: ...
        def build(self, variables: Any) -> None: ...
        def scale_loss(self, loss: Any) -> Any: ...

    class KerasSchedule:
        def __getattr__(self, name: str) -> Any: ...

    class KerasCallback:
        def __getattr__(self, name: str) -> Any: ...
        def set_model(self, model: Any) -> None: ...

else:
    KerasOptimizer = keras.optimizers.Optimizer
    KerasSchedule = keras.optimizers.schedules.LearningRateSchedule
    KerasCallback = keras.callbacks.Callback
