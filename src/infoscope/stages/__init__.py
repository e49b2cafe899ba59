"""The stages, one file each: its needs, key, build, cost in counts, rows and section of the report.

What depends on what:

    scenes -> (train_clip) -> tokens -> train_sae -> rank -> score -> groups -> probe, predict, select
                                                  -> outliers, confounds -> report
"""
