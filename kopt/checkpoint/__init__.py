"""Training that goes on where it was ended: checkpoints inside of `fit`, and files that are never half there."""

from kopt.checkpoint.atomic_files import atomic_file as atomic_file
from kopt.checkpoint.atomic_files import atomic_folder as atomic_folder
from kopt.checkpoint.atomic_files import remove_leftovers as remove_leftovers
from kopt.checkpoint.resume import Checkpoint as Checkpoint
from kopt.checkpoint.shuffled_batches import ShuffledBatches as ShuffledBatches
