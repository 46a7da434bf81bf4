"""The steps of an ingest: functions of files below one folder, run anywhere, in any order within a step. No Ray here.

Every step reads what the one before wrote and writes whole files under names that say what they were made of, so a
step that was interrupted, or runs twice at once, leaves nothing that could mislead the next run.
"""
