"""Rules that see kernels as matrices."""

from kopt.optimizers.matrix.muon import Muon as Muon
from kopt.optimizers.matrix.muon import NorMuon as NorMuon
