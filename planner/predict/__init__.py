"""The model of time and metric: survivors, costs, replay of a trace, percentiles, objectives."""
