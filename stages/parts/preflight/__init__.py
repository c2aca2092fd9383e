"""Whether this machine can run the profile, checked within seconds, before anything is paid for or downloaded.

checks.py    the checks, one line each; stage raw refuses to start where one fails on the way to a GPU
"""
