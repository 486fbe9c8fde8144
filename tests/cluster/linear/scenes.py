"""The kinds of work there are."""

from .files import Appends, Attributes, Closed, Contents, Counters, Held
from .locks import Locks
from .names import Names
from .scene import Scene

SCENES: dict[str, type[Scene]] = {
    "names": Names,
    "attrs": Attributes,
    "closed": Closed,
    "contents": Contents,
    "held": Held,
    "appends": Appends,
    "counters": Counters,
    "locks": Locks,
}
