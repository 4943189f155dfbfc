"""For the operator: admin port, the commands of `chatd`, worker processes, sd_notify."""
