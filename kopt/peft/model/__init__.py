"""Adapters on a whole model."""

from kopt.peft.model.adapters import ModelAdapters as ModelAdapters
from kopt.peft.model.adapters import adapters_of as adapters_of
from kopt.peft.model.adapters import require_adapters as require_adapters
from kopt.peft.model.functions import delete_adapter as delete_adapter
from kopt.peft.model.functions import disable_adapter as disable_adapter
from kopt.peft.model.functions import get_peft_model as get_peft_model
from kopt.peft.model.functions import merge_adapter as merge_adapter
from kopt.peft.model.functions import merge_and_unload as merge_and_unload
from kopt.peft.model.functions import set_adapter as set_adapter
from kopt.peft.model.functions import unload as unload
from kopt.peft.model.functions import unmerge_adapter as unmerge_adapter
from kopt.peft.model.model_class import add_adapter as add_adapter
from kopt.peft.model.model_class import put_adapter as put_adapter
from kopt.peft.model.reports import LayerStatus as LayerStatus
from kopt.peft.model.reports import ModelStatus as ModelStatus
from kopt.peft.model.reports import adapter_layers as adapter_layers
from kopt.peft.model.reports import get_model_status as get_model_status
from kopt.peft.model.reports import get_nb_trainable_parameters as get_nb_trainable_parameters
from kopt.peft.model.reports import layer_status as layer_status
from kopt.peft.model.reports import print_trainable_parameters as print_trainable_parameters
from kopt.peft.model.reports import summary as summary
from kopt.peft.model.selection import Plan as Plan
from kopt.peft.model.selection import plan as plan
from kopt.peft.model.state import get_adapter_state as get_adapter_state
from kopt.peft.model.state import set_adapter_state as set_adapter_state
from kopt.peft.model.state import set_scale as set_scale
