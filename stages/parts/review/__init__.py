"""Rows for people to review, the most doubtful first.

__main__      the page and its routes, on loopback
queue         how doubtful each row is, and the order of the queue
desk          a review in progress: one row at a time, decisions, undo
label_studio  the queue as Label Studio's tasks, and its export as decisions
"""
