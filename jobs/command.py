"""A click command that turns the project's errors into messages and exit codes."""

import click

from schemas.errors import InputError

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_TOO_MANY_REJECTS = 3
EXIT_NOT_RECONCILED = 4


class Failure(click.ClickException):
    """An error that was expected: one line, and an exit code."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class Command(click.Command):
    """A command with `--debug`; without it no error shows a stack trace."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                callback=lambda context, _, value: context.meta.update({__name__: value}),
                help="Show the stack trace of an error.",
            )
        )

    def invoke(self, context: click.Context):
        """Runs the command; an error becomes a `Failure` unless `--debug` was given."""
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if context.meta[__name__]:
                raise
            raise Failure(*_explain(error)) from error


def _explain(error: Exception) -> tuple[str, int]:
    """Returns the message and the exit code of an error."""
    if isinstance(error, InputError):
        return str(error), EXIT_BAD_INPUT
    codes = {
        "RejectLimitError": EXIT_TOO_MANY_REJECTS,
        "ReconciliationError": EXIT_NOT_RECONCILED,
    }
    # By name: importing the classes would load Beam for every command.
    code = codes.get(type(error).__name__)
    if code:
        return str(error), code
    message = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{message} Run again with --debug for the stack trace.", EXIT_FAILED
