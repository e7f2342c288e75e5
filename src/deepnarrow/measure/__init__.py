"""Judging: scores with intervals, speed beside the machine's ceilings, one ledger, the frontier and its report."""
