"""What happens after an answer: unsure queries go to the teacher, answers become rows, falls in quality are noticed.

- __main__.py: export, import and purge
- relabel.py: which rows the teacher is queried for again after a change of labels
- retrain.py: a new student from the pool and the served rows
- rows.py: served queries as rows for the next run
- shadow.py: the served student compared with its shadow
- shadow_rows.py: live queries that two students have predicted
- store.py: served queries and their answers as rows, in SQLite, and what the teacher cost each day
- escalation.py: queries to the teacher, within a time limit, with a circuit breaker
- audit.py: how often student and teacher should agree
- drift.py: how familiar queries should be
- change_detector.py: alarms on a fall of a rate, with a guaranteed time between false alarms
"""
