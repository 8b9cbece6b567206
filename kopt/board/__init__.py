"""The boards, as committed figures: every rule on forty small problems, twelve on five tasks, adapters on two.

    kopt.board.row("lion").passed          # problems of 40
    kopt.board.row("lion").by_family()     # {"conditioning": (4, 5), ...}
    kopt.board.adapters()["sentences"]["lora"].value     # test accuracy

`kopt bench` makes the figures; docs/board.md and docs/board-adapters.md show them.
"""

from kopt.board.method_rows import MethodResult as MethodResult
from kopt.board.method_rows import adapters as adapters
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
