"""Adapters as files in the form of Hugging Face peft.

The words for where a weight is, in the order in which they build on each other:

    Site        the kernel of one Keras layer seen as a matrix [in, out]; it knows nothing of Hugging Face
                (`kopt.peft.layers`)
    Record      what KerasHub's converter said of one variable: the key of the tensor that it comes from, and the
                function that turns the tensor into it
    Port        a variable of the model and its name in Hugging Face: a module and a parameter in it
    Placement   for each element of a variable, the element of the tensor that it comes from
    Factors     the same for a kernel that changes by a product A B: where its inputs and its outputs lie in the tensor
    Part        the weights of one adapter at one layer, with Site and Factors: what a file will hold of them

For the query of the first block of GPT-2:

    layer transformer_layer_0.self_attention.query       Site       _kernel [768, 12, 64] as a matrix [768, 768]
      |  KerasHub's converter                            Record     "h.0.attn.c_attn.weight", cut into three
      v                                                  Port       module "h.0.attn.c_attn", parameter "weight"
    tensor "weight" [768, 2304] of that module           Placement  the rows and columns of each element
      shared with key and value                          Factors    all rows, and the columns 0 to 767

A Part of each of the three layers is combined into one adapter of the module, and divided again when it is read. So are
the kernels of `target_parameters`, whose module has several tensors: the experts of a mixture (`raw_parameters`).
"""

from kopt.peft.exchange.adapter_folder import load_adapter as load_adapter
from kopt.peft.exchange.adapter_folder import save_pretrained as save_pretrained
from kopt.peft.exchange.config_of_folder import load_config as load_config
