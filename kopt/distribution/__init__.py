"""Several devices, processes and machines that train one model, on `tf.distribute`."""

from kopt.distribution.adaptive_batch import AdaptiveBatch as AdaptiveBatch
from kopt.distribution.agreement import count_workers as count_workers
from kopt.distribution.agreement import from_chief as from_chief
from kopt.distribution.agreement import is_chief as is_chief
from kopt.distribution.agreement import total as total
from kopt.distribution.keras_internals import detach as detach
from kopt.distribution.launching import launch as launch
from kopt.distribution.local_sgd import LocalSGD as LocalSGD
from kopt.distribution.peers import WorkerLostError as WorkerLostError
from kopt.distribution.sharding import gather as gather
from kopt.distribution.sharding import ratio as ratio
from kopt.distribution.sharding import shard as shard
from kopt.distribution.sharding import share_loss as share_loss
from kopt.distribution.strategies import strategy as strategy
from kopt.distribution.strategies import together as together
