"""The lock of a run, wherever its OUTPUT is."""

from pipeline.layout import RunPaths
from pipeline.lock import Holder, RunLock, find_holder
from pipeline.store_lock import StoreLock, find_store_holder


def run_lock(paths: RunPaths) -> RunLock | StoreLock:
    """Returns the lock of a run, not yet held."""
    if paths.store:
        return StoreLock(paths.store, paths.name_of(paths.lock), paths.run_id)
    return RunLock(paths.lock)


def succession_lock(paths: RunPaths) -> RunLock | StoreLock:
    """Returns the lock of who makes the run that supersedes a run, not yet held."""
    if paths.store:
        return StoreLock(paths.store, paths.name_of(paths.succession), paths.run_id)
    return RunLock(paths.succession)


def living_holder(paths: RunPaths) -> Holder | None:
    """Returns the living process that works on a run, or None."""
    if paths.store:
        return find_store_holder(paths.store, paths.name_of(paths.lock))
    return find_holder(paths.lock)
