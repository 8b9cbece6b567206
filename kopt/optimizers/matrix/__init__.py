"""Rules that see kernels as matrices."""

from kopt.optimizers.matrix.klsoap import KLSOAP as KLSOAP
from kopt.optimizers.matrix.muon import Muon as Muon
from kopt.optimizers.matrix.muon import NorMuon as NorMuon
from kopt.optimizers.matrix.psgdkron import PSGDKron as PSGDKron
from kopt.optimizers.matrix.scion import Scion as Scion
from kopt.optimizers.matrix.shampoo import SOAP as SOAP
from kopt.optimizers.matrix.shampoo import Shampoo as Shampoo
