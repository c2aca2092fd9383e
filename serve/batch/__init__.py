"""Whole files through the served student.

__main__.py     the command: a CSV file, or with --ray a folder of Parquet files
answers.py      the answer to one row, whichever file it is from
csv_file.py     a CSV file's rows, and what is wrong with it
in_process.py   a CSV file, by a student in this process
by_engine.py    a CSV file, by the decoder on an engine
parquet.py      reading and writing Parquet files a batch of rows at a time
parquet_job.py  one Parquet file of many, until it is done
on_ray.py       a folder of them, on all cores of a machine or a cluster
"""
