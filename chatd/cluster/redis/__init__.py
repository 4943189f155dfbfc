"""Redis in whichever shape its URL names. The one place that imports redis-py."""
