"""Limits over all nodes, by Redis's clock: one script call for all sends of a loop turn, and this
node's own count while Redis is away.

    AdmissionQueue ─gather─► Quota ─SCRIPT─► Redis   {chatd}:rate:<user>   takes of the rate, the penalty
      ▲                │                          {chatd}:new:<user>    new conversations
      └─decide, alone──┘

Guarantee: while Redis answers, no user makes more than `max_events` takes in any period, over all
devices and nodes. A call that has not answered within `DEADLINE_S`, or fails, opens the breaker:
whatever waits is decided by this node alone, and so is all that comes until a trial gets through.
Then a user can make as much on each node; and for one period after it, for Redis knows nothing of
what was taken meanwhile. A Redis restarted empty has forgotten one period, too. A failover to a
replica forgets what the replica had not yet got.

State in Redis: one string a user and limit, {until, strikes, last wait, take, take, ...} in
microseconds by `cmsgpack`, some 100 bytes for ten takes. It expires with its last take (5 s by
default), or 60 s after a penalty. A sorted set or list would need 4 commands where this needs one
and a half; with fixed counters 20 fit around a period's edge (see core/rate_limit.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

import orjson
import structlog

from chatd.chat.ports import NEW_PERIOD_S, Rates, Windows
from chatd.cluster.redis.client import Away, Engine
from chatd.core.admission import AdmissionQueue, Ask, Call, Grant
from chatd.core.rate_limit import FORGET_S, SharedPenalty, SharedWindow, SlidingWindow
from chatd.ids import UserId
from chatd.metrics import Metrics

log = structlog.get_logger("quota")

DEADLINE_S: Final = 0.05
READ_TURNS: Final = 4  # past the deadline: what has arrived by then counts, also where we were too busy to read it
TRIAL_S: Final = 1.0
TRIAL_MAX_S: Final = 5.0
RATE, NEW = 1, 2  # kinds of windows: their place in the script's list of limits
HOUR_S: Final = NEW_PERIOD_S
US: Final = 1_000_000
NUMBER_MAX: Final = 2**62  # of any number of the script: 146,000 years in us

# KEYS: one a window. ARGV: [[max, period], ...] by kind; [[kind, want, [returned], [struck]], ...]
# by key, the lists only if there is anything in them; how long strikes are remembered. All times in
# us. MGET, for a key of another type is nil to it and no error; what is no state of ours is as good
# as none. A clock that went back makes takes and ends of penalties of the future: they count as
# made now, and are written back so, or they would count for as long as the step. Numbers of 16
# digits must not be concatenated: Lua writes 14. Gives "now granted wait until strikes last_wait
# granted wait ..." (core.admission.Grant).
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
  local max, period, want = limits[ask[1]][1], limits[ask[1]][2], ask[2]
  local state, changed = read(states[k]), false
  local last_wait = state[3]
  local until_, strikes = math.min(state[1], now + last_wait), state[2]
  if until_ < state[1] then changed = true end

  local takes = {}
  local returned = {}
  for _, mark in ipairs(ask[3] or {}) do returned[mark] = (returned[mark] or 0) + 1 end
  for i = 4, #state do
    local at = state[i]
    if (returned[at] or 0) > 0 then
      returned[at], changed = returned[at] - 1, true
    elseif now - at < period then
      takes[#takes + 1] = math.min(at, now)
      if at > now then changed = true end
    end
  end

  for _, told in ipairs(ask[4] or {}) do
    if now >= until_ + forget then strikes, last_wait = 0, 0 end
    strikes, last_wait, until_, changed = strikes + 1, math.max(last_wait, told), math.max(until_, now + told), true
  end
  if now >= until_ + forget then strikes, last_wait, until_ = 0, 0, 0 end

  local granted, wait = 0, 0
  if now >= until_ then granted = math.max(0, math.min(want, max - #takes)) end
  for _ = 1, granted do takes[#takes + 1] = now end
  if granted < want then
    if #takes >= max then wait = takes[#takes - max + 1] + period - now end
    wait = math.max(wait, until_ - now)
  end

  if granted > 0 or changed then
    local lives = 0
    if #takes > 0 then lives = takes[#takes] + period - now end
    if strikes > 0 then lives = math.max(lives, until_ + forget - now) end
    if lives > 0 then
      state = {until_, strikes, last_wait}
      for i = 1, #takes do state[i + 3] = takes[i] end
      redis.call('SET', key, cmsgpack.pack(state), 'PX', math.ceil(lives / 1000))
    else
      redis.call('DEL', key)
    end
  end
  local n = #out
  out[n + 1], out[n + 2], out[n + 3], out[n + 4], out[n + 5] = granted, wait, strikes > 0 and until_ - now or 0, strikes, last_wait
end
return table.concat(out, ' ')
"""


class Script(Protocol):
    """`engine.script(SCRIPT)`. Raises Away."""

    async def __call__(self, keys: Sequence[str | bytes], args: Sequence[str | bytes | int | float]) -> Any: ...


class Quota:
    """Implements `chat.ports.Admission`.

    `run` is its task, for the life of the node. `now`: seconds, monotonic.
    """

    decides_at_once: Final = False

    def __init__(
        self,
        engine: Engine | Script,
        prefix: str,
        metrics: Metrics,
        rates: Rates,
        queue_max: int,
        *,
        now: Callable[[], float],
        sleep: Callable[[float], Coroutine[Any, Any, object]] = asyncio.sleep,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._script: Script = engine.script(SCRIPT) if isinstance(engine, Engine) else engine
        self._metrics, self._rates = metrics, rates
        self._now, self._sleep, self._deadline_s = now, sleep, deadline_s
        self._keys = {RATE: f"{{{prefix}}}:rate:", NEW: f"{{{prefix}}}:new:"}
        self._limits = orjson.dumps(
            [[rates.messages, round(rates.per_s * US)], [rates.new_per_hour, round(HOUR_S * US)]]
        )
        self._forget = int(FORGET_S * US)
        self._filled = asyncio.Event()
        self._passed = asyncio.Event()  # nothing waits at the gate
        self._passed.set()
        self.gate = AdmissionQueue(queue_max, self._wake)
        self.gate.away = True  # until the first trial: nobody is to wait for a connection that is not made yet

    # ---- for the services ------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """The breaker: this node decides alone."""
        return self.gate.away

    def windows(self, user: UserId) -> Windows:
        """A new user's."""
        rates = self._rates
        penalty = SharedPenalty(rates.strikes_max)
        window = SharedWindow(rates.messages, rates.per_s, RATE, user, self.gate, penalty)
        return Windows(window, penalty, SharedWindow(rates.new_per_hour, HOUR_S, NEW, user, self.gate))

    def put(self, window: SlidingWindow, then: Callable[[float], None]) -> bool:
        """Run `then(came)` when it is known what the window grants; False: too many wait, and it
        never runs.
        """
        assert isinstance(window, SharedWindow)
        alone = self.gate.alone_n
        taken = self.gate.put(window, self._now(), then)
        self._metrics.quota_local += self.gate.alone_n - alone
        return taken

    async def take(self, window: SlidingWindow) -> tuple[float, float]:
        """Take one: (wait, when it was taken), as of `SlidingWindow.take`."""
        result: asyncio.Future[tuple[float, float]] = asyncio.get_running_loop().create_future()

        def then(came: float) -> None:
            if not result.cancelled():
                result.set_result((window.take(came), came))

        if not self.put(window, then):
            return 1.0, 0.0
        return await result

    async def idle(self) -> None:
        """Wait until nothing waits at the gate."""
        await self._passed.wait()

    def _wake(self) -> None:
        self._filled.set()
        self._passed.clear()

    # ---- the calls -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Call for what waits, one call at a time, for ever."""
        if await self._trial():
            self.gate.back()
        else:
            await self._mend()
        while True:
            await self._filled.wait()
            self._filled.clear()
            while not self.gate.idle:
                if not await self._turn():
                    await self._mend()
            self._passed.set()

    async def _turn(self) -> bool:
        """One call, and what it decides. False: Redis is away."""
        call = self.gate.gather()
        answer: tuple[int, list[Grant]] | None = (0, [])
        if call.asks:
            self._metrics.quota_calls += 1
            answer = await self._ask(call)
        if answer is not None:
            self.gate.decide(call, *answer, self._now())
            return True
        before = self.gate.alone_n
        self.gate.alone(call)
        self._metrics.quota_local += self.gate.alone_n - before
        self._passed.set()
        return False

    async def _ask(self, call: Call) -> tuple[int, list[Grant]] | None:
        keys = [self._keys[ask.window.kind] + ask.window.user for ask in call.asks]
        try:
            asks = orjson.dumps([row_of(ask) for ask in call.asks])
            answer = read_answer(await self._within(keys, [self._limits, asks, self._forget]), len(keys))
            if any(row.granted > ask.want for ask, row in zip(call.asks, answer[1], strict=True)):
                raise ValueError("Redis grants more than was asked for")
            return answer
        except (Away, TimeoutError, ValueError) as e:
            log.warning(
                "quota.away",
                reason=str(e) or f"no answer in {self._deadline_s * 1000:.0f} ms",
                meanwhile="each node counts alone",
            )
            return None

    async def _within(self, keys: list[str], args: list[bytes | int]) -> object:
        """The script's answer, or TimeoutError at the deadline, however long its cancellation
        takes.
        """
        call = asyncio.ensure_future(self._script(keys, args))
        try:
            await asyncio.wait((call,), timeout=self._deadline_s)
            for _ in range(READ_TURNS):
                if call.done():
                    break
                await asyncio.sleep(0)
            if call.done():
                return call.result()
            raise TimeoutError
        finally:
            if not call.done():
                call.cancel()
                call.add_done_callback(lambda call: call.cancelled() or call.exception())

    async def _mend(self) -> None:
        """Try again, until Redis answers. Meanwhile nobody waits: the gate decides alone."""
        pause, since = TRIAL_S, self._now()
        while True:
            await self._sleep(pause)
            pause = min(pause * 2, TRIAL_MAX_S)
            if await self._trial():
                self.gate.back()
                log.info("quota.back", away_s=round(self._now() - since, 1))
                return

    async def _trial(self) -> bool:
        """Would a call get through?

        The first may take as long as it takes to connect; the second must be in time.
        """
        # A key of nobody's: a user's name is never empty. A strike, because it always writes, as
        # Redis must be able to.
        ask: tuple[list[str], list[bytes | int]] = [self._keys[RATE]], [self._limits, b"[[1,0,[],[0]]]", self._forget]
        try:
            self._metrics.quota_calls += 2
            read_answer(await self._script(*ask), 1)
            read_answer(await self._within(*ask), 1)
        except (Away, TimeoutError, ValueError):
            return False
        return True


def row_of(ask: Ask) -> list[object]:
    kind = ask.window.kind
    if not ask.returned and not ask.struck:
        return [kind, ask.want]
    return [kind, ask.want, ask.returned, [round(wait * US) for wait in ask.struck]]


def read_answer(answer: object, windows: int) -> tuple[int, list[Grant]]:
    """(mark, rows) of the script's answer. Raises ValueError if it is none."""
    if not isinstance(answer, bytes):
        raise ValueError("Redis gave no answer of the script")
    now, *numbers = map(int, answer.split())
    if len(numbers) != 5 * windows:
        raise ValueError("Redis gave another script's answer")
    if (
        not all(-NUMBER_MAX < number < NUMBER_MAX for number in (now, *numbers))
        or now < 0
        or any(granted < 0 for granted in numbers[::5])
    ):
        raise ValueError("Redis gave numbers that the script cannot give")
    return now, [
        Grant(numbers[n], numbers[n + 1] / US, numbers[n + 2] / US, numbers[n + 3], numbers[n + 4] / US)
        for n in range(0, len(numbers), 5)
    ]
