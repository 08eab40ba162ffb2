"""Secure aggregation: the sum of the sites' updates, and nothing of any one of them.

Bonawitz et al. 2017 (ACM CCS, doi 10.1145/3133956.3133982) on the full graph, as
functions and frozen types without disk, network or clock; record 27 in
`docs/decisions` says how it is hardened and why.
"""
