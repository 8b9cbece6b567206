"""How arguments are declared, classes found by name, and weights by path."""

from kopt.declare.fields import Configurable as Configurable
from kopt.declare.fields import Declared as Declared
from kopt.declare.fields import Field as Field
from kopt.declare.fields import checked as checked
from kopt.declare.kinds import Convert as Convert
from kopt.declare.kinds import Count as Count
from kopt.declare.kinds import Fraction as Fraction
from kopt.declare.kinds import NonNegative as NonNegative
from kopt.declare.kinds import OpenFraction as OpenFraction
from kopt.declare.kinds import Positive as Positive
from kopt.declare.kinds import Range as Range
from kopt.declare.kinds import Share as Share
from kopt.declare.kinds import accept as accept
