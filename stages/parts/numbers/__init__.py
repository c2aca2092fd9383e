"""Figures on the models: how they are measured, what they are worth, and how they are shown.

metrics       what `evaluate` measures: the typed content of reports/metrics.json
advice        which contender to serve, and why
arms          the compared arms: names and prices
baselines     the linear model that a student has to beat
held_out      predictions of rows that a student has not learned
calibration   the temperature and threshold of the service
break_even    after how many queries a student has paid for itself
contenders    students and teacher on one scale
choice        which contender is served
promise       the precision that the gold rows certify
out_of_scope  texts that no label fits
label_errors  which of a teacher's labels are likely wrong
statistics    intervals, paired tests, calibration error
by_label      figures of each label, confusion matrix
plots         the report's pictures
render        numbers and templates to text
cards         metadata of the model card and the data card
compare       two revisions (`make compare`)
seeds         several seeds (`make seeds`)
readme        the results in README.md (`make readme`)
"""
