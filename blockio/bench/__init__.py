"""The benchmark harness: blockio and its peers at the same work, in turn, on one file. ``blockio bench`` is its tool.

Everybody runs once in each round (A B C, A B C, …), so that a machine that grows slower does so for all of them; what
counts is the ratio within a round, and its spread over the rounds. Rivals that are not installed are named and left
out.
"""
