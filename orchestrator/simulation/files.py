"""A file system in memory, with what a network adds: caches of names, lost replies, and writes that tear.

The production code reaches it through the system calls that `orchestrator.simulation.system` replaces. Paths
under `SHARED` are those of a shared folder, all others under `ROOT` belong to one machine.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Mapping

from orchestrator.simulation.handles import FIRST_HANDLE, FolderEntry, FolderScan, Node, ReadFile, WrittenFile
from orchestrator.simulation.world import EPOCH_S, Machine, World

ROOT = "/simulated"
SHARED = f"{ROOT}/store"
PROC = "/proc/"
MOUNTS = f"{PROC}mounts"
_ABSENT = os.strerror(errno.ENOENT)


class Files:
    """The files of a world.

    Args:
        world: whose processes use them.
        mounts: content of ``/proc/mounts``, which shows whether the shared folder is on a network.

    Attributes:
        handles: number of an open file to its path and node.
        reply: called at each change of the shared folder, when it is made; it may raise an error of the
            network, or return True for a request that was sent twice, as its first reply was lost.
        changed: called with each change of a name in the shared folder, after it: its kind and the path.
    """

    def __init__(self, world: World, mounts: str = "") -> None:
        self._world = world
        self._step = world.step
        self._nodes: dict[str, Node] = {}
        self._last = 0
        self._mounts = mounts.encode()
        self.handles: dict[int, tuple[str, Node]] = {}
        self._last_handle = FIRST_HANDLE
        self.reply: Callable[[str], bool] = lambda kind: False
        self.changed: Callable[[str, str], object] = lambda kind, path: None
        self._new(ROOT, stat.S_IFDIR)
        self._new(SHARED, stat.S_IFDIR)

    def snapshot(self) -> dict[str, tuple[int, bytes]]:
        """Return all that is there: path to its kind and content."""
        return {path: (node.kind, node.data) for path, node in self._nodes.items()}

    def restore(self, snapshot: Mapping[str, tuple[int, bytes]]) -> None:
        """Make what a snapshot holds, durable."""
        for path, (kind, data) in snapshot.items():
            if path not in self._nodes:
                node = self._new(path, kind)
                node.data = node.synced = data

    # Nodes

    def _new(self, path: str, kind: int) -> Node:
        self._last += 1
        node = self._nodes[path] = Node(kind, self._last, self._world.now_s)
        self._enter(path)
        return node

    def _enter(self, path: str) -> None:
        above, _, name = path.rpartition("/")
        if above in self._nodes:
            self._nodes[above].names[name] = None
        process = self._world.current
        if process is not None and process.machine.cache_s:  # a machine sees its own changes at once
            process.machine.absent.pop(path, None)
            process.machine.seen.pop(f"{above}/", None)

    def _leave(self, path: str) -> None:
        above, _, name = path.rpartition("/")
        del self._nodes[path]
        self._nodes[above].names.pop(name, None)
        process = self._world.current
        if process is not None and process.machine.cache_s:
            process.machine.seen.pop(f"{above}/", None)

    def _find(self, path: str, *, is_exact: bool = False) -> Node:
        """Return what a path names, as the machine of the running process sees it."""
        node = self._nodes.get(path)
        process = self._world.current
        if process is not None and process.machine.cache_s and not is_exact and path.startswith(SHARED):
            machine, now_s = process.machine, self._world.now_s
            if node is None:
                absent = path  # the kernel remembers the first part of a path that it did not find
                while (above := absent.rpartition("/")[0]) not in self._nodes:
                    absent = above
                machine.absent[absent] = now_s
            for absent, at_s in [*machine.absent.items()]:
                if now_s - at_s >= machine.cache_s:
                    del machine.absent[absent]
                elif path == absent or path.startswith(f"{absent}/"):
                    node = None  # it was not there a moment ago, and the machine has not asked again
        if node is None:
            self._missing(path)
        assert node is not None
        return node

    def _missing(self, path: str) -> None:
        above = path
        while above and above not in self._nodes:
            above = above.rpartition("/")[0]
        if above and above != path and self._nodes[above].kind == stat.S_IFREG:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        raise FileNotFoundError(errno.ENOENT, _ABSENT, path)

    def _parent(self, path: str) -> None:
        parent = self._nodes.get(path.rpartition("/")[0])
        if parent is None or parent.kind != stat.S_IFDIR:
            self._missing(path)

    def content(self, path: str) -> bytes | None:
        """Return the content of a file as it is, for checks; None if there is none."""
        node = self._nodes.get(path)
        return None if node is None else node.data

    def durable(self, path: str) -> bytes | None:
        """Return the content of a file that no loss of power takes away, for checks."""
        node = self._nodes.get(path)
        return None if node is None else node.synced

    # System calls

    def open(self, path: str, flags: int) -> int:
        """Open a file or folder, and return its number."""
        if flags & os.O_CREAT and path not in self._nodes:
            self._step("create", path)
            self._parent(path)
            node = self._new(path, stat.S_IFREG)
        else:
            if path == MOUNTS:
                node = Node(stat.S_IFREG, 0, 0.0)
                node.data = self._mounts
            else:
                self._step("open", path)
                node = self._find(path)
        return self.handle(path, node)

    def handle(self, path: str, node: Node) -> int:
        """Return a number for an open file."""
        self._last_handle += 1
        self.handles[self._last_handle] = (path, node)
        return self._last_handle

    def opened(self, path: str, mode: str) -> io.BytesIO | io.TextIOWrapper:
        """Open a file as `open` does."""
        is_text = "b" not in mode
        if path == MOUNTS:
            return io.TextIOWrapper(ReadFile(self._mounts), encoding="utf-8")
        if "r" in mode and "+" not in mode:
            self._step("read", path)
            node = self._find(path)
            if node.kind == stat.S_IFDIR:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            stream = ReadFile(node.data)
            return io.TextIOWrapper(stream, encoding="utf-8") if is_text else stream
        self._step("create", path)
        self._parent(path)
        is_there = self._nodes.get(path)
        if is_there is not None and "x" in mode:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if is_there is not None and is_there.kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        node = is_there or self._new(path, stat.S_IFREG)
        self.changed("create", path)
        if "w" in mode:
            node.data = b""
            node.status = None
        return WrittenFile(
            node.data if "a" in mode else b"",
            is_text=is_text,
            flushed=lambda data: self.write(path, node, data),
            numbered=lambda: self.handle(path, node),
            left=self.close,
        )

    def write(self, path: str, node: Node, data: bytes) -> None:
        """Replace the content of an open file."""
        if data == node.data:
            return
        self._step("write", path)
        node.data = data
        node.status = None
        node.written_s = self._world.now_s
        process = self._world.current
        if process is not None:
            process.machine.unsynced[node] = None

    def read(self, handle: int, num_bytes: int) -> bytes:
        """Read from the start; a record is read at once."""
        path, node = self.handles[handle]
        if num_bytes >= len(node.data):
            return node.data
        raise OSError(errno.EFBIG, "no record of a simulation is this long", path)

    def close(self, handle: int) -> None:
        """Close a file."""
        self.handles.pop(handle, None)

    def fsync(self, handle: int) -> None:
        """Make the content of a file outlive its writer's machine."""
        path, node = self.handles[handle]
        if node.kind == stat.S_IFREG and node.synced != node.data:
            self._step("sync", path)
            node.synced = node.data
            process = self._world.current
            if process is not None:
                process.machine.unsynced.pop(node, None)

    def lose_power(self, machine: Machine) -> None:
        """Lose what a machine wrote and did not sync."""
        for node in machine.unsynced:
            node.data = node.synced
            node.status = None
            node.written_s = self._world.now_s
        machine.unsynced.clear()
        machine.seen.clear()
        machine.absent.clear()

    def link(self, source: str, target: str) -> None:
        """Give a file a second name."""
        self._step("link", target)
        node = self._find(source, is_exact=True)
        self._parent(target)
        process = self._world.current
        if process is not None:
            process.machine.absent.pop(target, None)
        if target in self._nodes:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        self._nodes[target] = node
        self._enter(target)
        self.changed("link", target)
        if target.startswith(SHARED) and self.reply("link"):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)

    def rename(self, source: str, target: str) -> None:
        """Rename a file or folder, in place of what has the name."""
        self._step("rename", target)
        node = self._find(source, is_exact=True)
        self._parent(target)
        there = self._nodes.get(target)
        if there is not None and there.kind == stat.S_IFDIR and there.names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), target)
        below = []
        if node.kind == stat.S_IFDIR:
            below = [path for path in self._nodes if path.startswith(f"{source}/")]
        self._leave(source)
        self._nodes[target] = node
        self._enter(target)
        for path in below:
            self._nodes[target + path[len(source) :]] = self._nodes.pop(path)
        self.changed("rename", target)
        if target.startswith(SHARED):
            self.reply("rename")

    def unlink(self, path: str) -> None:
        """Remove a file or link."""
        self._step("unlink", path)
        node = self._find(path, is_exact=True)
        if node.kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self._leave(path)
        self.changed("unlink", path)

    def mkdir(self, path: str) -> None:
        """Make a folder."""
        process = self._world.current
        if process is not None:  # a refusal by the server corrects the machine's cache
            process.machine.absent.pop(path, None)
        if path in self._nodes:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._parent(path)
        self._step("mkdir", path)
        if path in self._nodes:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._new(path, stat.S_IFDIR)

    def rmdir(self, path: str) -> None:
        """Remove an empty folder."""
        self._step("rmdir", path)
        if self._find(path, is_exact=True).names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        self._leave(path)

    def remove_tree(self, path: str) -> None:
        """Remove a folder and all below it, a file at a step, in the order of the names."""
        if path not in self._nodes:
            return
        for below in sorted(p for p in self._nodes if p.startswith(f"{path}/") and p in self._nodes)[::-1]:
            self._step("unlink", below)
            if below in self._nodes and not self._nodes[below].names:
                self._leave(below)
                self.changed("unlink", below)
        self._step("unlink", path)
        if path in self._nodes and not self._nodes[path].names:  # else somebody has put something into it
            self._leave(path)

    def status(self, path: str) -> os.stat_result:
        """Return what `os.stat` does."""
        node = self._find(path)
        return self.status_of(node)

    def status_of(self, node: Node) -> os.stat_result:
        """Return what `os.fstat` does."""
        if node.status is not None:
            return node.status
        at_s = EPOCH_S + node.written_s
        at_ns = int(at_s * 1e9)
        size = len(node.data)
        values = (node.kind | node.mode, node.number, 1, 1, 0, 0, size, int(at_s), int(at_s), int(at_s))
        node.status = os.stat_result((*values, at_s, at_s, at_s, at_ns, at_ns, at_ns, 4096, 8, 0))
        return node.status

    def scan(self, path: str) -> FolderScan:
        """Return what `os.scandir` does."""
        self._step("list", path)
        node = self._find(path)
        if node.kind != stat.S_IFDIR:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        names = list(node.names)
        process = self._world.current
        if process is not None and process.machine.cache_s and path.startswith(SHARED):
            machine, now_s = process.machine, self._world.now_s
            seen = machine.seen.get(f"{path}/")
            if seen is not None and now_s - seen[0] < machine.cache_s:
                names = [name for name in seen[1] if f"{path}/{name}" in self._nodes]
            else:
                machine.seen[f"{path}/"] = (now_s, names)
        return FolderScan(
            [FolderEntry(name, f"{path}/{name}", self._nodes[f"{path}/{name}"]) for name in names]
        )

    def exists(self, path: str) -> bool:
        """Return whether there is something at a path."""
        try:
            self._find(path)
        except OSError:
            return False
        return True
