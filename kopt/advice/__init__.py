"""Which optimizer, which rate and which schedule to begin with, and why."""

from kopt.advice.additions import ADDITIONS as ADDITIONS
from kopt.advice.additions import SMALLER as SMALLER
from kopt.advice.recommend import Advice as Advice
from kopt.advice.recommend import recommend as recommend
from kopt.advice.situations import SITUATIONS as SITUATIONS
