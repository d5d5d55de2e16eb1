"""What many runs say together: associations, interventions and forecasts, with the task pair as the unit of replication.

Runs of one task pair resemble one another, so they are not independent. Naming the files by their question:

- runs: one record per run, and columns of them;
- association: does a measure go with forgetting, over all runs and within task pairs, also given other measures;
- trade_off: what an intervention does to forgetting, and what is left of that at matched learning of task 2;
- calibration, prediction: are forecasts right in size, and does a measure predict unseen task pairs;
- clusters: a mean, or any fit, over runs that come in pairs; intraclass: how alike the runs of a pair are;
- power: what a study of this size could have seen (`forgetting.multiplicity`: many measures, one claim);
- conclusions: the answers in plain words.
"""
