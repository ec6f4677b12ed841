"""The churn model: features, training, evaluation, gate, registry, scoring. Frames in, frames out.

Belongs here: everything that can be said about a model from a polars frame and a folder.
Does not belong here: databases, clocks, settings, schedules (`apex_pipelines.churn` has those).
"""
