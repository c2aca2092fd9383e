"""What happens after an answer: unsure queries go to the teacher, answers become rows, falls in quality are noticed.

- store.py: served queries and their answers as rows, in SQLite, and what the teacher cost each day
- escalation.py: queries to the teacher, within a time limit, with a circuit breaker
- change_detector.py: alarms on a fall of a rate, with a guaranteed time between false alarms
"""
