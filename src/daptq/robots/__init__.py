"""Descriptions of robot arms as MJCF: data that simulators and drift models share."""
