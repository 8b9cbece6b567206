"""The layers of Keras as adapters see them: their kernels, their paths, and what Keras does not document."""

from kopt.peft.layers.keras_internals import attach as attach
from kopt.peft.layers.keras_internals import child_layers as child_layers
from kopt.peft.layers.keras_internals import child_of as child_of
from kopt.peft.layers.keras_internals import compilation as compilation
from kopt.peft.layers.keras_internals import detach as detach
from kopt.peft.layers.keras_internals import direct_variables as direct_variables
from kopt.peft.layers.keras_internals import flatten_layers as flatten_layers
from kopt.peft.layers.keras_internals import forget_functions as forget_functions
from kopt.peft.layers.keras_internals import in_forward_pass as in_forward_pass
from kopt.peft.layers.keras_internals import is_trainable as is_trainable
from kopt.peft.layers.keras_internals import original_class as original_class
from kopt.peft.layers.keras_internals import own_variables as own_variables
from kopt.peft.layers.keras_internals import set_class as set_class
from kopt.peft.layers.keras_internals import set_optimizer as set_optimizer
from kopt.peft.layers.keras_internals import set_trainable as set_trainable
from kopt.peft.layers.keras_internals import stored_value as stored_value
from kopt.peft.layers.keras_internals import strategy_of as strategy_of
from kopt.peft.layers.keras_internals import trained_by as trained_by
from kopt.peft.layers.keras_internals import unlocked as unlocked
from kopt.peft.layers.keras_internals import unpickler as unpickler
from kopt.peft.layers.keras_internals import untrack as untrack
from kopt.peft.layers.layer_paths import named_layers as named_layers
from kopt.peft.layers.site import Site as Site
from kopt.peft.layers.site import Tensor as Tensor
from kopt.peft.layers.site import find_site as find_site
