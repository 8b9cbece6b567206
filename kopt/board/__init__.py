"""The board: how every rule does on forty small problems, and twelve of them on five tasks, as committed figures.

    kopt.board.row("lion").passed          # problems of 40
    kopt.board.row("lion").by_family()     # {"conditioning": (4, 5), ...}

`kopt bench` makes the figures; docs/board.md shows them.
"""

from kopt.board.reader import Problem as Problem
from kopt.board.reader import Row as Row
from kopt.board.reader import TaskResult as TaskResult
from kopt.board.reader import Verdict as Verdict
from kopt.board.reader import left_out as left_out
from kopt.board.reader import problems as problems
from kopt.board.reader import profile as profile
from kopt.board.reader import protocol as protocol
from kopt.board.reader import row as row
from kopt.board.reader import rows as rows
from kopt.board.reader import score as score
from kopt.board.reader import tasks as tasks
