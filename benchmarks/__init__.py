"""Side by side with what else there is: ``make bench``, or ``python -m benchmarks [--quick]``.

Every workload runs in turn with its rivals on one file (A B C, A B C, …), so that a machine that grows slower does so
for all of them; what counts is the ratio within a round. Rivals that are not installed are named and left out.
"""
