"""Rows: what they are, where they come from, what is refused.

rows        what a row is, and its stable id
tables      one file as a table; all its faults in one line
folder      a folder of your own: pool, gold, labels, test
benchmarks  labelled data sets from the network, pinned
label_changes  labels added, renamed, split or merged, and the answers that stay
left_out    rows that would spoil the numbers
leaks       texts that are in two parts
decisions   what people decided in the review
"""
