"""What a rank does of a cast that several make: the parts that are its own, and, of all parts, the value.

Guarantees:

* Whoever makes a part sends its host exactly one `Value` for it, whatever becomes of it, unless it closes or dies.
* Nothing waits in a worker: parts are made, and the value once all are there, each in a turn of its own.
* Every rank reports once, with the first failure that it learns of.
* What has not begun when a cast fails is not made; what has, ends after the item at hand.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from lazycast.codec.pickling import Layout, allocate, copy
from lazycast.core.arrival import Arrival, Material
from lazycast.core.helpers.maker import HelpedValue
from lazycast.core.helpers.process import Unmade
from lazycast.core.items.gathering import Gathering, Step
from lazycast.core.memo.items import numbers_of_new
from lazycast.core.memo.keeping import Keeping
from lazycast.core.memo.store import Kept
from lazycast.core.own_part import OwnPart
from lazycast.core.performer import Group, Performer, Result
from lazycast.materialize.each import Some, in_order
from lazycast.materialize.materializers import CodeMissing
from lazycast.materialize.staged import each_of
from lazycast.net.wire import Failure, Value, again_ident
from lazycast.options import HELPERS

#: Has one part made of a payload (its bytes and layout), by a helper.
ByHelper = Callable[[Arrival, memoryview, Layout, tuple[int, int]], HelpedValue]


class Sent:
    """The result of an item that this rank has lost, as it came: to be had as what it had kept."""

    def __init__(self, sent: Any, layout: Layout) -> None:
        self._sent, self.layout = memoryview(sent).cast("B"), layout
        self.nbytes = self._sent.nbytes

    def body(self) -> memoryview:
        """Return its bytes as memory of the caller's own. Raises MemoryError."""
        own = allocate(self.nbytes)
        copy(own, self._sent)
        return own


class Sharing:
    """See the module's text. Thread-safe.

    Args:
        by_helper: see there.
        began: notes that work on a cast begins, maybe again.
        ended: takes a rank's result of a cast, once.
        lacks: has the code of a materializer asked for, and the cast advanced once it is here.
        unshared: notes why a part could not be shared.
        keeping: where results are remembered, if they are.
    """

    def __init__(
        self,
        group: Group,
        host: Sequence[int],
        lock: threading.RLock,
        performer: Performer,
        own_part: OwnPart,
        *,
        by_helper: ByHelper,
        began: Callable[[Arrival], None],
        ended: Callable[[Arrival, Result], None],
        lacks: Callable[[Arrival, str], None],
        unshared: Callable[[str], None],
        keeping: Keeping | None,
    ) -> None:
        self._is_root, self._keeping = group.rank == group.root, keeping
        self._rank, self._host, self._alone = group.rank, group.hosts[group.rank], len(host) == 1
        self._lock, self._performer, self._own_part = lock, performer, own_part
        self._by_helper, self._began, self._ended, self._lacks, self._unshared = (
            by_helper,
            began,
            ended,
            lacks,
            unshared,
        )

    def advance(self, arrival: Arrival, items: Gathering) -> None:
        """Do what can be done now."""
        todo: list[int] = []
        with self._lock:
            if arrival.final is not None:  # `give_up` says the rest
                return
            step = items.step(over=arrival.over, wanted=arrival.wanted)
            if step is Step.MAKE:
                todo = items.take_todo()
                items.busy, arrival.begun = len(todo), True
                material = Material(arrival.body, arrival.own, None)
            elif step is Step.END:
                left = items.take_todo()
                arrival.begun = True
        if step is not None:
            self._began(arrival)
        if step is Step.MAKE:
            self._make_all(arrival, items, todo, material)
        elif step is Step.END:
            for part in left:
                self._decline(arrival, part)
            if items.failure is not None:
                self._ended(arrival, self._failed(arrival, items, items.failure))
            else:
                self._begin(functools.partial(self._value, arrival, items), arrival, self._value_done, light=True)

    def _begin(
        self, work: Callable[[], Result], arrival: Arrival, done: Callable[[Arrival, Result], None], **how: bool
    ) -> None:
        self._performer.run(
            work,
            functools.partial(done, arrival),
            seq=arrival.message.seq,
            priority=arrival.message.priority,
            unwanted=functools.partial(arrival.unwanted, self._rank),
            **how,
        )

    def _failed(self, arrival: Arrival, items: Gathering, failure: Failure) -> Result:
        """What this rank says of a cast of which a part has failed. Whose part it was says so too."""
        if items.own is not None:
            return items.own
        return Result(failure=failure) if arrival.wanted else Result()

    # The parts that are this rank's

    def _make_all(self, arrival: Arrival, items: Gathering, todo: list[int], material: Material) -> None:
        helped = arrival.message.placement == HELPERS
        make = self._help if helped else self._make
        for part in todo:
            work = functools.partial(make, arrival, items, part, material)
            self._begin(work, arrival, functools.partial(self._made, items, part), helped=helped)

    def _made(self, items: Gathering, part: int, arrival: Arrival, result: Result) -> None:
        lacks = None
        with self._lock:
            if isinstance(result.cause, CodeMissing):
                items.todo.append(part)
                items.lacks = result.cause.ident
                result = Result()
            items.done(part, result)
            if part in items.todo:
                items.made.pop(part, None)
            if not items.busy:
                lacks, items.lacks = items.lacks, None
                arrival.begun = items.ended
            failed = arrival.final is not None
        if lacks is not None and not failed and items.failure is None:
            self._lacks(arrival, lacks)
        elif failed:
            for left in items.take_todo():
                self._decline(arrival, left)
        else:
            self.advance(arrival, items)

    @staticmethod
    def _is_over(arrival: Arrival) -> bool:
        return arrival.over  # it changes, which a type checker does not expect

    def _said(self, arrival: Arrival, part: int, failure: Failure | None = None) -> Value:
        return Value(self._rank, arrival.message.seq, failure=failure, part=part)

    def _decline(self, arrival: Arrival, part: int) -> Result:
        """Make nothing of a part of a cast that has failed."""
        text = "the cast had failed before this part of it was made"
        self._own_part.tell(self._said(arrival, part, Failure("refused", self._rank, self._host, text)))
        return Result()

    def _spoilt(self, arrival: Arrival, items: Gathering, part: int, result: Result) -> Result:
        with self._lock:
            items.failed(result)
        self._own_part.tell(self._said(arrival, part, result.failure))
        return result

    def _make(self, arrival: Arrival, items: Gathering, part: int, material: Material) -> Result:
        """In a shard: make a part, on this rank, and share it."""
        if arrival.over or (material.body is None and material.own is None):
            return self._decline(arrival, part)
        result = self._made_here(arrival, items, part, material)
        if isinstance(result.cause, CodeMissing):
            return result
        if result.failure is not None:
            return self._spoilt(arrival, items, part, result)
        if result.value is None:
            return self._decline(arrival, part)
        if self._alone:
            return result
        _, unshared, value = self._own_part.share(arrival.message, self._said(arrival, part), result.value)
        if unshared is not None:
            self._unshared(unshared)
        return Result(value)

    def _made_here(self, arrival: Arrival, items: Gathering, part: int, material: Material) -> Result:
        message = arrival.message
        assert message.ref is not None
        try:
            each = each_of(self._own_part.stages(arrival).prepare)
        except CodeMissing as exc:
            return Result(cause=exc)
        except BaseException as exc:
            return self._own_part.failed("decode", f"materializer {message.ref.name!r} could not be loaded", exc)
        if each is None:
            wrong = TypeError(f"materializer {message.ref.name!r} works item by item on the root only")
            return self._own_part.failed("decode", "a materializer is not the root's", wrong)
        result = self._payload(arrival, material)
        if result.failure is not None:
            return result
        numbers = numbers_of_new(message.items) if message.items else None
        return self._own_part.materialize(message, Some(each, part, len(items.makers), None, numbers), result.value)[0]

    def _payload(self, arrival: Arrival, material: Material) -> Result:
        message, body = arrival.message, material.body
        if material.own is not None:
            return Result(material.own.payload)
        assert body is not None, "a part begins, and a value is made, while the cast has its body"
        layout = Layout(message.stream_nbytes, message.frames)
        return self._own_part.decode(message, body, message.nbytes, layout)

    def _help(self, arrival: Arrival, items: Gathering, part: int, material: Material) -> Result:
        """On the leader: have a part made by a helper, and share it."""
        if arrival.over:
            return self._decline(arrival, part)
        if items.count is not None and part >= items.count:  # there are fewer items than parts
            self._own_part.tell(self._said(arrival, part))
            return Result((items.count, []))
        message, own_part, body = arrival.message, self._own_part, material.body
        if body is None:
            return self._decline(arrival, part)
        if body.nbytes != message.nbytes:
            short = own_part.short(message.nbytes)
            return self._spoilt(
                arrival, items, part, own_part.failed("decode", "what arrived could not be taken", short)
            )
        layout = Layout(message.stream_nbytes, message.frames)
        try:
            made = self._by_helper(arrival, body, layout, (part, len(items.makers)))
        except CodeMissing as exc:
            return Result(cause=exc)
        except Unmade as exc:
            if exc.failure is None or self._is_over(arrival):
                return self._decline(arrival, part)
            return self._spoilt(arrival, items, part, Result(failure=exc.failure, cause=exc.cause))
        except Exception as exc:  # what is registered elsewhere, or cannot leave this process
            kind = "decode" if isinstance(exc, LookupError) else "encode"
            return self._spoilt(
                arrival, items, part, own_part.failed(kind, "a payload could not be given to a helper", exc)
            )
        if self._is_over(arrival):  # it may have stopped in the middle
            return self._decline(arrival, part)
        items.count = made.items
        own_part.noted(message, made)
        body = own_part.helped_body(made)  # before it is shared: a segment of its own is handed over then
        own_part.share_helped(message, self._said(arrival, part), made)
        return own_part.decode(message, body, made.nbytes, made.layout)

    # The value

    def _value(self, arrival: Arrival, items: Gathering) -> Result:
        """Put all parts together, and make the value of them."""
        if arrival.over or not arrival.wanted:
            return Result()
        message = arrival.message
        with self._lock:
            lost = arrival.lost
        if lost:
            return self._lost(arrival)
        try:
            join = self._own_part.join(arrival)
            finish = self._own_part.finish(arrival)
        except CodeMissing as exc:
            return Result(cause=exc)
        except BaseException as exc:
            return self._own_part.failed("decode", "what joins the results, or finishes, could not be loaded", exc)
        with self._lock:
            made, heard = items.made, items.heard
            material = Material(arrival.body, arrival.own, None)
        taken: list[tuple[int, list[Any]]] = []
        for part in range(len(items.makers)):
            result = (
                Result(made[part]) if part in made else self._taken(arrival, items, part, heard.get(part), material)
            )
            if isinstance(result.cause, CodeMissing) or result.failure is not None:
                return result
            taken.append(result.value)
        if None in taken:
            return Result()  # the cast failed meanwhile
        value: Any
        try:
            value = in_order(taken)
        except Exception as exc:  # what a user's `split` has found; or what came is nothing of the kind
            return self._own_part.failed("materialize", "the results could not be put together", exc)
        if message.items:
            if len(value) != (new := len(numbers_of_new(message.items))):
                wrong = ValueError(f"{len(value)} results came, of {new} items")
                return self._own_part.failed("decode", "the results could not be put together", wrong)
            if self._keeping is not None:
                self._keeping.put_down_items(arrival, value)
            result = self._merged(arrival, value)
            if result.value is None:
                return result
            value = result.value
        with self._lock:
            items.let_go()
        if join is not list:
            result = self._own_part.materialize(message, join, value)[0]
            if result.failure is not None:
                return result
            value = result.value
        if finish is None:
            return Result(value)
        result = self._payload(arrival, material)
        if result.failure is not None:
            return result
        return self._own_part.materialize(message, finish, result.value, value)[0]

    def _lost(self, arrival: Arrival) -> Result:
        text = "the results of items that were to be had again are not here"
        return Result(cause=CodeMissing(text, again_ident(arrival.message.seq)))

    def _merged(self, arrival: Arrival, new: list[Any]) -> Result:
        """Return the results of all items, in order, given those that are new: beside them is what is had again.

        Without a value, if the cast has failed meanwhile, or what says why.
        """
        message = arrival.message
        with self._lock:
            kept, instead = arrival.had, arrival.had_instead
        had: Sequence[Kept | Sent] = kept
        if instead is not None:
            try:
                had = self._sent_again(instead, sum(number < 0 for number in message.items))
            except BaseException as exc:  # what came is no such list; MemoryError
                return self._own_part.failed("decode", "the results of items could not be had again", exc)
        again: list[Any] = []
        for one in had:
            try:
                body = one.body()
            except MemoryError as exc:
                if self._is_root or instead is not None:  # it has been sent: asking once more would not help
                    return self._own_part.failed("decode", "the result of an item could not be had again", exc)
                with self._lock:
                    arrival.lost = True
                return self._lost(arrival)
            result = self._own_part.decode(message, body, one.nbytes, one.layout)
            if result.failure is not None:
                return result
            again.append(result.value)
        if len(again) != sum(number < 0 for number in message.items):
            return Result()  # the cast has failed meanwhile
        results, remembered = iter(new), iter(again)
        return Result([next(results if number >= 0 else remembered) for number in message.items])

    def _sent_again(self, instead: tuple[memoryview, Layout], count: int) -> list[Sent]:
        """Return what the root has sent in place of what was kept here. Raises ValueError, and what decoding does."""
        body, layout = instead
        sent = self._own_part.codec.decode(body, layout)
        if type(sent) is not list or len(sent) != count:
            raise ValueError("what the root has sent again is not as much as was lost")
        return [Sent(one, Layout(stream_nbytes, frames)) for stream_nbytes, frames, one in sent]

    def _taken(
        self,
        arrival: Arrival,
        items: Gathering,
        part: int,
        heard: tuple[Value, memoryview] | None,
        material: Material,
    ) -> Result:
        """Return what another rank has made; what it could not share is made here."""
        if heard is None:
            return Result()
        value, body = heard
        if value.unshared is None:
            if not value.stream_nbytes:
                return Result((0, []))  # there are fewer items than parts
            result = self._own_part.decode(
                arrival.message, body, value.nbytes, Layout(value.stream_nbytes, value.frames)
            )
            if result.failure is None and result.value is None:  # only this rank's own are, if given up
                wrong = ValueError(f"part {part} is nothing that rank {value.rank} can have made")
                result = self._own_part.failed("decode", "what arrived is no part of a value", wrong)
            if result.failure is None or arrival.message.placement == HELPERS:
                return result
            self._unshared(result.failure.message)
        return self._made_here(arrival, items, part, material)

    def _value_done(self, arrival: Arrival, result: Result) -> None:
        if isinstance(result.cause, CodeMissing):
            with self._lock:
                assert arrival.items is not None
                arrival.items.reopen()
            self._lacks(arrival, result.cause.ident)
        else:
            self._ended(arrival, result)

    # What ends it

    def give_up(self, arrival: Arrival, items: Gathering) -> bool:
        """A cast has failed: make nothing more of it. Returns whether this rank is still to say that it has ended."""
        with self._lock:
            todo = items.take_todo()
            first = items.end()
            items.let_go()
            arrival.begun = True
        for part in todo:
            self._decline(arrival, part)
        return first

    def spoil(self, arrival: Arrival, items: Gathering, failure: Failure) -> bool:
        """The code for it cannot be had. Returns as `give_up`."""
        with self._lock:
            todo = items.take_todo()
            first = items.end()
            arrival.begun = True
        for part in todo:
            self._own_part.tell(self._said(arrival, part, failure))
        return first
