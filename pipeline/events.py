"""What a run tells of itself while it goes on."""

from typing import Protocol


class Report(Protocol):
    """Called once a change of state; what is shown, and how, is the caller's."""

    def __call__(self, event: str, **facts: object) -> None:
        """Takes an event and what belongs to it, in values that JSON has.

        Args:
          event: `run_started`, `run_resumed`, `run_finished_earlier`,
            `published_already`, `manifest_checked`, `parts_discarded`, `planned`,
            `scoring`, `handed_over`, `scored`, `drawn`, `built`, `published`; of a plan,
            `planning`.
          **facts: Numbers and names; never a path, nor anything of an image.
        """
