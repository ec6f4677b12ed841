"""ApexMediation's platform: the customer life cycle from raw telemetry to the mail that was sent."""

__version__ = "0.1.0"
