"""Messages between pairs at a fixed rate: latency from the time due, and what became of each.

N users in N/2 pairs, all of them sending, in rounds of a shuffled order. First each user sends once
(which makes the conversations), then a warm-up at the rate, then the window that is measured; each
phase is drained before the next. Losses and disorder count in all phases.

With `--contacts K` each user writes to K others at random, over a log that was filled to `--log`
messages and is kept for the next run: as users are, where pairs find everything in the caches.
"""

from __future__ import annotations

import argparse

from bench import contact_logs, report
from bench.gang import Gang
from bench.sending import NONE, WARMUP_S, Senders, shares, windows_of
from bench.sending import flags as sending_flags
from bench.target import TargetError

EXAMPLES = """\
  python -m bench send --rate 16000 --connections 200 --seconds 10         the message path at a high rate
  python -m bench send --limits default --connections 5000 --rate 5000 --ack all --read 0.2
                                                                           as people use it: all limits, acks, reads
  python -m bench send --burst 500                                         500 due at once, then nothing until the next
  python -m bench send --hot 0.5                                           half of all messages in one conversation
  python -m bench send --body-mix 0.8:50-200,0.15:200-1000,0.05:1000-2000  shares and lengths
  python -m bench send --devices 3 --connections 600                       200 users; delivered = all devices have it
  python -m bench send --contacts 200 --log 10M --connections 2000 --rate 14000     200,000 conversations
  python -m bench send --rate 40000 --generators 4                         on a large machine"""


def flags(parser: argparse.ArgumentParser) -> None:
    sending_flags(parser, rate=2_000, connections=500, seconds=30)
    parser.add_argument("--body-min", type=int, default=100, metavar="BYTES", help="shortest text (default: 100)")
    parser.add_argument("--body-max", type=int, default=200, metavar="BYTES", help="longest text (default: 200)")
    parser.add_argument(
        "--body-mix",
        type=body_mix,
        metavar="SHARE:MIN-MAX,...",
        help="several spans of lengths instead; the shares add up to 1",
    )
    parser.add_argument(
        "--burst", type=int, default=1, metavar="B", help="messages that are due at the same time (default: 1)"
    )
    parser.add_argument(
        "--hot",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of all messages that one conversation gets (default: 0)",
    )
    parser.add_argument("--devices", type=int, default=1, metavar="D", help="connections of a user (default: 1)")
    parser.add_argument(
        "--ack", choices=("none", "all"), default="none", help="clients ack every delivery (default: none)"
    )
    parser.add_argument(
        "--read", type=float, default=0.0, metavar="SHARE", help="and say of so many that they are read (default: 0)"
    )
    contact_logs.flags(parser)
    parser.add_argument("--budget-p95-ms", type=float, default=200, metavar="MS", help="of delivery (default: 200)")
    parser.add_argument("--budget-p99-ms", type=float, default=500, metavar="MS", help="of delivery (default: 500)")


def body_mix(text: str) -> list[list[float]]:
    """`0.8:50-200,0.2:200-2000` as [[share, shortest, longest], ...]."""
    mix = []
    for part in text.split(","):
        share, _, span = part.partition(":")
        low, _, high = span.partition("-")
        try:
            mix.append([float(share), int(low), int(high or low)])
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part} is not SHARE:MIN-MAX") from None
    if abs(sum(share for share, *_ in mix) - 1) > 1e-6:
        raise argparse.ArgumentTypeError("the shares do not add up to 1")
    return mix


async def run(options: argparse.Namespace) -> int:
    if options.burst < 1 or not 0 <= options.hot <= 1 or not 1 <= options.devices <= 8:
        raise TargetError("--burst is 1 or more, --hot from 0 to 1, --devices from 1 to 8")
    bodies = options.body_mix or [[1.0, options.body_min, options.body_max]]
    parts = shares(options.connections, options.rate, options.generators, options.hot, options.devices)
    contacts = contact_logs.of(options, parts[0].connections // options.devices, writing=True)
    if contacts is not None and options.hot:
        raise TargetError("--hot: is one of the pairs; leave --contacts out")
    async with contact_logs.target(options, contacts) as target, Gang(target, options.seed) as gang:
        ready = target.warm_wal(options.warm_wal_mib)
        senders = await Senders.start(
            target,
            gang,
            parts,
            bodies=bodies,
            burst=options.burst,
            devices=options.devices,
            ack=options.ack == "all",
            read=options.read,
            contacts=options.contacts,
        )
        await senders.warm_up(min(WARMUP_S, options.seconds))
        await senders.measure(options.seconds, windows_of(options.seconds))
        figures = {
            "rate": options.rate,
            "connections": sum(p.connections for p in parts),
            "seconds": options.seconds,
            **contact_logs.figures(contacts),
            "wal_segments_ready": ready,
            **senders.figures(),
            "windows": senders.windows(),
            "curves": senders.curves(),
            **report.context(options, target),
        }
    most = {**NONE, "p95_ms": options.budget_p95_ms, "p99_ms": options.budget_p99_ms}
    return report.finish(options, figures, most | ({"unanswered": 0.0} if "unanswered" in figures else {}))
