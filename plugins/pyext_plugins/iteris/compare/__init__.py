"""All methods on the data and by the metric of the user: the command `compare`."""
