"""The real cores in one process, under one seed: a network that loses and delays, disks that
forget, clocks that drift, servers that crash, and checkers that look after every step.

Everything that happens is an event of one `World`, ordered by simulated time; every choice comes
from its one source of randomness.  So the same seed gives the same run, to the last byte of its
trace, and a run that fails can be looked at as often as needed.
"""
