"""The install of docs/operations.md, word for word, on a machine of its own under systemd, until
two people chat over TLS.

python -m tests.install          as root; the machine at hand stays as it is
python -m tests.install --plan   only show the commands

__main__  ──►  page      the commands and files of the section Install
          ──►  machine   a root of its own over the one at hand, booted by its systemd; boot.sh mounts it
          ──►  checks    what the page promises: chat, addresses, log, metrics, signals
          ──►  states    what /readyz says in each state of PostgreSQL and Redis
               inside/   programs that run on that machine, with nothing of this repository but the wheel
"""
