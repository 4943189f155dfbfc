"""Timers and tasks of the event loop: one alarm for what is due, one beat a second, how tasks end
and start again.
"""
