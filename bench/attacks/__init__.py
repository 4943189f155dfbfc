"""What an attacker does to a node, for `python -m bench attack`: kinds (a table), attacker (one
connection of it), old_logs (what it reads).
"""
