"""One process a run where OUTPUT is on a store: an object that only one can have created."""

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress

from model.object_store import ObjectFolder, StoredObject
from pipeline.lock import DEAD_AFTER_S, HEARTBEAT_S, TAKEN_OVER, Holder, LockLostError
from schemas.errors import InputError


class StoreLock:
    """Held while a process works on a run; a context manager.

    The object is written only where none is, or where its holder has shown no sign of life
    for `DEAD_AFTER_S`, and each sign of life only over the one before: the store decides
    between two that try at once.
    """

    def __init__(self, store: ObjectFolder, name: str, run_id: str):
        """Names the lock's object and what it is for."""
        self._store = store
        self._name = name
        self._run_id = run_id
        self._token = uuid.uuid4().hex
        self._lost = False
        self._stop = threading.Event()

    def __enter__(self) -> "StoreLock":
        """Takes the lock.

        Raises:
          InputError: A living process holds it.
          OSError: The store refuses, or does not answer.
        """
        found = self._store.find(self._name)
        holder = found and _holder(self._store, found)
        if holder and holder.age_s < DEAD_AFTER_S:
            raise self._held(holder)
        try:
            self._beat(found.generation if found else 0)
        except FileExistsError as error:
            raise self._held(find_store_holder(self._store, self._name)) from error
        self._thread = threading.Thread(target=self._keep_alive, daemon=True, name="heartbeat")
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        # Its own alone: another may have taken it over unseen. One that cannot be removed now
        # is taken for dead in a while, which is no reason to fail a run that is published.
        with suppress(OSError):
            self._store.delete_generation(self._name, self._generation)

    def check(self) -> None:
        """Raises if the run belongs to another process by now.

        Raises:
          LockLostError: It does: this one must not publish.
        """
        if self._lost:
            raise LockLostError(TAKEN_OVER)

    def _held(self, holder: Holder | None) -> InputError:
        return InputError(
            "a run must be worked on by one process at a time. Received:"
            f" run {self._run_id}, held by {holder or 'another process'}. Wait for it to end, or"
            f" stop it and wait {DEAD_AFTER_S:.0f} s, then run again with --resume."
        )

    def _beat(self, generation: int) -> None:
        content = {"host": socket.gethostname(), "process": os.getpid(), "token": self._token}
        data = json.dumps(content).encode()
        try:
            self._generation = self._store.write(self._name, data, if_generation=generation)
        except FileExistsError:
            # Its own, where the answer to a write was lost and the client wrote again.
            found = self._store.find(self._name)
            if found is None or self._store.read(self._name) != data:
                raise
            self._generation = found.generation
        self._seen = time.monotonic()

    def _keep_alive(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                self._beat(self._generation)
            except (FileExistsError, FileNotFoundError):
                self._lost = True
            except OSError:
                # Others may take the run over now, as they have seen nothing either.
                self._lost = time.monotonic() - self._seen >= DEAD_AFTER_S
            if self._lost:
                return


def find_store_holder(store: ObjectFolder, name: str) -> Holder | None:
    """Returns the living process that holds a lock, or None."""
    found = store.find(name)
    holder = found and _holder(store, found)
    return holder if holder and holder.age_s < DEAD_AFTER_S else None


def _holder(store: ObjectFolder, found: StoredObject) -> Holder | None:
    try:
        content = json.loads(store.read(found.name))
    except FileNotFoundError:
        return None
    # Clocks of store and machine may differ by less than `DEAD_AFTER_S`.
    return Holder(**content, age_s=max(time.time() - found.updated.timestamp(), 0.0))
