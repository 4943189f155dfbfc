"""Rate limits over all nodes, by Redis's clock; each node counts alone while Redis is away.

    AdmissionQueue ──gather──► SharedLimits ──SCRIPT──► Redis
           ▲                        │             {chatd}:rate:<user>   takes of the rate, penalty
           └─────decide, alone──────┘             {chatd}:new:<user>    new conversations

One script call serves all sends of a loop turn. Guarantee: while Redis answers, no user makes more
than `max_events` takes in any period, over all devices and nodes.

A call that fails, or is not answered within `DEADLINE_S`, opens the circuit breaker: this node
alone decides what waits and what arrives, until a probe succeeds. A user can then make as many
takes on each node. The same holds for one period after the outage, because Redis does not know what
was taken during it. A Redis that restarts empty has forgotten one period, too. After a failover,
what the replica had not received is forgotten.

State in Redis: one string per user and limit, {until, strikes, last wait, take, take, ...} in
microseconds by `cmsgpack`, some 100 bytes for ten takes. It expires with its last take (5 s by
default), or 60 s after a penalty. Rejected: a sorted set or list, which needs 4 commands where this
needs 1.5. Rejected: fixed counters, with which 20 takes fit around a period's edge
(core/rate_limit.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

import orjson
import structlog

from chatd.chat.ports import NEW_PERIOD_S, Rates, Windows
from chatd.cluster.redis.client import RedisClient, RedisUnavailable
from chatd.core.admission import AdmissionQueue, Ask, Call, Grant
from chatd.core.rate_limit import FORGET_S, SharedPenalty, SharedWindow, SlidingWindow
from chatd.ids import UserId
from chatd.metrics import Metrics

log = structlog.get_logger("quota")  # "quota" in logs and metrics is this module

DEADLINE_S: Final = 0.05
PROBE_S: Final = 1.0  # before the first probe of an outage; the pause doubles
PROBE_MAX_S: Final = 5.0
RATE, NEW = 1, 2  # kinds of windows: index in the script's list of limits
HOUR_S: Final = NEW_PERIOD_S
US: Final = 1_000_000
NUMBER_MAX: Final = 2**62  # bound of every number of the script: 146,000 years in us

# KEYS: one per window. ARGV: [[max, period], ...] by kind; [[kind, want, [returned], [struck]],
# ...] by key, the lists only if not empty; how long strikes are remembered. All times in us.
#
# MGET, because it reads a key of another type as nil instead of failing. A value that is no state
# of ours counts as none. After Redis's clock was set back, takes and ends of penalties lie in the
# future: they count as made now and are written back so, or they would count for as long as the
# step. Numbers of 16 digits must not be concatenated, because Lua writes 14 digits.
#
# Returns "now granted wait until strikes last_wait granted wait ..." (core.admission.Grant).
SCRIPT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local limits, asks, forget = cjson.decode(ARGV[1]), cjson.decode(ARGV[2]), tonumber(ARGV[3])
local states = redis.call('MGET', unpack(KEYS))
local out = {string.format('%.0f', now)}

local function read(packed)
  if not packed then return {0, 0, 0} end
  local ok, state = pcall(cmsgpack.unpack, packed)
  if not ok or type(state) ~= 'table' or #state < 3 then return {0, 0, 0} end
  for i = 1, #state do
    if type(state[i]) ~= 'number' or not (state[i] >= 0 and state[i] < 9e15) then return {0, 0, 0} end
  end
  return state
end

for k, key in ipairs(KEYS) do
  local ask = asks[k]
  local limit, want, back, struck = limits[ask[1]], ask[2], ask[3], ask[4]
  local max, period = limit[1], limit[2]
  local state, changed = read(states[k]), false
  local last_wait = state[3]
  local until_, strikes = math.min(state[1], now + last_wait), state[2]
  if until_ < state[1] then changed = true end

  local kept, returned = {0, 0, 0}, nil  -- the new state: takes from 4 on
  local last = 3
  if back then
    returned = {}
    for _, mark in ipairs(back) do returned[mark] = (returned[mark] or 0) + 1 end
  end
  for i = 4, #state do
    local at = state[i]
    if returned and (returned[at] or 0) > 0 then
      returned[at], changed = returned[at] - 1, true
    elseif now - at < period then
      if at > now then at, changed = now, true end
      last = last + 1
      kept[last] = at
    end
  end

  if struck then
    for _, told in ipairs(struck) do
      if now >= until_ + forget then strikes, last_wait = 0, 0 end
      strikes, last_wait, until_, changed = strikes + 1, math.max(last_wait, told), math.max(until_, now + told), true
    end
  end
  if now >= until_ + forget then strikes, last_wait, until_ = 0, 0, 0 end

  local granted, wait = 0, 0
  if now >= until_ then granted = math.max(0, math.min(want, max - (last - 3))) end
  for _ = 1, granted do
    last = last + 1
    kept[last] = now
  end
  if granted < want then
    if last - 3 >= max then wait = kept[last - max + 1] + period - now end
    wait = math.max(wait, until_ - now)
  end

  if granted > 0 or changed then
    local lives = 0
    if last > 3 then lives = kept[last] + period - now end
    if strikes > 0 then lives = math.max(lives, until_ + forget - now) end
    if lives > 0 then
      kept[1], kept[2], kept[3] = until_, strikes, last_wait
      redis.call('SET', key, cmsgpack.pack(kept), 'PX', math.ceil(lives / 1000))
    else
      redis.call('DEL', key)
    end
  end
  if granted == 1 and wait == 0 and strikes == 0 and last_wait == 0 then
    out[k + 1] = '1 0 0 0 0'  -- nearly all: to write numbers takes as long as the rest
  else
    local left = strikes > 0 and until_ - now or 0
    out[k + 1] = table.concat({granted, wait, left, strikes, last_wait}, ' ')
  end
end
return table.concat(out, ' ')
"""


class LimitScript(Protocol):
    """`redis_client.script(SCRIPT)`. Raises RedisUnavailable, at the deadline too."""

    async def __call__(
        self, keys: Sequence[str | bytes], args: Sequence[str | bytes | int | float], within_s: float | None = None
    ) -> Any: ...


class SharedLimits:
    """Implements `chat.ports.Admission` over Redis.

    `run` is its task, for the life of the node. `now`: seconds, monotonic.
    """

    decides_at_once: Final = False

    def __init__(
        self,
        redis_client: RedisClient | LimitScript,
        prefix: str,
        metrics: Metrics,
        rates: Rates,
        queue_max: int,
        *,
        now: Callable[[], float],
        sleep: Callable[[float], Coroutine[Any, Any, object]] = asyncio.sleep,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._script: LimitScript = (
            redis_client.script(SCRIPT) if isinstance(redis_client, RedisClient) else redis_client
        )
        self._metrics, self._rates = metrics, rates
        self._now, self._sleep, self._deadline_s = now, sleep, deadline_s
        self._keys = {RATE: f"{{{prefix}}}:rate:", NEW: f"{{{prefix}}}:new:"}
        self._limits = orjson.dumps(
            [[rates.messages, round(rates.per_s * US)], [rates.new_per_hour, round(HOUR_S * US)]]
        )
        self._forget = int(FORGET_S * US)
        self._filled = asyncio.Event()
        self._passed = asyncio.Event()  # nothing waits for a decision
        self._passed.set()
        self.queue = AdmissionQueue(queue_max, self._wake)
        self.queue.away = True  # until the first probe: no send waits for the first connection

    # ---- for the services ------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether the circuit breaker is open: this node decides alone."""
        return self.queue.away

    def windows(self, user: UserId) -> Windows:
        """The windows of a new user."""
        rates = self._rates
        penalty = SharedPenalty(rates.strikes_max)
        window = SharedWindow(rates.messages, rates.per_s, RATE, user, self.queue, penalty)
        return Windows(window, penalty, SharedWindow(rates.new_per_hour, HOUR_S, NEW, user, self.queue))

    def put(self, window: SlidingWindow, then: Callable[[float], None]) -> bool:
        """Call `then(arrived)` when the window's grant is known; `arrived`: time of this call.

        False: too many wait, and `then` is never called.
        """
        assert isinstance(window, SharedWindow)
        alone = self.queue.alone_n
        taken = self.queue.put(window, self._now(), then)
        if self.queue.alone_n != alone:
            self._metrics.quota_local += self.queue.alone_n - alone
        return taken

    async def take(self, window: SlidingWindow) -> tuple[float, float]:
        """Take one: (seconds to wait, when it was taken), as `SlidingWindow.take` has them."""
        result: asyncio.Future[tuple[float, float]] = asyncio.get_running_loop().create_future()

        def then(arrived: float) -> None:
            if not result.cancelled():
                result.set_result((window.take(arrived), arrived))

        if not self.put(window, then):
            return 1.0, 0.0
        return await result

    async def idle(self) -> None:
        """Return when nothing waits for a decision."""
        await self._passed.wait()

    def _wake(self) -> None:
        self._filled.set()
        self._passed.clear()

    # ---- the calls -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ask Redis for what waits, one call at a time. Never returns."""
        if await self._probe():
            self.queue.back()
        else:
            await self._probe_until_back()
        while True:
            await self._filled.wait()
            self._filled.clear()
            while not self.queue.idle:
                if not await self._turn():
                    await self._probe_until_back()
            self._passed.set()

    async def _turn(self) -> bool:
        """Make one call and decide by it. False: Redis is away, and this node decided alone."""
        call = self.queue.gather()
        answer: tuple[int, list[Grant]] | None = (0, [])
        if call.asks:
            self._metrics.quota_calls += 1
            answer = await self._ask(call)
        if answer is not None:
            self.queue.decide(call, *answer, self._now())
            return True
        before = self.queue.alone_n
        self.queue.alone(call)
        self._metrics.quota_local += self.queue.alone_n - before
        self._passed.set()
        return False

    async def _ask(self, call: Call) -> tuple[int, list[Grant]] | None:
        keys = [self._keys[ask.window.kind] + ask.window.user for ask in call.asks]
        try:
            asks = orjson.dumps([row_of(ask) for ask in call.asks])
            answer = read_answer(
                await self._script(keys, [self._limits, asks, self._forget], self._deadline_s), len(keys)
            )
            if any(row.granted > ask.want for ask, row in zip(call.asks, answer[1], strict=True)):
                raise ValueError("Redis grants more than was asked for")
            return answer
        except (RedisUnavailable, ValueError) as e:
            log.warning("quota.away", reason=str(e), meanwhile="each node counts alone")
            return None

    async def _probe_until_back(self) -> None:
        """Probe until Redis answers. Nothing waits in that time: the node decides alone."""
        pause, since = PROBE_S, self._now()
        while True:
            await self._sleep(pause)
            pause = min(pause * 2, PROBE_MAX_S)
            if await self._probe():
                self.queue.back()
                log.info("quota.back", away_s=round(self._now() - since, 1))
                return

    async def _probe(self) -> bool:
        """Whether Redis answers in time.

        The first call may take as long as connecting does. The second must meet the deadline.
        """
        # The key of no user, as a user's name is never empty. A strike always writes, so a Redis
        # that cannot write fails the probe.
        ask: tuple[list[str], list[bytes | int]] = [self._keys[RATE]], [self._limits, b"[[1,0,[],[0]]]", self._forget]
        try:
            self._metrics.quota_calls += 2
            read_answer(await self._script(*ask), 1)
            read_answer(await self._script(*ask, self._deadline_s), 1)
        except (RedisUnavailable, ValueError):
            return False
        return True


def row_of(ask: Ask) -> list[object]:
    """One element of the script's second argument."""
    kind = ask.window.kind
    if not ask.returned and not ask.struck:
        return [kind, ask.want]
    return [kind, ask.want, ask.returned, [round(wait * US) for wait in ask.struck]]


# A window that got the one take that it asked for, of a user without a penalty
ONE_GRANTED: Final = Grant(1, 0.0, 0.0, 0, 0.0)
_ONE_ROW: Final = b"1 0 0 0 0 "


def read_answer(answer: object, windows: int) -> tuple[int, list[Grant]]:
    """(time in us, grants) of the script's answer. Raises ValueError if it is no such answer."""
    if not isinstance(answer, bytes):
        raise ValueError("Redis did not answer as the script does")
    at, _, rows = answer.partition(b" ")
    if rows == (_ONE_ROW * windows)[:-1] and at.isdigit() and int(at) < NUMBER_MAX:
        return int(at), [ONE_GRANTED] * windows  # nearly always: what follows costs 1 us a window
    now, *numbers = map(int, answer.split())
    if len(numbers) != 5 * windows:
        raise ValueError("Redis answered as another script does")
    if (
        not 0 <= now < NUMBER_MAX
        or min(numbers) <= -NUMBER_MAX
        or max(numbers) >= NUMBER_MAX
        or min(numbers[::5]) < 0  # granted
    ):
        raise ValueError("Redis answered with numbers that the script cannot give")
    return now, [
        Grant(numbers[n], numbers[n + 1] / US, numbers[n + 2] / US, numbers[n + 3], numbers[n + 4] / US)
        for n in range(0, len(numbers), 5)
    ]
