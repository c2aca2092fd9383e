"""What the stages and the service share, in rooms by subject.

Imports go from later rooms to earlier ones (tests/test_rooms.py holds it): run, task, data, engines; then teachers,
students, training and numbers, which know only those four; then review, which knows numbers, too, and tuning, which
knows numbers and teachers. tracking logs what stages wrote, and knows students for the model that it registers.
"""
