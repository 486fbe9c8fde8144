"""What the project's statements about speed rest on: the same work on mountfs, a plain directory
and peers, in one run.  benchmarks/README.md says how it measures and how to read it.
"""
