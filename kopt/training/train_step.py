"""Train steps of their own, given to any model: the class, and the model around another one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import keras

from kopt.declare import Declared, Field

if TYPE_CHECKING:
    from keras import Model as Trained
else:
    Trained = object

AROUND: dict[type, Any] = {}
"""For each way to train the class of a model that calls another one."""


class TrainStep(Declared, Trained):
    """The part of a model's class that says how it trains, for any model by `of`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Returns a model that is not built.

        Raises:
            RuntimeError: on other backends than TensorFlow, whose train step this is.
            TypeError: without a class of Keras' models beside this one.
        """
        if (found := keras.backend.backend()) != "tensorflow":
            raise RuntimeError(
                f"{cls.__name__} is a train step of TensorFlow: set KERAS_BACKEND=tensorflow before Keras is imported, "
                f"or train without it. Received: the backend {found}"
            )
        if (args or kwargs) and not issubclass(cls, keras.Model):  # Keras makes bases of a class without any
            raise TypeError(
                f"{cls.__name__} is the training part of a model's class: write {cls.__name__}.of(model), or "
                f"class Net({cls.__name__}, keras.Model). Received: {cls.__name__}(...) alone"
            )
        return super().__new__(cls, *args, **kwargs)

    @classmethod
    def of(cls, model: Any, **options: Any) -> Any:
        """Returns a model that computes what `model` does, with its weights, and trains in this way.

        Args:
            model: any Keras model.
            **options: the attributes of this class.
        """
        return AROUND[cls](model, **options)

    def make_train_function(self: Any, force: bool = False) -> Any:
        """Looks at the options before the first step."""
        for name, field in self.fields.items():  # of the class, perhaps, which has no setter
            field.check(type(self).__name__, getattr(self, name))
        return super().make_train_function(force)


class Around(keras.Model):
    """A model that calls another one.

    Args:
        model: the one within.
        name: of this one.
        **options: those of the way to train.
    """

    def __init__(self, model: Any, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name)
        self.model = model
        for key, value in options.items():
            if key not in self.fields:
                raise ValueError(f"{type(self).__name__} has no option {key!r}. It takes {', '.join(self.fields)}.")
            setattr(self, key, value)
        if model.built and getattr(model, "inputs", None):
            self.build([x.shape for x in model.inputs] if len(model.inputs) > 1 else model.inputs[0].shape)

    fields: ClassVar[Mapping[str, Field]] = {}

    def build(self, input_shape: Any) -> None:
        """Builds the model within."""
        if not self.model.built:
            self.model.build(input_shape)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Calls the model within."""
        return self.model(inputs, training=training)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, fit for JSON."""
        options = {key: getattr(self, key) for key in self.fields}
        return {"name": self.name, "model": keras.saving.serialize_keras_object(self.model), **options}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """Makes the model of a configuration."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects=custom_objects)
        return cls(**{**config, "model": model})
