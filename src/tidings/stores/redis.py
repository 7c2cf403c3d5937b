"""A store on Redis: a key is claimed with a lease, which is renewed while its handler runs, and marked done after it.

Redis cannot take an effect back. What it promises: no event is lost, no two workers hold the unexpired lease of a key
while Redis keeps its data, and a worker that comes too late can neither complete nor release what another holds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from hashlib import blake2b
from itertools import count
from types import TracebackType
from typing import Final

import msgspec
from redis.asyncio import Redis

from tidings import points
from tidings.delivery import Message
from tidings.errors import Contention, MisuseError, StoreUnavailable, WorldError
from tidings.ports import EVENT_MARK, NEW, Claimed, Forgotten, Key, KeyKind, Publish, State
from tidings.stores._redis_checks import check
from tidings.stores._redis_link import FOREVER, Link, Options, parse
from tidings.stores._redis_scripts import CLAIM, FINISH, RENEW, TOKEN_BYTES, pack, unpack
from tidings.supervision import Supervisor

log = logging.getLogger("tidings.stores.redis")

PREFIX: Final = b"tidings:"
FENCE: Final = PREFIX + b"fence"
PROBE: Final = PREFIX + b"probe"
MOST_KEY: Final = 256
"""Bytes of a key that are kept as they are; a longer one is cut and ends with a hash of the whole."""

LEFTOVER: Final = 600.0
"""Seconds that a lease stays readable after it ran out, so that its late holder learns whether anybody took the key."""

GIVE_BACK: Final = "-"


class Fence(msgspec.Struct, frozen=True):
    """The fencing number of a claim; a handler asks for it by a parameter of this type.

    It is greater than that of every claim before. A resource that keeps the greatest number it has seen, and refuses
    writes with a smaller one, is safe from a worker that lost its lease and does not know it yet. The events of a batch
    that were claimed together share it.
    """

    number: int

    def __int__(self) -> int:
        return self.number


class RedisStore:
    """Remembers in Redis which keys were applied. There are no transactions and there is no outbox.

    * `where`: a URL, ``redis://`` or ``rediss://``, whose options come before those given here; or a live
      `redis.asyncio.Redis`, which is used and never closed.
    * `lease`: seconds after which a key whose claim was not renewed is free for others. It is renewed at a third.
    * `remember`: how long the id of an applied event is known; `timedelta.max` is for ever. Unless told, as long as its
      stream keeps it, as the broker said last, and a tenth of that more, at least a day. Keys of `once="field"` are
      known for `forget_after`, and for ever without it.
    * `timeout`: seconds that one call may take.
    * `allow_eviction`: work although this Redis may drop keys when its memory is full; effects then repeat.

    Raises:
        ConfigurationError: the URL or an option cannot be read.
    """

    transactional = False

    def __init__(
        self,
        where: str | Redis,
        *,
        lease: float = 15.0,
        remember: timedelta | None = None,
        timeout: float = 5.0,
        allow_eviction: bool = False,
    ) -> None:
        known = None if remember is None else remember.total_seconds()
        if remember == timedelta.max:
            known = FOREVER
        options = Options(lease=lease, remember=known, timeout=timeout, allow_eviction=allow_eviction)
        if isinstance(where, str):
            client, address, options = parse(where, options)
        else:
            client, address = where, "the address of the client that was given"
        self._options = options
        self._link = Link(client, address, options.timeout, owned=isinstance(where, str))
        self._desk = _Desk(self._link, options)
        self._tasks = Supervisor()

    async def open(self) -> None:
        """Connect, check the server, and see that claims work there.

        Raises:
            StoreUnavailable: no answer, a replica, or no memory left.
            ConfigurationError: the server or this user cannot do what is needed, or may drop what it was told.
        """
        self._link.starting = True
        try:
            await self._link.command("PING")
            await check(self._link, allow_eviction=self._options.allow_eviction)
            await self._desk.probe()
        except BaseException:
            await self._link.close()
            raise
        self._link.starting = False
        self._tasks.spawn("leases", self._desk.keep)

    async def close(self) -> None:
        await self._tasks.cancel()
        try:
            await self._desk.pay()
        except WorldError as error:
            log.warning("what was left to tell Redis is not told: %s. Those leases end by themselves", error)
        await self._link.close()

    def gives(self, wanted: type, *, sync: bool) -> bool:
        return wanted is Fence

    def translate(self, error: Exception) -> WorldError | None:
        return error if isinstance(error, Contention) else None

    def claim(
        self, keys: Sequence[Key], *, resource: type | None, sync: bool
    ) -> AbstractAsyncContextManager[RedisClaim]:
        """Claim keys in one round trip. A clean exit marks them done in another; any exception gives them back.

        Raises:
            StoreUnavailable: no answer. At a clean exit the claim is marked done as soon as Redis answers again, if
                nobody else took a key meanwhile.
            Contention: at a clean exit, when a lease ran out and somebody else took the key since.
        """
        return RedisClaim(self._desk, keys, fenced=resource is not None)

    def transaction(self, wanted: type | None = None) -> AbstractAsyncContextManager[object]:
        """There are none.

        Raises:
            MisuseError: always.
        """
        raise MisuseError(
            "Redis has no transaction that an effect could be part of. Use a database: store='sqlite:///…'"
        )

    async def emit(self, tx: object, messages: Sequence[Message]) -> None:
        """There is no outbox.

        Raises:
            MisuseError: always.
        """
        raise MisuseError("a store on Redis has no outbox. Use a database, such as store='sqlite:///service.db'")

    async def forget(self, position: str, kind: KeyKind, before: float, *, after: str = "", most: int) -> Forgotten:
        """Nothing: keys go by themselves, at the time that they were given when they were applied."""
        return Forgotten()

    async def relay(self, publish: Publish) -> None:
        """Nothing ever waits here; this does, until it is cancelled."""
        await asyncio.Event().wait()


class RedisClaim:
    """The open claim on some keys."""

    executor: Executor | None = None

    def __init__(self, desk: _Desk, keys: Sequence[Key], *, fenced: bool) -> None:
        self._desk = desk
        self._keys = keys
        self._fenced = fenced
        self._given_back: set[int] = set()
        self._fence: Fence | None = None
        self.token = os.urandom(TOKEN_BYTES)
        self.held: dict[bytes, int] = {}
        """The keys that are ours, and which of those asked for each is."""
        self.states: Sequence[Claimed] = ()

    async def __aenter__(self) -> RedisClaim:
        first: dict[bytes, int] = {}
        names = [_name(key) for key in self._keys]
        for index, name in enumerate(names):
            first.setdefault(name, index)
        if not first and not self._fenced:
            return self
        rest = [pack(self._keys[index].event_id, self._keys[index].digest) for index in first.values()]
        letters, number, done = await self._desk.claim(self.token, list(first), rest, self._fenced)
        applied = iter(done)
        states: dict[bytes, Claimed] = {}
        for letter, (name, index) in zip(letters, first.items(), strict=True):
            if letter == "n":
                self.held[name] = index
                states[name] = NEW
            elif letter == "b":
                states[name] = Claimed(State.BUSY)
            else:
                states[name] = Claimed(State.DONE, *unpack(next(applied)))
        self.states = [
            states[name] if first[name] == index else self._repeated(states[name], self._keys[first[name]])
            for index, name in enumerate(names)
        ]
        if number:
            self._fence = Fence(number)
        if self.held:
            self._desk.open.add(self)
        return self

    @staticmethod
    def _repeated(claimed: Claimed, first: Key) -> Claimed:
        """What an equal key of the same batch is told: the first one applies it."""
        return Claimed(State.DONE, first.event_id, first.digest) if claimed.state is State.NEW else claimed

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if not self.held:
            return
        self._desk.open.discard(self)
        actions = [
            GIVE_BACK if error is not None or index in self._given_back else self._desk.keeps(self._keys[index])
            for index in self.held.values()
        ]
        if error is None:
            points.at(points.BEFORE_COMMIT)
        try:
            ours = await self._desk.finish(self.token, list(self.held), actions)
        except StoreUnavailable:
            if error is None:
                raise
            return  # the leases end by themselves, if Redis is not told before
        if error is None:
            points.at(points.AFTER_COMMIT)
        lost = [index for index, kept in zip(self.held.values(), ours, strict=True) if not kept]
        lost = [index for index in lost if index not in self._given_back]
        if error is None and lost:
            shown = ", ".join(repr(self._keys[index].key[:60]) for index in lost[:3])
            raise Contention(f"the claim lost its lease, and others may have taken {shown} meanwhile")

    def resource(self, wanted: type) -> object:
        if wanted is not Fence or self._fence is None:
            raise MisuseError(f"a store on Redis has no {wanted.__name__} to give")
        return self._fence

    def fail(self, index: int) -> None:
        self._given_back.add(index)

    def cut(self) -> None:
        """Nothing was lent but a number, and a later claim has a greater one."""

    async def emit(self, messages: Sequence[Message]) -> bool:
        return False

    async def flush(self) -> None:
        """Nothing is held back."""


class _Debt(msgspec.Struct, eq=False):
    """What Redis could not be told, or whose answer is not known."""

    token: bytes
    names: list[bytes]
    actions: list[str]
    until: float
    """When it means nothing any more, in the loop's time: the leases have ended by themselves."""


class _Desk:
    """Speaks to Redis for the claims: takes keys, keeps their leases, says how they ended, now or later."""

    def __init__(self, link: Link, options: Options) -> None:
        self._link = link
        self._lease = options.lease
        self._lease_ms = round(options.lease * 1000)
        self._leftover_ms = round((options.lease + LEFTOVER) * 1000)
        self._remember = options.remember
        self._debts: list[_Debt] = []
        self._paying = asyncio.Lock()
        self.open: set[RedisClaim] = set()

    def keeps(self, key: Key) -> str:
        """How long a key stays done, in ms; 0 is for ever. An option speaks for the ids of events alone."""
        seconds = key.lives
        if self._remember is not None and key.key.startswith(EVENT_MARK):
            seconds = self._remember
        return "0" if seconds is None or seconds == FOREVER else str(max(1, math.ceil(seconds * 1000)))

    async def claim(
        self, token: bytes, names: list[bytes], rest: list[bytes], fenced: bool
    ) -> tuple[str, int, Sequence[bytes]]:
        """Take keys: a letter for each (new, busy, done), the fencing number, and what is known of those done."""
        if self._debts:
            await self.pay()
        args = [token, self._lease_ms, self._leftover_ms, "1" if fenced else "0", *rest]
        try:
            letters, number, *done = await self._link.run(CLAIM, [FENCE, *names], args)
        except BaseException:  # perhaps it did take them, and only the answer was lost
            self._owe(token, names, [GIVE_BACK] * len(names), self._lease)
            raise
        return letters.decode(), int(number or 0), done

    async def finish(self, token: bytes, names: list[bytes], actions: list[str]) -> Sequence[bool]:
        """Mark keys done or give them back, and say of each whether it was ours. What cannot be told is owed."""
        try:
            return await self._finish(token, names, actions)
        except BaseException:
            self._owe(token, names, actions, self._lease + LEFTOVER)
            raise

    def _owe(self, token: bytes, names: list[bytes], actions: list[str], seconds: float) -> None:
        self._debts.append(_Debt(token, names, actions, asyncio.get_running_loop().time() + seconds))

    async def _finish(self, token: bytes, names: list[bytes], actions: list[str]) -> Sequence[bool]:
        answer: bytes = await self._link.run(FINISH, names, [token, *actions])
        return [one == ord("1") for one in answer]

    async def pay(self) -> None:
        """Tell Redis what it could not be told, before anything new is claimed: a key's last claim comes first.

        Raises:
            StoreUnavailable: it does not answer yet.
        """
        async with self._paying:
            while self._debts:
                debt = self._debts[0]
                if debt.until > asyncio.get_running_loop().time():
                    await self._finish(debt.token, debt.names, debt.actions)
                self._debts.remove(debt)

    async def probe(self) -> None:
        """Claim a key and give it back: whatever forbids that is to be known at the start."""
        token = os.urandom(TOKEN_BYTES)
        await self._link.run(CLAIM, [FENCE, PROBE], [token, 1, 1000, "0", pack("", b"")])
        await self._link.run(RENEW, [PROBE], [token, 1, 1000])
        await self._finish(token, [PROBE], [GIVE_BACK])

    async def keep(self) -> None:
        """Renew the leases of open claims, each at a third of its time at the latest, and pay what is owed.

        One task for all of them: a claim that ends soon costs nothing.
        """
        renewed: dict[RedisClaim, int] = {}
        for turn in count():
            await asyncio.sleep(self._lease / 6)
            renewed = {claim: renewed.get(claim, turn) for claim in self.open}
            due = [claim for claim, last in renewed.items() if turn > last]
            renewed.update(dict.fromkeys(due, turn))
            try:
                if self._debts:
                    await self.pay()
            except WorldError:
                pass  # the lanes say so; the next turn tries again
            await asyncio.gather(*(self._renew(claim) for claim in due))

    async def _renew(self, claim: RedisClaim) -> None:
        try:
            answer: bytes = await self._link.run(
                RENEW, list(claim.held), [claim.token, self._lease_ms, self._leftover_ms]
            )
        except WorldError as error:
            log.warning("the lease of %d keys was not renewed: %s", len(claim.held), error)
            return
        if claim in self.open and (lost := answer.count(b"0")):
            log.warning("%d keys were taken by others while their handler ran; what it does is fenced off", lost)


def _name(key: Key) -> bytes:
    """The key in Redis."""
    text = key.key.encode(errors="surrogatepass")
    if len(text) > MOST_KEY:
        text = text[:MOST_KEY] + b"~" + blake2b(text, digest_size=32).hexdigest().encode()
    return b"%b%b:%b" % (PREFIX, key.position.encode(), text)
