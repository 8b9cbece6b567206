"""Optimizers that see all data at each step, and `minimize`."""

from kopt.optimizers.full_batch.bgd import BGD as BGD
from kopt.optimizers.full_batch.full_batch import FullBatch as FullBatch
from kopt.optimizers.full_batch.lbfgs import LBFGS as LBFGS
from kopt.optimizers.full_batch.lbfgsb import LBFGSB as LBFGSB
from kopt.optimizers.full_batch.levenberg_marquardt import LevenbergMarquardt as LevenbergMarquardt
from kopt.optimizers.full_batch.minimize import minimize as minimize
from kopt.optimizers.full_batch.result import Result as Result
from kopt.optimizers.full_batch.rprop import Rprop as Rprop
