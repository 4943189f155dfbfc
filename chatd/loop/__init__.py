"""Timers and tasks of the event loop: an alarm, a beat per second, how tasks end and restart."""
