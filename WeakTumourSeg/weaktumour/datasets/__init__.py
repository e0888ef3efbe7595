"""Cohorts of case folders: made from public data sets, checked, and split by patient."""
