"""The executor service: runs attempts of effects, reports their progress, and journals their results itself.

The way of one attempt reads off the modules: `intake` (the control stream) hands a start to `admission`, `attempts`
launches an `invocation`, which drives a `harness`; `progress` and `output` keep what the work says; `recording` writes
the outcome to the journal, and `intake` tells the scheduler what was written.
"""
