"""Any sequence of calls: the file store behaves as a dict of paths does, and as its fence demands."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aerodrome._util.clock import ManualClock
from aerodrome.errors import Fenced, TooLarge
from aerodrome.model import SessionKey
from aerodrome.statestore.backends.postgresql import PostgresFileStore
from aerodrome.statestore.backends.sqlite import SqliteFileStore
from aerodrome.statestore.ports import Deleted, SessionFileStore
from support.databases import database
from support.postgres import postgres

T = TypeVar("T")
KEY = SessionKey("acme", "chat")
MAX_FILE, MAX_SESSION = 60, 150
LIMITS: dict[str, Any] = {"max_file_bytes": MAX_FILE, "max_session_bytes": MAX_SESSION, "compact_after": 3}

names = st.sampled_from(["a", "a0", "a-"])
paths = st.lists(names, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
contents = st.text(st.sampled_from("x\n\u00e9\ud800\U0001f600"), max_size=8)


def size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


class Model:
    """Files are strings, directories are None."""

    def __init__(self) -> None:
        self.entries: dict[str, str | None] = {}

    def find(self, path: str) -> bool:
        """Whether it exists; refuses a way through a file."""
        above = path.rpartition("/")[0]
        while above:
            if self.entries.get(above) is not None:
                raise NotADirectoryError
            above = above.rpartition("/")[0]
        return path in self.entries

    def below(self, path: str) -> list[str]:
        return [entry for entry in self.entries if entry.startswith(path + "/")]

    def make_parents(self, path: str) -> None:
        above = path.rpartition("/")[0]
        while above:
            self.entries.setdefault(above, None)
            above = above.rpartition("/")[0]

    def put(self, path: str, text: str, *, append: bool) -> None:
        if self.find(path) and self.entries[path] is None:
            raise IsADirectoryError
        text = (self.entries.get(path) or "") + text if append else text
        grown = size(text) - size(self.entries.get(path) or "")
        if size(text) > MAX_FILE or (grown > 0 and self.total() + grown > MAX_SESSION):
            raise TooLarge("")
        self.make_parents(path)
        self.entries[path] = text

    def mkdir(self, path: str, *, recursive: bool) -> None:
        if self.find(path):
            if not recursive or self.entries[path] is not None:
                raise FileExistsError
            return
        parent = path.rpartition("/")[0]
        if not recursive and parent and parent not in self.entries:
            raise FileNotFoundError
        self.make_parents(path)
        self.entries[path] = None

    def remove(self, path: str, *, recursive: bool, force: bool) -> None:
        if not self.find(path):
            if not force:
                raise FileNotFoundError
            return
        if self.entries[path] is None and not recursive:
            raise IsADirectoryError
        for entry in [*self.below(path), path]:
            del self.entries[entry]

    def rename(self, source: str, target: str) -> None:
        if not self.find(source):
            raise FileNotFoundError
        if source == target:
            return
        if target.startswith(source + "/"):
            raise OSError(22, "")
        found = self.find(target)
        parent = target.rpartition("/")[0]
        if parent and parent not in self.entries:
            raise FileNotFoundError
        if found:
            if self.entries[target] is None and self.entries[source] is not None:
                raise IsADirectoryError
            if self.entries[target] is not None and self.entries[source] is None:
                raise NotADirectoryError
            if self.below(target):
                raise OSError(39, "")
        for entry in [*self.below(source), source]:
            self.entries[target + entry[len(source) :]] = self.entries.pop(entry)

    def total(self) -> int:
        return sum(size(text) for text in self.entries.values() if text is not None)


class FilesMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.store = self.runner.run(self.make_store())
        self.runner.run(self.store.open())
        self.model = Model()
        self.epoch = 0

    async def make_store(self) -> SessionFileStore:
        directory = self.stack.enter_context(tempfile.TemporaryDirectory())
        db = await self.stack.enter_async_context(database(Path(directory) / "s.db"))
        return SqliteFileStore(db, clock=ManualClock(), **LIMITS)

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.stack.aclose())
            self.runner.close()

    def run(self, call: Awaitable[T]) -> T:
        async def wait() -> T:
            return await call

        return self.runner.run(wait())

    def check(self, call: Awaitable[None], expected: type[Exception] | None) -> None:
        raised: type[Exception] | None = None
        try:
            self.run(call)
        except (OSError, TooLarge, Fenced) as error:
            raised = type(error)
        assert raised is expected

    def attempt(self, epoch: int, change: str, *args: str, **options: bool) -> type[Exception] | None:
        """What the model says of this change, having made it if it is allowed."""
        if self.epoch == 0 or epoch != self.epoch:
            return Fenced
        try:
            getattr(self.model, change)(*args, **options)
        except (OSError, TooLarge) as error:
            return type(error)
        return None

    def draw_epoch(self, stale: bool) -> int:
        return self.epoch - 1 if stale else self.epoch

    @rule(higher=st.booleans())
    def raise_epoch(self, higher: bool) -> None:
        announced = self.epoch != 0 and not higher
        self.epoch += not announced
        self.check(self.store.raise_epoch(KEY, self.epoch), Fenced if announced else None)

    @rule(path=paths, text=contents, append=st.booleans(), stale=st.sampled_from([False] * 9 + [True]))
    def put(self, path: str, text: str, append: bool, stale: bool) -> None:
        epoch = self.draw_epoch(stale)
        call = self.store.append if append else self.store.write
        self.check(call(KEY, epoch, path, text), self.attempt(epoch, "put", path, text, append=append))

    @rule(path=paths, texts=st.lists(contents, min_size=3, max_size=6))
    def append_often(self, path: str, texts: list[str]) -> None:
        for text in texts:
            self.put(path, text, append=True, stale=False)

    @rule(path=paths, recursive=st.booleans())
    def mkdir(self, path: str, recursive: bool) -> None:
        expected = self.attempt(self.epoch, "mkdir", path, recursive=recursive)
        self.check(self.store.mkdir(KEY, self.epoch, path, recursive=recursive), expected)

    @rule(path=paths, recursive=st.booleans(), force=st.booleans())
    def remove(self, path: str, recursive: bool, force: bool) -> None:
        expected = self.attempt(self.epoch, "remove", path, recursive=recursive, force=force)
        self.check(self.store.remove(KEY, self.epoch, path, recursive=recursive, force=force), expected)

    @rule(old=paths, new=paths)
    def rename(self, old: str, new: str) -> None:
        expected = self.attempt(self.epoch, "rename", old, new)
        self.check(self.store.rename(KEY, self.epoch, old, new), expected)

    @rule(really=st.sampled_from([False] * 9 + [True]))
    def delete(self, really: bool) -> None:
        if really:
            self.raise_epoch(higher=True)
            self.run(self.store.delete_session(KEY, self.epoch, 10.0))
            self.check(self.store.raise_epoch(KEY, self.epoch + 1), Deleted)
            assert self.run(self.store.forget_session(KEY, self.epoch))
            self.model, self.epoch = Model(), 0

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        async def walk(directory: str) -> dict[str, str | None]:
            found: dict[str, str | None] = {}
            listing = await self.store.listdir(KEY, directory or "/")
            assert [name for name, _ in listing] == sorted(name for name, _ in listing)
            for name, info in listing:
                path = f"{directory}/{name}"
                if info.is_directory:
                    found |= {path: None, **await walk(path)}
                else:
                    found[path] = text = await self.store.read(KEY, path)
                    assert info.size == size(text)
            return found

        assert self.run(walk("")) == self.model.entries
        assert self.run(self.store.total_bytes(KEY)) == self.model.total()
        assert self.run(self.store.epoch(KEY)) == self.epoch


class PostgresFilesMachine(FilesMachine):
    async def make_store(self) -> SessionFileStore:
        db = await self.stack.enter_async_context(postgres(max_connections=2))
        return PostgresFileStore(db, clock=ManualClock(), **LIMITS)


_SETTINGS = settings(
    max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestFilesMachine = FilesMachine.TestCase
TestFilesMachine.settings = _SETTINGS
TestPostgresFilesMachine = PostgresFilesMachine.TestCase
TestPostgresFilesMachine.settings = _SETTINGS
