"""Metrics with intervals, the container audit, plots and the report. No Ray here."""
